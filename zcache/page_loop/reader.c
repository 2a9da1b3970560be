/* Reader: zpages out of frames, under the store's lock. */

#include "page_loop.h"

typedef struct {
    PyObject_HEAD
    Py_buffer home, ram, referenced;
    int frame_shift;
} Reader;

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *home, *ram, *referenced;
    int frame_shift;

    if (!PyArg_ParseTuple(args, "OOOi", &home, &ram, &referenced, &frame_shift))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Reader *reader = (Reader *)alloc(type, 0);
    if (!reader)
        return NULL;
    reader->frame_shift = frame_shift;
    if (frame_shift < 0 || frame_shift > 31) {
        Py_DECREF(reader);
        return PyErr_Format(PyExc_ValueError, "frames of 2^%d bytes", frame_shift);
    }
    if (PyObject_GetBuffer(home, &reader->home, PyBUF_SIMPLE) < 0
        || PyObject_GetBuffer(ram, &reader->ram, PyBUF_SIMPLE) < 0
        || PyObject_GetBuffer(referenced, &reader->referenced, PyBUF_WRITABLE) < 0
        || !is_aligned(&reader->home, 4)) {
        Py_DECREF(reader);
        return NULL;
    }
    return (PyObject *)reader;
}

static void reader_dealloc(Reader *reader)
{
    PyTypeObject *type = Py_TYPE((PyObject *)reader);
    PyBuffer_Release(&reader->referenced); /* does nothing for those that there are none of */
    PyBuffer_Release(&reader->ram);
    PyBuffer_Release(&reader->home);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(reader);
    Py_DECREF(type);
}

static int is_lz4(uint64_t entry)
{
    return entry >> CODEC_SHIFT == (ZPAGE >> CODEC_SHIFT | LZ4);
}

/* Whether a zpage's frame is (or is none, which `copy_zpage` will say). */
static int is_in_ram(const Reader *reader, uint64_t entry)
{
    uint64_t frame = entry & FRAME_MASK;
    return frame >= (uint64_t)reader->home.len / 4 || ((const uint32_t *)reader->home.buf)[frame];
}

/* The zpage of an entry. NULL with no error: its frame is not in RAM; NULL and IndexError: the entry
 * names what there is not. */
static PyObject *copy_zpage(Reader *reader, uint64_t entry)
{
    uint64_t frame = entry & FRAME_MASK;
    size_t length = (entry >> LENGTH_SHIFT & LENGTH_MASK) + 1;

    if (frame >= (uint64_t)reader->home.len / 4)
        return PyErr_Format(PyExc_IndexError, "there is no frame %lld", (long long)frame);
    uint32_t slot = ((const uint32_t *)reader->home.buf)[frame];
    if (!slot)
        return NULL;
    size_t start = ((size_t)slot << reader->frame_shift) + (entry >> OFFSET_SHIFT & OFFSET_MASK);
    if (start + length > (size_t)reader->ram.len || slot >= (size_t)reader->referenced.len)
        return PyErr_Format(PyExc_IndexError, "there is no RAM slot %lld", (long long)slot);
    PyObject *zpage = PyBytes_FromStringAndSize((const char *)reader->ram.buf + start, (Py_ssize_t)length);
    if (zpage)
        ((char *)reader->referenced.buf)[slot] = 1;
    return zpage;
}

PyDoc_STRVAR(page_doc, "page(entries, index) -> the zpage, if it is one of lz4's in RAM, or None");

static PyObject *reader_page(Reader *reader, PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer table;
    PyObject *zpage = NULL;

    if (!takes("page", 2, nargs))
        return NULL;
    Py_ssize_t index = PyLong_AsSsize_t(args[1]);
    if (PyErr_Occurred() || PyObject_GetBuffer(args[0], &table, PyBUF_SIMPLE) < 0)
        return NULL;
    const uint64_t *entry = entries_at(&table, index, 1);
    if (entry && is_lz4(*entry))
        zpage = copy_zpage(reader, *entry);
    if (!zpage && !PyErr_Occurred()) {
        Py_INCREF(Py_None);
        zpage = Py_None;
    }
    PyBuffer_Release(&table);
    return zpage;
}

/* lz4_run(entries, first, count) -> the zpages, if all are lz4's in RAM, or None */
static PyObject *reader_lz4_run(Reader *reader, PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer table;
    PyObject *zpages = NULL;

    if (!takes("lz4_run", 3, nargs))
        return NULL;
    Py_ssize_t first = PyLong_AsSsize_t(args[1]), count = PyLong_AsSsize_t(args[2]);
    if (PyErr_Occurred() || PyObject_GetBuffer(args[0], &table, PyBUF_SIMPLE) < 0)
        return NULL;
    const uint64_t *entries = entries_at(&table, first, count);
    if (!entries)
        goto out;
    for (Py_ssize_t n = 0; n < count; n++)
        if (!is_lz4(entries[n]) || !is_in_ram(reader, entries[n])) {
            Py_INCREF(Py_None);
            zpages = Py_None;
            goto out;
        }
    zpages = PyList_New(count);
    for (Py_ssize_t n = 0; zpages && n < count; n++) {
        PyObject *zpage = copy_zpage(reader, entries[n]);
        if (!zpage || PyList_SetItem(zpages, n, zpage) < 0)
            Py_CLEAR(zpages);
    }
out:
    PyBuffer_Release(&table);
    return zpages;
}

/* Appends a number to a list that is made with its first one. 0, or -1 and an error. */
static int append_number(PyObject **list, Py_ssize_t number)
{
    if (!*list && !(*list = PyList_New(0)))
        return -1;
    PyObject *item = PyLong_FromSsize_t(number);
    int failed = item ? PyList_Append(*list, item) : -1;
    Py_XDECREF(item);
    return failed;
}

PyDoc_STRVAR(run_doc, "run(entries, first, count) -> `Run`");

static PyObject *reader_run(Reader *reader, PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer table;
    PyObject *entries = NULL, *bodies = NULL, *cold = NULL, *misses = NULL, *nothing = NULL, *result = NULL;
    int is_lost = 0;

    if (!takes("run", 3, nargs))
        return NULL;
    Py_ssize_t first = PyLong_AsSsize_t(args[1]), count = PyLong_AsSsize_t(args[2]);
    if (PyErr_Occurred() || PyObject_GetBuffer(args[0], &table, PyBUF_SIMPLE) < 0)
        return NULL;
    const uint64_t *words = entries_at(&table, first, count);
    if (!words || !(entries = PyList_New(count)) || !(bodies = PyList_New(count))
        || !(nothing = PyBytes_FromStringAndSize(NULL, 0)))
        goto out;
    for (Py_ssize_t n = 0; n < count; n++) {
        uint64_t entry = words[n];
        PyObject *number = PyLong_FromUnsignedLongLong(entry), *body = NULL;
        if (!number || PyList_SetItem(entries, n, number) < 0)
            goto out;
        if (entry && entry < SAME_FILLED) {
            body = copy_zpage(reader, entry);
            if (!body && (PyErr_Occurred() || append_number(&cold, n) < 0))
                goto out;
        } else if (!entry) {
            if (append_number(&misses, n) < 0)
                goto out;
        } else if (entry >= LOST)
            is_lost = 1;
        if (!body) {
            Py_INCREF(nothing);
            body = nothing;
        }
        if (PyList_SetItem(bodies, n, body) < 0)
            goto out;
    }
    result = Py_BuildValue("(OOOOO)", entries, bodies, cold ? cold : Py_None, misses ? misses : Py_None,
                           is_lost ? Py_True : Py_False);
out:
    Py_XDECREF(entries);
    Py_XDECREF(bodies);
    Py_XDECREF(cold);
    Py_XDECREF(misses);
    Py_XDECREF(nothing);
    PyBuffer_Release(&table);
    return result;
}

static PyMethodDef reader_methods[] = {
    {"page", (PyCFunction)(void (*)(void))reader_page, METH_FASTCALL, page_doc},
    {"lz4_run", (PyCFunction)(void (*)(void))reader_lz4_run, METH_FASTCALL, "See `Reader.lz4_run`."},
    {"run", (PyCFunction)(void (*)(void))reader_run, METH_FASTCALL, run_doc},
    {NULL, NULL, 0, NULL},
};
PyDoc_STRVAR(reader_doc, "Reader(home, ram, referenced, frame_shift)");
static PyType_Slot reader_slots[] = {
    {Py_tp_doc, (void *)reader_doc}, {Py_tp_new, reader_new}, {Py_tp_dealloc, reader_dealloc},
    {Py_tp_methods, reader_methods}, {0, NULL},
};
PyType_Spec reader_spec = {
    "zcache.page_loop._compiled.Reader", sizeof(Reader), 0, Py_TPFLAGS_DEFAULT, reader_slots};
