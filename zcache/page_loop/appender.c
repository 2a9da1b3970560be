/* Appender: zpages into the log's open frame, under the store's lock (zcache/allocators/log_append.py). */

#include "page_loop.h"

#include <stddef.h>
#include <structmember.h>

#define COUNT_AT (LOG_FRAME_BYTES - RECORD_BYTES)

/* An open frame: what `Head` of zcache/allocators/log_frame.py has, as it can be read from C. */
typedef struct {
    PyObject_HEAD
    Py_ssize_t frame, base, fill, room;
} Head;

static PyMemberDef head_members[] = {
    {"frame", T_PYSSIZET, offsetof(Head, frame), 0, NULL},
    {"base", T_PYSSIZET, offsetof(Head, base), 0, NULL},
    {"fill", T_PYSSIZET, offsetof(Head, fill), 0, NULL},
    {"room", T_PYSSIZET, offsetof(Head, room), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot head_slots[] = {{Py_tp_members, head_members}, {0, NULL}};
PyType_Spec head_spec = {
    "zcache.page_loop._compiled.Head", sizeof(Head), 0, Py_TPFLAGS_DEFAULT, head_slots};
PyTypeObject *head_type;

typedef struct {
    PyObject_HEAD
    Py_buffer ram, live, weight;
} Appender;

static PyObject *appender_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *ram, *live, *weight;

    if (!PyArg_ParseTuple(args, "OOO", &ram, &live, &weight))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Appender *appender = (Appender *)alloc(type, 0);
    if (appender
        && (PyObject_GetBuffer(ram, &appender->ram, PyBUF_WRITABLE) < 0
            || PyObject_GetBuffer(live, &appender->live, PyBUF_WRITABLE) < 0
            || PyObject_GetBuffer(weight, &appender->weight, PyBUF_WRITABLE) < 0
            || !is_aligned(&appender->ram, 8) || !is_aligned(&appender->live, 2)
            || !is_aligned(&appender->weight, 4)))
        Py_CLEAR(appender);
    return (PyObject *)appender;
}

static void appender_dealloc(Appender *appender)
{
    PyTypeObject *type = Py_TYPE((PyObject *)appender);
    PyBuffer_Release(&appender->weight); /* does nothing for one that is not there */
    PyBuffer_Release(&appender->live);
    PyBuffer_Release(&appender->ram);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(appender);
    Py_DECREF(type);
}

static PyObject *new_head(Appender *appender, PyObject *nothing)
{
    PyObject *object = PyObject_CallNoArgs((PyObject *)head_type);
    if (object)
        ((Head *)object)->room = -1;
    return object;
}

/* The head, if it is one, and closed or open on a frame of this memory. NULL, and an error. */
static Head *head_of(Appender *appender, PyObject *object)
{
    Head *head = (Head *)object;

    if (!PyObject_TypeCheck(object, head_type)) {
        PyErr_SetString(PyExc_TypeError, "this is no head of an appender's");
        return NULL;
    }
    if (head->room < 0 && head->fill == 0)
        return head; /* closed: nothing fits */
    if (head->room < 0 || head->fill < 0 || head->fill > LOG_FRAME_BYTES || head->room > COUNT_AT - RECORD_BYTES
        || head->room % RECORD_BYTES || head->base < 0 || head->base % LOG_FRAME_BYTES
        || head->base > appender->ram.len - LOG_FRAME_BYTES || head->frame <= 0 || head->frame > (Py_ssize_t)FRAME_MASK
        || head->frame >= appender->live.len / 2 || head->frame >= appender->weight.len / 4) {
        PyErr_SetString(PyExc_IndexError, "this is no open frame of this memory");
        return NULL;
    }
    return head;
}

static uint64_t place_in(const Head *head, Py_ssize_t fill)
{
    return (uint64_t)fill << OFFSET_SHIFT | (uint64_t)head->frame;
}

/* `count` zpages, for which there is room: their bytes, their record, how many records there are; the
 * books. */
static void write_zpages(Appender *appender, Head *head, const char *data, Py_ssize_t size, Py_ssize_t count,
                         uint64_t record)
{
    char *frame = (char *)appender->ram.buf + head->base;

    memcpy(frame + head->fill, data, (size_t)size);
    publish_word(frame + head->room, record);
    publish_word(frame + COUNT_AT, (uint64_t)(COUNT_AT - head->room) / RECORD_BYTES);
    head->fill += size;
    head->room -= RECORD_BYTES;
    ((uint16_t *)appender->live.buf)[head->frame] += (uint16_t)count;
    ((uint32_t *)appender->weight.buf)[head->frame] += (uint32_t)(size + RECORD_BYTES * count);
}

/* The tag of a page; sets an error if it is none. */
static uint64_t tag_at(PyObject *tags, Py_ssize_t index)
{
    PyObject *tag = PyList_GetItem(tags, index);
    return tag ? PyLong_AsUnsignedLongLong(tag) : 0;
}

/* append(head, data, tags, entries, owner) */
static PyObject *append(Appender *appender, PyObject *const *args, Py_ssize_t nargs)
{
    Head *head;
    char *data;
    Py_ssize_t data_bytes, start = 0, size = 0, held = 0, index;

    if (!takes("append", 5, nargs) || !(head = head_of(appender, args[0]))
        || PyBytes_AsStringAndSize(args[1], &data, &data_bytes) < 0)
        return NULL;
    PyObject *tags = args[2], *entries = args[3];
    uint64_t owner = PyLong_AsUnsignedLongLong(args[4]);
    Py_ssize_t count = PyList_Size(tags), begin = PyList_Size(entries);
    if (PyErr_Occurred())
        return NULL;
    for (index = 0; index < begin; index++)
        start += zpage_bytes(tag_at(tags, index));
    for (; index < count; index++) {
        uint64_t tag = tag_at(tags, index);
        Py_ssize_t length = zpage_bytes(tag);
        if (length && head->fill + size + length > head->room)
            break;
        PyObject *entry = PyLong_FromUnsignedLongLong(length ? tag | place_in(head, head->fill + size) : tag);
        if (!entry || PyErr_Occurred() || PyList_Append(entries, entry) < 0) {
            Py_XDECREF(entry);
            goto failed;
        }
        Py_DECREF(entry);
        size += length;
        held += length > 0;
    }
    if (PyErr_Occurred())
        goto failed;
    if (start + size > data_bytes || index - begin > 1 << (64 - SPAN_SHIFT)) {
        PyErr_SetString(PyExc_ValueError, "the tags are of other zpages, or of too many");
        goto failed;
    }
    if (held)
        write_zpages(appender, head, data + start, size, held,
                     (uint64_t)(index - begin - 1) << SPAN_SHIFT | (owner + (uint64_t)begin));
    return PyLong_FromSsize_t(index);
failed: /* they are nowhere */
    {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        PyList_SetSlice(entries, begin, PyList_Size(entries), NULL);
        PyErr_Restore(type, value, traceback);
    }
    return NULL;
}

/* append_one(head, body, tag, owner) */
static PyObject *append_one(Appender *appender, PyObject *const *args, Py_ssize_t nargs)
{
    Head *head;
    char *body;
    Py_ssize_t length;

    if (!takes("append_one", 4, nargs) || !(head = head_of(appender, args[0]))
        || PyBytes_AsStringAndSize(args[1], &body, &length) < 0)
        return NULL;
    uint64_t tag = PyLong_AsUnsignedLongLong(args[2]), owner = PyLong_AsUnsignedLongLong(args[3]);
    if (PyErr_Occurred())
        return NULL;
    if (head->fill + length > head->room)
        return PyLong_FromLong(0);
    PyObject *entry = PyLong_FromUnsignedLongLong(tag | place_in(head, head->fill));
    if (entry)
        write_zpages(appender, head, body, length, 1, owner);
    return entry;
}

/* held(words, first, count) */
PyObject *held(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer words;
    PyObject *entries = NULL;

    if (!takes("held", 3, nargs))
        return NULL;
    Py_ssize_t first = PyLong_AsSsize_t(args[1]), count = PyLong_AsSsize_t(args[2]), n = 0;
    if (PyErr_Occurred() || PyObject_GetBuffer(args[0], &words, PyBUF_SIMPLE) < 0)
        return NULL;
    const uint64_t *at = entries_at(&words, first, count);
    while (at && n < count && !at[n])
        n++;
    if (at && n == count) {
        Py_INCREF(Py_None);
        entries = Py_None;
    } else if (at) {
        entries = PyList_New(count);
        for (n = 0; entries && n < count; n++) {
            PyObject *entry = PyLong_FromUnsignedLongLong(at[n]);
            if (!entry || PyList_SetItem(entries, n, entry) < 0)
                Py_CLEAR(entries);
        }
    }
    PyBuffer_Release(&words);
    return entries;
}

/* publish(words, first, values) */
PyObject *publish(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t values[MAX_RUN_PAGES];
    Py_buffer words;

    if (!takes("publish", 3, nargs))
        return NULL;
    Py_ssize_t first = PyLong_AsSsize_t(args[1]), count = PyList_Size(args[2]);
    if (PyErr_Occurred())
        return NULL;
    for (Py_ssize_t n = 0; n < count && n < MAX_RUN_PAGES; n++)
        values[n] = PyLong_AsUnsignedLongLong(PyList_GetItem(args[2], n));
    if (PyErr_Occurred() || PyObject_GetBuffer(args[0], &words, PyBUF_WRITABLE) < 0)
        return NULL;
    if (!is_aligned(&words, 8)) {
        PyBuffer_Release(&words);
        return NULL;
    }
    if (count > MAX_RUN_PAGES || first < 0 || first > words.len / 8 - count) {
        PyErr_Format(PyExc_IndexError, "there is no run of %zd words from %zd on", count, first);
        PyBuffer_Release(&words);
        return NULL;
    }
    for (Py_ssize_t n = 0; n < count; n++)
        publish_word((uint64_t *)words.buf + first + n, values[n]);
    PyBuffer_Release(&words);
    Py_INCREF(Py_None);
    return Py_None;
}

static PyMethodDef appender_methods[] = {
    {"new_head", (PyCFunction)(void (*)(void))new_head, METH_NOARGS, "See `Appender.new_head`."},
    {"append", (PyCFunction)(void (*)(void))append, METH_FASTCALL, "See `Appender.append`."},
    {"append_one", (PyCFunction)(void (*)(void))append_one, METH_FASTCALL, "See `Appender.append_one`."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot appender_slots[] = {
    {Py_tp_new, appender_new}, {Py_tp_dealloc, appender_dealloc}, {Py_tp_methods, appender_methods}, {0, NULL},
};
PyType_Spec appender_spec = {
    "zcache.page_loop._compiled.Appender", sizeof(Appender), 0, Py_TPFLAGS_DEFAULT, appender_slots};
