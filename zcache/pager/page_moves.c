/* What is done to pages of a region, for a batch of them at a time and without the interpreter's lock: the thread
 * that has pages leave would take it from the one that serves faults, and wait for it, at every system call.
 * See page_moves.py. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#define _GNU_SOURCE
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES 4096
#define MESSAGES 16

/* Pages in order, as runs of neighbours: `next` and how many; 0 at the end. */
static Py_ssize_t run_at(const uint32_t *pages, Py_ssize_t count, Py_ssize_t at)
{
    Py_ssize_t end = at;
    while (end < count && pages[end] == pages[at] + (uint32_t)(end - at))
        end++;
    return end - at;
}

static int protect(int descriptor, uint64_t at, uint64_t bytes, int is_protected)
{
    struct uffdio_writeprotect request = {
        {at, bytes},
        is_protected ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
    };
    int failed;
    do
        failed = ioctl(descriptor, UFFDIO_WRITEPROTECT, &request);
    while (failed && (errno == EAGAIN || errno == EINTR));
    return failed ? errno : 0;
}

static int read_whole(int memfd, char *out, size_t bytes, off_t at)
{
    while (bytes) {
        ssize_t got = pread(memfd, out, bytes, at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got ? errno : EIO;
        out += got, at += got, bytes -= (size_t)got;
    }
    return 0;
}

static int punch_hole(int memfd, off_t at, off_t bytes)
{
    int failed;
    do
        failed = fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, bytes);
    while (failed && errno == EINTR);
    return failed ? errno : 0;
}

static PyObject *none_or_error(int error)
{
    if (!error)
        Py_RETURN_NONE;
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *protect_and_read(PyObject *module, PyObject *args)
{
    int descriptor, memfd, error = 0;
    unsigned long long start;
    Py_buffer numbers, out;

    (void)module;
    if (!PyArg_ParseTuple(args, "iiKy*w*", &descriptor, &memfd, &start, &numbers, &out))
        return NULL;
    const uint32_t *pages = numbers.buf;
    Py_ssize_t count = numbers.len / 4;
    if (out.len < count * PAGE_BYTES)
        error = EINVAL;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t at = 0, run; !error && at < count; at += run) {
        run = run_at(pages, count, at);
        uint64_t offset = (uint64_t)pages[at] * PAGE_BYTES, bytes = (uint64_t)run * PAGE_BYTES;
        error = protect(descriptor, start + offset, bytes, 1);
        if (!error)
            error = read_whole(memfd, (char *)out.buf + at * PAGE_BYTES, bytes, (off_t)offset);
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&numbers);
    PyBuffer_Release(&out);
    return none_or_error(error);
}

static PyObject *punch(PyObject *module, PyObject *args)
{
    int memfd, error = 0;
    Py_buffer numbers;

    (void)module;
    if (!PyArg_ParseTuple(args, "iy*", &memfd, &numbers))
        return NULL;
    const uint32_t *pages = numbers.buf;
    Py_ssize_t count = numbers.len / 4;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t at = 0, run; !error && at < count; at += run) {
        run = run_at(pages, count, at);
        error = punch_hole(memfd, (off_t)pages[at] * PAGE_BYTES, (off_t)run * PAGE_BYTES);
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&numbers);
    return none_or_error(error);
}

static PyObject *allow_writes(PyObject *module, PyObject *args)
{
    int descriptor, error = 0;
    unsigned long long start;
    Py_buffer numbers;

    (void)module;
    if (!PyArg_ParseTuple(args, "iKy*", &descriptor, &start, &numbers))
        return NULL;
    const uint32_t *pages = numbers.buf;
    Py_ssize_t count = numbers.len / 4;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t at = 0, run; !error && at < count; at += run) {
        run = run_at(pages, count, at);
        error = protect(descriptor, start + (uint64_t)pages[at] * PAGE_BYTES, (uint64_t)run * PAGE_BYTES, 0);
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&numbers);
    return none_or_error(error);
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static PyObject *read_faults(PyObject *module, PyObject *args)
{
    int descriptor, error;
    double seconds;
    ssize_t got;
    struct uffd_msg messages[MESSAGES];

    (void)module;
    if (!PyArg_ParseTuple(args, "id", &descriptor, &seconds))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    int64_t end = seconds > 0 ? now_ns() + (int64_t)(seconds * 1e9) : 0;
    struct pollfd ready = {descriptor, POLLIN, 0};
    do {
        got = -1;
        errno = EAGAIN;
        if (poll(&ready, 1, 0) > 0) {
            if (ready.revents & POLLNVAL)
                errno = EBADF;
            else if (ready.revents & POLLERR) /* somebody has had it block, and would wait for good */
                errno = EINVAL;
            else
                got = read(descriptor, messages, sizeof messages);
        }
    } while (got < 0 && (errno == EINTR || (errno == EAGAIN && now_ns() < end)));
    error = got < 0 && errno != EAGAIN ? errno : 0;
    Py_END_ALLOW_THREADS
    if (error)
        return none_or_error(error);
    return PyBytes_FromStringAndSize((const char *)messages, got < 0 ? 0 : got);
}

static PyMethodDef methods[] = {
    {"protect_and_read", protect_and_read, METH_VARARGS, "See page_moves.py."},
    {"punch", punch, METH_VARARGS, "See page_moves.py."},
    {"allow_writes", allow_writes, METH_VARARGS, "See page_moves.py."},
    {"read_faults", read_faults, METH_VARARGS, "See page_moves.py."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_page_moves", "See page_moves.py.", -1, methods,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__page_moves(void)
{
    return PyModule_Create(&definition);
}
