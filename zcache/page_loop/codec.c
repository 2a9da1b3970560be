/* A run of pages to zpages, and back: what zcache/pages/zpages.py does, in one call without the GIL. */

#include "page_loop.h"

/* What lz4 makes of a page, at most: LZ4_COMPRESSBOUND. */
#define LONGEST_BYTES (PAGE_BYTES + PAGE_BYTES / 255 + 16)

/* Whole pages, at most so many: how many. -1, and an error, if they are not that. */
static Py_ssize_t pages_of(const Py_buffer *buffer, Py_ssize_t most)
{
    if (buffer->len % PAGE_BYTES == 0 && buffer->len / PAGE_BYTES <= most)
        return buffer->len / PAGE_BYTES;
    PyErr_Format(PyExc_ValueError, "%zd bytes are not at most %zd pages", buffer->len, most);
    return -1;
}

static int repeats_a_word(const char *page)
{
    return memcmp(page, page + 8, PAGE_BYTES - 8) == 0;
}

/* What the Python package does: so the zpages are the same. `LZ4_compress_fast` would make others, a few
 * bytes longer or shorter. */
static int compress(const char *page, char *to, int acceleration)
{
    uint64_t stream[LZ4_STREAM_BYTES / 8];

    lz4_init_stream(stream, sizeof stream);
    return lz4_compress(stream, page, to, PAGE_BYTES, LONGEST_BYTES, acceleration);
}

/* Puts the zpage of a page at `to`, where there is room for LONGEST_BYTES. Its tag. */
static uint64_t encode_page(const char *page, char *to, int max_zpage_bytes, int acceleration)
{
    uint32_t low, high;

    if (repeats_a_word(page)) {
        memcpy(&low, page, 4);
        memcpy(&high, page + 4, 4);
        if (low == high)
            return SAME_FILLED | low;
        memcpy(to, page, 8);
        return zpage_tag(WORD, 8);
    }
    int length = compress(page, to, acceleration);
    if (0 < length && length <= max_zpage_bytes)
        return zpage_tag(LZ4, (uint64_t)length);
    memcpy(to, page, PAGE_BYTES);
    return zpage_tag(RAW, PAGE_BYTES);
}

typedef struct {
    PyObject_HEAD
    int acceleration, max_zpage_bytes;
} Encoder;

static PyObject *encoder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    int acceleration, max_zpage_bytes;

    if (!PyArg_ParseTuple(args, "ii", &acceleration, &max_zpage_bytes))
        return NULL;
    if (max_zpage_bytes < 1 || max_zpage_bytes > PAGE_BYTES)
        return PyErr_Format(PyExc_ValueError, "%d bytes are no zpage", max_zpage_bytes);
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Encoder *encoder = (Encoder *)alloc(type, 0);
    if (encoder) {
        encoder->acceleration = acceleration;
        encoder->max_zpage_bytes = max_zpage_bytes;
    }
    return (PyObject *)encoder;
}

PyDoc_STRVAR(encoder_page_doc, "page(data) -> the zpage");

static PyObject *encoder_page(Encoder *encoder, PyObject *data)
{
    char zpage[LONGEST_BYTES];
    Py_buffer page;
    int length;

    if (PyObject_GetBuffer(data, &page, PyBUF_SIMPLE) < 0)
        return NULL;
    if (page.len != PAGE_BYTES) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are not a page", page.len);
        PyBuffer_Release(&page);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    length = compress(page.buf, zpage, encoder->acceleration);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&page);
    return PyBytes_FromStringAndSize(zpage, length);
}

PyDoc_STRVAR(encoder_run_doc, "run(data) -> `Encoded`");

static PyObject *encoder_run(Encoder *encoder, PyObject *data)
{
    uint64_t tags[MAX_RUN_PAGES];
    Py_buffer pages;
    Py_ssize_t size = 0, same_filled = 0, raw = 0;
    char *zpages = NULL;
    PyObject *list = NULL, *result = NULL;

    if (PyObject_GetBuffer(data, &pages, PyBUF_SIMPLE) < 0)
        return NULL;
    Py_ssize_t count = pages_of(&pages, MAX_RUN_PAGES);
    if (count < 0 || !(list = PyList_New(count)))
        goto out;
    /* Not on the stack: 256 KiB of each would stay locked. */
    zpages = PyMem_Malloc((size_t)count * PAGE_BYTES + LONGEST_BYTES - PAGE_BYTES);
    if (!zpages) {
        PyErr_NoMemory();
        goto out;
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t n = 0; n < count; n++) {
        tags[n] = encode_page((const char *)pages.buf + n * PAGE_BYTES, zpages + size, encoder->max_zpage_bytes,
                              encoder->acceleration);
        size += zpage_bytes(tags[n]);
    }
    Py_END_ALLOW_THREADS
    for (Py_ssize_t n = 0; n < count; n++) {
        PyObject *tag = PyLong_FromUnsignedLongLong(tags[n]);
        if (!tag || PyList_SetItem(list, n, tag) < 0)
            goto out;
        same_filled += tags[n] >= SAME_FILLED || tags[n] == zpage_tag(WORD, 8);
        raw += tags[n] == zpage_tag(RAW, PAGE_BYTES);
    }
    result = Py_BuildValue("(y#Onn)", zpages, size, list, same_filled, raw);
out:
    Py_XDECREF(list);
    PyMem_Free(zpages);
    PyBuffer_Release(&pages);
    return result;
}

static PyMethodDef encoder_methods[] = {
    {"page", (PyCFunction)(void (*)(void))encoder_page, METH_O, encoder_page_doc},
    {"run", (PyCFunction)(void (*)(void))encoder_run, METH_O, encoder_run_doc},
    {NULL, NULL, 0, NULL},
};
PyDoc_STRVAR(encoder_doc, "Encoder(acceleration, max_zpage_bytes)");
static PyType_Slot encoder_slots[] = {
    {Py_tp_doc, (void *)encoder_doc}, {Py_tp_new, encoder_new}, {Py_tp_methods, encoder_methods}, {0, NULL},
};
PyType_Spec encoder_spec = {
    "zcache.page_loop._compiled.Encoder", sizeof(Encoder), 0, Py_TPFLAGS_DEFAULT, encoder_slots};

/* One page from a zpage of lz4's: whether it was one. */
static int lz4_page(const char *zpage, Py_ssize_t length, char *page)
{
    return 0 < length && length <= PAGE_BYTES && lz4_decompress(zpage, page, (int)length, PAGE_BYTES) == PAGE_BYTES;
}

/* decompress(zpage, out) -> whether it was one of lz4's, of a whole page */
PyObject *decompress(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer out;
    char *zpage;
    Py_ssize_t length;
    int is_page;

    if (!takes("decompress", 2, nargs) || PyBytes_AsStringAndSize(args[0], &zpage, &length) < 0
        || PyObject_GetBuffer(args[1], &out, PyBUF_WRITABLE) < 0)
        return NULL;
    if (out.len != PAGE_BYTES) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are not a page", out.len);
        PyBuffer_Release(&out);
        return NULL;
    }
    is_page = lz4_page(zpage, length, out.buf); /* with the GIL: to give it away takes longer */
    PyBuffer_Release(&out);
    return PyBool_FromLong(is_page);
}

static void fill_words(char *page, uint64_t word)
{
    for (int at = 0; at < PAGE_BYTES; at += 8)
        memcpy(page + at, &word, 8);
}

/* One page, by its entry and the bytes of its zpage: whether that could be done. */
static int decode_page(uint64_t entry, const char *body, Py_ssize_t length, char *page)
{
    uint64_t word;

    if (length == 0) { /* there is nothing but the entry: EMPTY, or same-filled */
        if (entry && entry < SAME_FILLED)
            return 0;
        fill_words(page, entry ? (entry & UINT32_MAX) << 32 | (entry & UINT32_MAX) : 0);
        return 1;
    }
    switch (entry >> CODEC_SHIFT & CODEC_MASK) {
    case RAW:
        if (length != PAGE_BYTES)
            return 0;
        memcpy(page, body, PAGE_BYTES);
        return 1;
    case WORD:
        if (length != 8)
            return 0;
        memcpy(&word, body, 8);
        fill_words(page, word);
        return 1;
    case LZ4:
        return lz4_page(body, length, page);
    default:
        return 0;
    }
}

/* decode_lz4(zpages, out) -> whether all were lz4's, each of a whole page */
PyObject *decode_lz4(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    char *zpages[MAX_RUN_PAGES];
    Py_ssize_t lengths[MAX_RUN_PAGES];
    Py_buffer out;
    int good = 0;

    if (!takes("decode_lz4", 2, nargs) || PyObject_GetBuffer(args[1], &out, PyBUF_WRITABLE) < 0)
        return NULL;
    Py_ssize_t count = pages_of(&out, MAX_RUN_PAGES);
    if (count < 0)
        goto out;
    if (PyList_Size(args[0]) != count) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_ValueError, "not %zd zpages", count);
        goto out;
    }
    for (Py_ssize_t n = 0; n < count; n++)
        if (PyBytes_AsStringAndSize(PyList_GetItem(args[0], n), &zpages[n], &lengths[n]) < 0)
            goto out;
    Py_BEGIN_ALLOW_THREADS
    good = 1;
    for (Py_ssize_t n = 0; good && n < count; n++)
        good = lz4_page(zpages[n], lengths[n], (char *)out.buf + n * PAGE_BYTES);
    Py_END_ALLOW_THREADS
out:
    PyBuffer_Release(&out);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(good);
}

/* decode(entries, bodies, out) -> the indexes of those that are another codec's, or damaged */
PyObject *decode(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t entries[MAX_RUN_PAGES];
    char *bodies[MAX_RUN_PAGES];
    Py_ssize_t lengths[MAX_RUN_PAGES];
    unsigned char done[MAX_RUN_PAGES];
    Py_buffer out;
    PyObject *rest = NULL;

    if (!takes("decode", 3, nargs) || PyObject_GetBuffer(args[2], &out, PyBUF_WRITABLE) < 0)
        return NULL;
    Py_ssize_t count = pages_of(&out, MAX_RUN_PAGES);
    if (count < 0)
        goto out;
    if (PyList_Size(args[0]) != count || PyList_Size(args[1]) != count) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_ValueError, "not %zd entries and bodies", count);
        goto out;
    }
    for (Py_ssize_t n = 0; n < count; n++) {
        entries[n] = PyLong_AsUnsignedLongLong(PyList_GetItem(args[0], n));
        if (PyErr_Occurred() || PyBytes_AsStringAndSize(PyList_GetItem(args[1], n), &bodies[n], &lengths[n]) < 0)
            goto out;
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t n = 0; n < count; n++)
        done[n] = (unsigned char)decode_page(entries[n], bodies[n], lengths[n], (char *)out.buf + n * PAGE_BYTES);
    Py_END_ALLOW_THREADS
    rest = PyList_New(0);
    for (Py_ssize_t n = 0; rest && n < count; n++) {
        if (done[n])
            continue;
        PyObject *index = PyLong_FromSsize_t(n);
        if (!index || PyList_Append(rest, index) < 0)
            Py_CLEAR(rest);
        Py_XDECREF(index);
    }
out:
    PyBuffer_Release(&out);
    return rest;
}
