/* NumPy's allocation hook (NEP 49) over a part of a region: arrays of at least so many bytes come to lie
 * there, all others, and what does not fit, where they would have been.
 *
 * NumPy calls the four functions with or without the GIL, from any thread, and for an array as long as
 * it lives, whatever handler is set by then: so they take a lock of their own, and each array keeps the
 * arena. Its books are not in the region: to look for room touches none of its pages.
 *
 * All that is free in the arena reads as zeros: what an array leaves behind is forgotten by the pager
 * before its room is free, so a calloc has nothing to do. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <structmember.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAGE_BYTES 4096

/* NumPy's (ndarraytypes.h), version 1 of it. */
typedef struct {
    void *ctx;
    void *(*malloc)(void *ctx, size_t size);
    void *(*calloc)(void *ctx, size_t count, size_t size);
    void *(*realloc)(void *ctx, void *at, size_t size);
    void (*free)(void *ctx, void *at, size_t size);
} PyDataMemAllocator;
typedef struct {
    char name[127];
    uint8_t version;
    PyDataMemAllocator allocator;
} PyDataMem_Handler;
#define SET_HANDLER 304 /* in its table of functions (__multiarray_api.h) */

/* A part of the arena, from its start on: an array's, or free. All lie in a list, in order. */
struct part {
    struct part *next;
    size_t start, bytes, asked; /* `asked` is 0: free */
};

typedef struct {
    PyObject_HEAD
    Py_buffer memory;
    char *base; /* of the arena, in it */
    size_t bytes, threshold, offset;
    int socket;
    uint64_t era, asked; /* of the pager; the number of the last request to it */
    pid_t owner; /* whose it is: a child, by fork(2), has neither the memory nor the pager */
    pthread_mutex_t lock;
    struct part *first;
    size_t used, most; /* bytes of whole pages */
    PyObject *weak;
} Arena;

/* -- parts: with the lock -------------------------------------------------------------------------------- */

/* Cuts a part in two at so many bytes. 0, or -1 if there is no memory for that. */
static int cut(struct part *part, size_t bytes)
{
    struct part *rest = malloc(sizeof *rest);
    if (!rest)
        return -1;
    *rest = (struct part){part->next, part->start + bytes, part->bytes - bytes, 0};
    part->next = rest;
    part->bytes = bytes;
    return 0;
}

static size_t whole_pages(size_t bytes)
{
    return (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

static void *take(Arena *arena, size_t asked)
{
    size_t bytes = whole_pages(asked);

    if (bytes < asked) /* it overflowed */
        return NULL;
    for (struct part *part = arena->first; part; part = part->next) {
        if (part->asked || part->bytes < bytes)
            continue;
        if (part->bytes > bytes && cut(part, bytes) < 0)
            return NULL;
        part->asked = asked;
        arena->used += bytes;
        arena->most = arena->used > arena->most ? arena->used : arena->most;
        return arena->base + part->start;
    }
    return NULL;
}

static int is_inside(const Arena *arena, const void *at)
{
    return (const char *)at >= arena->base && (const char *)at < arena->base + arena->bytes;
}

/* The part of an array, and the one before it. */
static struct part *find(Arena *arena, const void *at, struct part **before)
{
    struct part *part = arena->first;
    *before = NULL;
    while (part && arena->base + part->start != at) {
        *before = part;
        part = part->next;
    }
    return part;
}

/* Sends or receives a whole message at the arena's socket: 0; or -1, if nobody is there. */
static int say(Arena *arena, const uint64_t *words, size_t bytes)
{
    ssize_t done;
    do
        done = send(arena->socket, words, bytes, MSG_NOSIGNAL);
    while (done < 0 && errno == EINTR);
    return done == (ssize_t)bytes ? 0 : -1;
}

static int hear(Arena *arena, uint64_t *words, size_t bytes)
{
    ssize_t done;
    do
        done = recv(arena->socket, words, bytes, 0);
    while (done < 0 && errno == EINTR);
    return done == (ssize_t)bytes ? 0 : -1;
}

/* Has the pager forget what is in pages, and waits until it has: 0; or -1, if there is none. A pager
 * that takes the place of another says its era, and is asked again (zcache/pager/messages.py). */
static int forget(Arena *arena, size_t start, size_t bytes)
{
    uint64_t first = (arena->offset + start) / PAGE_BYTES, stop = (arena->offset + start + bytes) / PAGE_BYTES;
    uint64_t request[4] = {arena->era, ++arena->asked, first, stop}, answer[2];

    if (say(arena, request, sizeof request) < 0)
        return -1;
    for (;;) {
        if (hear(arena, answer, sizeof answer) < 0)
            return -1;
        if (answer[1] == arena->asked)
            return 0;
        if (answer[1] || answer[0] == arena->era)
            continue; /* of a request that was given up; or said twice */
        request[0] = arena->era = answer[0];
        if (say(arena, request, sizeof request) < 0)
            return -1;
    }
}

static void join_with_next(struct part *part)
{
    struct part *next = part->next;
    if (next && !next->asked) {
        part->bytes += next->bytes;
        part->next = next->next;
        free(next);
    }
}

static void give(Arena *arena, void *at)
{
    struct part *before, *part = find(arena, at, &before);

    if (!part || !part->asked || forget(arena, part->start, part->bytes) < 0)
        return; /* without a pager the process is about to end */
    arena->used -= part->bytes;
    part->asked = 0;
    join_with_next(part);
    if (before && !before->asked)
        join_with_next(before);
}

/* -- what NumPy calls ---------------------------------------------------------------------------------------- */

static int is_ours(const Arena *arena)
{
    return getpid() == arena->owner;
}

static void *hook_malloc(void *ctx, size_t size)
{
    Arena *arena = ctx;
    void *at = NULL;

    if (size >= arena->threshold && is_ours(arena)) {
        pthread_mutex_lock(&arena->lock);
        at = take(arena, size);
        pthread_mutex_unlock(&arena->lock);
    }
    return at ? at : malloc(size ? size : 1);
}

static void *hook_calloc(void *ctx, size_t count, size_t size)
{
    Arena *arena = ctx;
    void *at = NULL;

    if (size && count <= SIZE_MAX / size && count * size >= arena->threshold && is_ours(arena)) {
        pthread_mutex_lock(&arena->lock);
        at = take(arena, count * size);
        pthread_mutex_unlock(&arena->lock);
    }
    return at ? at : calloc(count ? count : 1, size ? size : 1);
}

static void hook_free(void *ctx, void *at, size_t size)
{
    Arena *arena = ctx;
    (void)size; /* may be wrong, after a view or a resize */

    if (!is_inside(arena, at)) {
        free(at);
        return;
    }
    if (!is_ours(arena))
        return;
    pthread_mutex_lock(&arena->lock);
    give(arena, at);
    pthread_mutex_unlock(&arena->lock);
}

static void *hook_realloc(void *ctx, void *at, size_t size)
{
    Arena *arena = ctx;
    struct part *before, *part;
    size_t held;
    void *to;

    if (!at)
        return hook_malloc(ctx, size);
    if (!is_inside(arena, at)) {
        if (size < arena->threshold)
            return realloc(at, size ? size : 1);
        held = malloc_usable_size(at);
    } else if (!is_ours(arena)) {
        return NULL;
    } else {
        pthread_mutex_lock(&arena->lock);
        part = find(arena, at, &before);
        if (part && size >= arena->threshold && whole_pages(size) <= part->bytes && whole_pages(size) >= size) {
            part->asked = size; /* what it does not need any more stays with it */
            pthread_mutex_unlock(&arena->lock);
            return at;
        }
        held = part ? part->asked : 0;
        pthread_mutex_unlock(&arena->lock);
    }
    to = hook_malloc(ctx, size);
    if (to) {
        memcpy(to, at, held < size ? held : size);
        hook_free(ctx, at, held);
    }
    return to;
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
    pthread_mutex_init(&arena->lock, NULL);
    if (PyObject_GetBuffer(memory, &arena->memory, PyBUF_WRITABLE) < 0)
        goto failed;
    if (offset < 0 || offset % PAGE_BYTES || bytes <= 0 || bytes % PAGE_BYTES || threshold < PAGE_BYTES
        || offset > arena->memory.len - bytes) {
        PyErr_SetString(PyExc_ValueError, "these are no whole pages of that memory, or the threshold is below a page");
        goto failed;
    }
    arena->base = (char *)arena->memory.buf + offset;
    arena->offset = (size_t)offset;
    arena->bytes = (size_t)bytes;
    arena->threshold = (size_t)threshold;
    arena->socket = socket;
    arena->owner = getpid();
    arena->first = malloc(sizeof *arena->first);
    if (!arena->first) {
        PyErr_NoMemory();
        goto failed;
    }
    *arena->first = (struct part){NULL, 0, arena->bytes, 0};
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
    while (arena->first) {
        struct part *part = arena->first;
        arena->first = part->next;
        free(part);
    }
    PyBuffer_Release(&arena->memory);
    pthread_mutex_destroy(&arena->lock);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(arena);
    Py_DECREF(type);
}

static void handler_end(PyObject *capsule)
{
    PyDataMem_Handler *handler = PyCapsule_GetPointer(capsule, "mem_handler");
    if (handler) {
        Py_DECREF((PyObject *)handler->allocator.ctx);
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
    handler->allocator = (PyDataMemAllocator){arena, hook_malloc, hook_calloc, hook_realloc, hook_free};
    PyObject *capsule = PyCapsule_New(handler, "mem_handler", handler_end);
    if (!capsule) {
        PyMem_Free(handler);
        return NULL;
    }
    Py_INCREF((PyObject *)arena);
    return capsule;
}

static PyObject *arena_figures(Arena *arena, PyObject *nothing)
{
    (void)nothing;
    pthread_mutex_lock(&arena->lock);
    Py_ssize_t used = (Py_ssize_t)arena->used, most = (Py_ssize_t)arena->most;
    pthread_mutex_unlock(&arena->lock);
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

static PyMethodDef methods[] = {
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
