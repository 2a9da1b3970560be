/* Room in a part of a region, with a lock of its own: any thread takes and gives, with or without the GIL.
 *
 * Its books are not in the region: to look for room touches none of its pages. All that is free reads as
 * zeros: what somebody leaves behind is forgotten by the pager before its room is free, so a calloc has
 * nothing to do. */

#include "arena.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* -- the C library's ------------------------------------------------------------------------------------- */

static void *libc_malloc(void *ctx, size_t size)
{
    (void)ctx;
    return malloc(size ? size : 1);
}

static void *libc_calloc(void *ctx, size_t count, size_t size)
{
    (void)ctx;
    return calloc(count ? count : 1, size ? size : 1);
}

static void *libc_realloc(void *ctx, void *at, size_t size)
{
    (void)ctx;
    return realloc(at, size ? size : 1);
}

static void libc_free(void *ctx, void *at, size_t size)
{
    (void)ctx;
    (void)size;
    free(at);
}

const struct allocator libc_allocator = {NULL, libc_malloc, libc_calloc, libc_realloc, libc_free};

/* -- its beginning and end ------------------------------------------------------------------------------- */

int arena_begin(struct arena *arena, char *base, size_t bytes, size_t threshold, size_t offset, int socket)
{
    struct part *whole = malloc(sizeof *whole);

    if (!whole)
        return -1;
    *whole = (struct part){NULL, 0, bytes, 0};
    *arena = (struct arena){.other = libc_allocator, .base = base, .bytes = bytes, .threshold = threshold, .offset = offset,
                            .socket = socket, .owner = getpid(), .first = whole};
    pthread_mutex_init(&arena->lock, NULL);
    return 0;
}

void arena_end(struct arena *arena)
{
    while (arena->first) {
        struct part *part = arena->first;
        arena->first = part->next;
        free(part);
    }
    pthread_mutex_destroy(&arena->lock);
}

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

static void *take(struct arena *arena, size_t asked)
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

static int is_inside(const struct arena *arena, const void *at)
{
    return (const char *)at >= arena->base && (const char *)at < arena->base + arena->bytes;
}

/* The part of an array, and the one before it. */
static struct part *find(struct arena *arena, const void *at, struct part **before)
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
static int say(struct arena *arena, const uint64_t *words, size_t bytes)
{
    ssize_t done;
    do
        done = send(arena->socket, words, bytes, MSG_NOSIGNAL);
    while (done < 0 && errno == EINTR);
    return done == (ssize_t)bytes ? 0 : -1;
}

static int hear(struct arena *arena, uint64_t *words, size_t bytes)
{
    ssize_t done;
    do
        done = recv(arena->socket, words, bytes, 0);
    while (done < 0 && errno == EINTR);
    return done == (ssize_t)bytes ? 0 : -1;
}

/* Has the pager forget what is in pages, and waits until it has: 0; or -1, if there is none. A pager
 * that takes the place of another says its era, and is asked again (zcache/pager/messages.py). */
static int forget(struct arena *arena, size_t start, size_t bytes)
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

static void give(struct arena *arena, void *at)
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

/* -- what is called from any thread --------------------------------------------------------------------------- */

static int is_ours(const struct arena *arena)
{
    return getpid() == arena->owner;
}

static void *take_locked(struct arena *arena, size_t size)
{
    void *at = NULL;

    if (size >= arena->threshold && is_ours(arena)) {
        pthread_mutex_lock(&arena->lock);
        at = take(arena, size);
        if (!at) {
            if (!arena->has_complained)
                dprintf(2, "zcache: an array of %zu bytes does not fit in what is left of the region: it lies in ordinary "
                           "memory, without a limit (zcache run --size, or a larger Region)\n", size);
            arena->has_complained = 1;
        }
        pthread_mutex_unlock(&arena->lock);
    }
    return at;
}

void *arena_malloc(struct arena *arena, size_t size)
{
    void *at = take_locked(arena, size);
    return at ? at : arena->other.malloc(arena->other.ctx, size);
}

void *arena_calloc(struct arena *arena, size_t count, size_t size)
{
    void *at = size && count <= SIZE_MAX / size ? take_locked(arena, count * size) : NULL;
    return at ? at : arena->other.calloc(arena->other.ctx, count, size);
}

void arena_free(struct arena *arena, void *at, size_t size)
{
    if (!is_inside(arena, at)) {
        arena->other.free(arena->other.ctx, at, size);
        return;
    }
    if (!is_ours(arena))
        return;
    pthread_mutex_lock(&arena->lock);
    give(arena, at);
    pthread_mutex_unlock(&arena->lock);
}

/* What grew elsewhere comes here once it is large enough: how long it was before is not known, so it grows
 * there first. */
static void *realloc_outside(struct arena *arena, void *at, size_t size)
{
    void *grown = arena->other.realloc(arena->other.ctx, at, size), *to = grown ? take_locked(arena, size) : NULL;

    if (!to)
        return grown;
    memcpy(to, grown, size);
    arena->other.free(arena->other.ctx, grown, size);
    return to;
}

void *arena_realloc(struct arena *arena, void *at, size_t size)
{
    struct part *before, *part;
    size_t held;
    void *to;

    if (!at)
        return arena_malloc(arena, size);
    if (!is_inside(arena, at))
        return realloc_outside(arena, at, size);
    if (!is_ours(arena))
        return NULL;
    pthread_mutex_lock(&arena->lock);
    part = find(arena, at, &before);
    held = part ? part->asked : 0;
    if (part && size >= arena->threshold && whole_pages(size) <= part->bytes && whole_pages(size) >= size) {
        part->asked = size; /* what it does not need any more stays with it */
        pthread_mutex_unlock(&arena->lock);
        return at;
    }
    pthread_mutex_unlock(&arena->lock);
    to = arena_malloc(arena, size);
    if (to) {
        memcpy(to, at, held < size ? held : size);
        arena_free(arena, at, held);
    }
    return to;
}
