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

/* What a call is about. */
struct batch {
    int descriptor, memfd;
    unsigned long long start; /* of the region, in the client */
    char *out;                /* where the next page that is read goes */
};

static int protect(const struct batch *batch, uint64_t offset, uint64_t bytes, uint64_t mode)
{
    struct uffdio_writeprotect request = {{batch->start + offset, bytes}, mode};
    int failed;
    do
        failed = ioctl(batch->descriptor, UFFDIO_WRITEPROTECT, &request);
    while (failed && (errno == EAGAIN || errno == EINTR));
    return failed ? errno : 0;
}

/* -- of a run of neighbours: 0, or an errno ----------------------------------------------------------------- */

static int protect_and_read_run(struct batch *batch, uint64_t offset, uint64_t bytes)
{
    int error = protect(batch, offset, bytes, UFFDIO_WRITEPROTECT_MODE_WP);
    while (!error && bytes) {
        ssize_t got = pread(batch->memfd, batch->out, bytes, (off_t)offset);
        if (got > 0)
            batch->out += got, offset += (uint64_t)got, bytes -= (uint64_t)got;
        else if (!got || errno != EINTR)
            error = got ? errno : EIO;
    }
    return error;
}

static int punch_run(struct batch *batch, uint64_t offset, uint64_t bytes)
{
    int failed;
    do
        failed = fallocate(batch->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes);
    while (failed && errno == EINTR);
    return failed ? errno : 0;
}

static int allow_writes_run(struct batch *batch, uint64_t offset, uint64_t bytes)
{
    return protect(batch, offset, bytes, 0);
}

/* -- of pages in order ---------------------------------------------------------------------------------------- */

static PyObject *none_or_error(int error)
{
    if (!error)
        Py_RETURN_NONE;
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *by_runs(struct batch *batch, Py_buffer *numbers, int (*move)(struct batch *, uint64_t, uint64_t))
{
    const uint32_t *pages = numbers->buf;
    Py_ssize_t count = numbers->len / 4;
    int error = 0;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t begin = 0, end = 0; !error && begin < count; begin = end) {
        while (end < count && pages[end] == pages[begin] + (uint32_t)(end - begin))
            end++;
        error = move(batch, (uint64_t)pages[begin] * PAGE_BYTES, (uint64_t)(end - begin) * PAGE_BYTES);
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(numbers);
    return none_or_error(error);
}

static PyObject *protect_and_read(PyObject *module, PyObject *args)
{
    struct batch batch = {0};
    Py_buffer numbers, out;

    (void)module;
    if (!PyArg_ParseTuple(args, "iiKy*w*", &batch.descriptor, &batch.memfd, &batch.start, &numbers, &out))
        return NULL;
    if (out.len < numbers.len / 4 * PAGE_BYTES) {
        PyBuffer_Release(&numbers);
        PyBuffer_Release(&out);
        return none_or_error(EINVAL);
    }
    batch.out = out.buf;
    PyObject *done = by_runs(&batch, &numbers, protect_and_read_run);
    PyBuffer_Release(&out);
    return done;
}

static PyObject *punch(PyObject *module, PyObject *args)
{
    struct batch batch = {0};
    Py_buffer numbers;

    (void)module;
    if (!PyArg_ParseTuple(args, "iy*", &batch.memfd, &numbers))
        return NULL;
    return by_runs(&batch, &numbers, punch_run);
}

static PyObject *allow_writes(PyObject *module, PyObject *args)
{
    struct batch batch = {0};
    Py_buffer numbers;

    (void)module;
    if (!PyArg_ParseTuple(args, "iKy*", &batch.descriptor, &batch.start, &numbers))
        return NULL;
    return by_runs(&batch, &numbers, allow_writes_run);
}

/* -- of faults ------------------------------------------------------------------------------------------------ */

static PyObject *fill(PyObject *module, PyObject *args)
{
    int descriptor, error = 0;
    unsigned long long to, from, bytes;

    (void)module;
    if (!PyArg_ParseTuple(args, "iKKK", &descriptor, &to, &from, &bytes))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    for (uint64_t done = 0; !error && done < bytes;) {
        struct uffdio_copy request = {.dst = to + done, .src = from + done, .len = bytes - done};
        struct uffdio_range page = {to + done, PAGE_BYTES};
        if (!ioctl(descriptor, UFFDIO_COPY, &request))
            done = bytes;
        else if (request.copy > 0)
            done += (uint64_t)request.copy;
        else if (errno == EEXIST && !ioctl(descriptor, UFFDIO_WAKE, &page)) /* by a write to the file, say */
            done += PAGE_BYTES;
        else if (errno != EAGAIN && errno != EINTR)
            error = errno;
    }
    Py_END_ALLOW_THREADS
    return error == ENOMEM ? PyErr_NoMemory() : none_or_error(error);
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
    {"fill", fill, METH_VARARGS, "See page_moves.py."},
    {"read_faults", read_faults, METH_VARARGS, "See page_moves.py."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_page_moves", "See page_moves.py.", -1, methods,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__page_moves(void)
{
    return PyModule_Create(&definition);
}
