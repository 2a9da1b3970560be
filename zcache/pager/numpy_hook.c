/* NumPy's allocation hook (NEP 49) over a part of a region: arrays of at least so many bytes come to lie
 * there, all others, and what does not fit, where they would have been.
 *
 * NumPy calls the four functions with or without the GIL, from any thread, and for an array as long as
 * it lives, whatever handler is set by then: so each array keeps the arena. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stddef.h>
#include <string.h>
#include <structmember.h>

#include "arena.h"

/* NumPy's (ndarraytypes.h), version 1 of it. */
typedef struct {
    char name[127];
    uint8_t version;
    struct allocator allocator;
} PyDataMem_Handler;
enum { SET_HANDLER = 304, DEFAULT_HANDLER = 306 }; /* in its table (__multiarray_api.h) */

typedef struct {
    PyObject_HEAD
    Py_buffer memory;
    struct arena arena; /* of a part of it */
    PyObject *weak;
} Arena;

/* -- what NumPy calls ---------------------------------------------------------------------------------------- */

static void *hook_malloc(void *ctx, size_t size)
{
    return arena_malloc(ctx, size);
}

static void *hook_calloc(void *ctx, size_t count, size_t size)
{
    return arena_calloc(ctx, count, size);
}

static void *hook_realloc(void *ctx, void *at, size_t size)
{
    return arena_realloc(ctx, at, size);
}

static void hook_free(void *ctx, void *at, size_t size)
{
    arena_free(ctx, at, size); /* it may be wrong, after a view or a resize */
}

/* -- the type -------------------------------------------------------------------------------------------------- */

static PyObject *arena_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *memory;
    Py_ssize_t offset, bytes, threshold;
    int socket;

    (void)kwargs;
    if (!PyArg_ParseTuple(args, "Onnni", &memory, &offset, &bytes, &threshold, &socket))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Arena *arena = (Arena *)alloc(type, 0);
    if (!arena)
        return NULL;
    if (PyObject_GetBuffer(memory, &arena->memory, PyBUF_WRITABLE) < 0)
        goto failed;
    if (offset < 0 || offset % PAGE_BYTES || bytes <= 0 || bytes % PAGE_BYTES || threshold < PAGE_BYTES
        || offset > arena->memory.len - bytes) {
        PyErr_SetString(PyExc_ValueError, "these are no whole pages of that memory, or the threshold is below a page");
        goto failed;
    }
    if (arena_begin(&arena->arena, (char *)arena->memory.buf + offset, (size_t)bytes, (size_t)threshold,
                    (size_t)offset, socket) < 0) {
        PyErr_NoMemory();
        goto failed;
    }
    return (PyObject *)arena;
failed:
    Py_DECREF((PyObject *)arena);
    return NULL;
}

static void arena_dealloc(Arena *arena)
{
    PyTypeObject *type = Py_TYPE((PyObject *)arena);
    if (arena->weak)
        PyObject_ClearWeakRefs((PyObject *)arena);
    if (arena->arena.first)
        arena_end(&arena->arena);
    PyBuffer_Release(&arena->memory);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(arena);
    Py_DECREF(type);
}

static void handler_end(PyObject *capsule)
{
    PyDataMem_Handler *handler = PyCapsule_GetPointer(capsule, "mem_handler");
    if (handler) {
        Py_DECREF((PyObject *)PyCapsule_GetContext(capsule));
        PyMem_Free(handler);
    }
}

static PyObject *arena_handler(Arena *arena, PyObject *nothing)
{
    (void)nothing;
    PyDataMem_Handler *handler = PyMem_Calloc(1, sizeof *handler);
    if (!handler)
        return PyErr_NoMemory();
    strcpy(handler->name, "zcache region");
    handler->version = 1;
    handler->allocator = (struct allocator){&arena->arena, hook_malloc, hook_calloc, hook_realloc, hook_free};
    PyObject *capsule = PyCapsule_New(handler, "mem_handler", handler_end);
    if (!capsule) {
        PyMem_Free(handler);
        return NULL;
    }
    Py_INCREF((PyObject *)arena);
    PyCapsule_SetContext(capsule, arena);
    return capsule;
}

static PyObject *arena_figures(Arena *arena, PyObject *nothing)
{
    (void)nothing;
    pthread_mutex_lock(&arena->arena.lock);
    Py_ssize_t used = (Py_ssize_t)arena->arena.used, most = (Py_ssize_t)arena->arena.most;
    pthread_mutex_unlock(&arena->arena.lock);
    return Py_BuildValue("(nn)", used, most);
}

static PyMethodDef arena_methods[] = {
    {"handler", (PyCFunction)(void (*)(void))arena_handler, METH_NOARGS, "handler() -> a capsule for `set_handler`"},
    {"figures", (PyCFunction)(void (*)(void))arena_figures, METH_NOARGS,
     "figures() -> bytes that arrays take now, and the most that they ever took"},
    {NULL, NULL, 0, NULL},
};
PyDoc_STRVAR(arena_doc, "Arena(memory, offset, bytes, threshold, socket): part of a region, for arrays.");
static PyMemberDef arena_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Arena, weak), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot arena_slots[] = {
    {Py_tp_doc, (void *)arena_doc}, {Py_tp_new, arena_new}, {Py_tp_dealloc, arena_dealloc},
    {Py_tp_methods, arena_methods}, {Py_tp_members, arena_members}, {0, NULL},
};
static PyType_Spec arena_spec = {"zcache.pager._numpy_hook.Arena", sizeof(Arena), 0, Py_TPFLAGS_DEFAULT, arena_slots};

/* set_handler(table, handler) -> the one that was set; `table` is NumPy's `_ARRAY_API` */
static PyObject *set_handler(PyObject *module, PyObject *args)
{
    PyObject *table, *handler;

    (void)module;
    if (!PyArg_ParseTuple(args, "OO", &table, &handler))
        return NULL;
    void **functions = PyCapsule_GetPointer(table, NULL);
    if (!functions || !PyCapsule_IsValid(handler, "mem_handler")) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "this is no handler");
        return NULL;
    }
    return ((PyObject * (*)(PyObject *)) functions[SET_HANDLER])(handler);
}

/* NumPy's own handler, which is for all that nobody has set another for; NULL, with an exception. */
static PyDataMem_Handler *default_of(PyObject *table)
{
    void **functions = PyCapsule_GetPointer(table, NULL);
    PyDataMem_Handler *handler = NULL;

    if (functions)
        handler = PyCapsule_GetPointer(*(PyObject **)functions[DEFAULT_HANDLER], "mem_handler");
    if (handler && (handler->version != 1 || strcmp(handler->name, "default_allocator"))) {
        PyErr_SetString(PyExc_TypeError, "NumPy's own handler is another one already");
        return NULL;
    }
    return handler;
}

/* default_handler(table) -> where it is, and how long */
static PyObject *default_handler(PyObject *module, PyObject *table)
{
    PyDataMem_Handler *handler = default_of(table);

    (void)module;
    return handler ? Py_BuildValue("(nn)", (Py_ssize_t)handler, (Py_ssize_t)sizeof *handler) : NULL;
}

/* replace_default(table, arena): for all threads, and for good. What there is already stays where it is. */
static PyObject *replace_default(PyObject *module, PyObject *args)
{
    PyObject *table, *thing;
    PyDataMem_Handler *handler;

    (void)module;
    if (!PyArg_ParseTuple(args, "OO", &table, &thing) || !(handler = default_of(table)))
        return NULL;
    Arena *arena = (Arena *)thing;
    Py_INCREF(thing); /* the last array may be freed after all else */
    arena->arena.other = handler->allocator;
    handler->allocator.ctx = &arena->arena; /* of which NumPy's own functions take no notice */
    handler->allocator.free = hook_free;
    handler->allocator.realloc = hook_realloc;
    handler->allocator.calloc = hook_calloc;
    handler->allocator.malloc = hook_malloc;
    strcpy(handler->name, "zcache region");
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"default_handler", default_handler, METH_O, "default_handler(table) -> where NumPy's own is, and how long"},
    {"replace_default", replace_default, METH_VARARGS, "replace_default(table, arena): NumPy's own, from now on"},
    {"set_handler", set_handler, METH_VARARGS, "set_handler(table, handler) -> the one that was set"},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_numpy_hook", "See numpy_hook.py.", -1, methods,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__numpy_hook(void)
{
    PyObject *module = PyModule_Create(&definition), *arena = PyType_FromSpec(&arena_spec);
    if (!module || !arena || PyModule_AddObjectRef(module, "Arena", arena) < 0)
        Py_CLEAR(module);
    Py_XDECREF(arena);
    return module;
}
