/* A part of a region's memory, given out in pieces of whole pages (arena.c). */

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PAGE_BYTES 4096

/* A part of the arena, from its start on: somebody's, or free. All lie in a list, in order. */
struct part {
    struct part *next;
    size_t start, bytes, asked; /* `asked` is 0: free */
};

/* NumPy's PyDataMemAllocator (ndarraytypes.h). */
struct allocator {
    void *ctx;
    void *(*malloc)(void *ctx, size_t size);
    void *(*calloc)(void *ctx, size_t count, size_t size);
    void *(*realloc)(void *ctx, void *at, size_t size);
    void (*free)(void *ctx, void *at, size_t size);
};

struct arena {
    struct allocator other; /* for what does not lie here */
    char *base;
    size_t bytes, threshold;
    size_t offset; /* of it, in the region */
    int socket;    /* where the pager forgets pages */
    uint64_t era, asked; /* of the pager; the number of the last request to it */
    pid_t owner;         /* whose it is: a child, by fork(2), has neither the memory nor the pager */
    pthread_mutex_t lock;
    struct part *first;
    size_t used, most; /* bytes of whole pages */
    int has_complained; /* of one that was large enough, and did not fit */
};

/* As the C library does it. */
extern const struct allocator libc_allocator;

/* All of `base` to `base + bytes` is free, and zeros. 0; or -1, if there is no memory. */
int arena_begin(struct arena *arena, char *base, size_t bytes, size_t threshold, size_t offset, int socket);
void arena_end(struct arena *arena);

/* As their namesakes; what is below the threshold, or does not fit, is the other allocator's. */
void *arena_malloc(struct arena *arena, size_t size);
void *arena_calloc(struct arena *arena, size_t count, size_t size);
void *arena_realloc(struct arena *arena, void *at, size_t size);
void arena_free(struct arena *arena, void *at, size_t size);
