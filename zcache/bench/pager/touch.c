/* Touches of pages, each by the clock, without the interpreter's lock: other threads touch meanwhile. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <time.h>

#define PAGE_BYTES 4096
#define INTO 64 /* where in a page */

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

/* touch(start, pages, writes, times, seconds) -> how many, in that time: 8 bytes of each page are read, or written
 * where `writes` has a 1; `times` is the seconds of each. */
static PyObject *touch(PyObject *module, PyObject *args)
{
    unsigned long long start;
    Py_buffer pages, writes, times;
    double seconds;
    Py_ssize_t done = 0;

    (void)module;
    if (!PyArg_ParseTuple(args, "Ky*y*w*d", &start, &pages, &writes, &times, &seconds))
        return NULL;
    Py_ssize_t count = pages.len / 4;
    if (times.len / 8 < count || !writes.len)
        count = 0;
    Py_BEGIN_ALLOW_THREADS
    const uint32_t *page = pages.buf;
    const char *is_write = writes.buf;
    double *took = times.buf, begin = now(), end = begin + seconds;
    while (done < count && begin < end) {
        volatile uint64_t *word = (volatile uint64_t *)(uintptr_t)(start + (uint64_t)page[done] * PAGE_BYTES + INTO);
        if (is_write[done % writes.len])
            *word = (uint64_t)done;
        else
            (void)*word;
        double after = now();
        took[done++] = after - begin;
        begin = after;
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&pages);
    PyBuffer_Release(&writes);
    PyBuffer_Release(&times);
    return PyLong_FromSsize_t(done);
}

static PyMethodDef methods[] = {
    {"touch", touch, METH_VARARGS, "touch(start, pages, writes, times, seconds) -> how many were touched"},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_touch", "See touches.py.", -1, methods,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__touch(void)
{
    return PyModule_Create(&definition);
}
