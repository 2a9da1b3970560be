/* The page loop in C: what reference.py does, which says what is what, without an interpreter between
 * two pages. The package's __init__.py has the contract; compiled.py is what calls it.
 *
 *   codec.c     a run of pages to zpages, and back
 *   reader.c    zpages out of frames
 *   appender.c  zpages into the log's open frame
 *   module.c    lz4, and the module
 *
 * lz4 is that of the Python package `lz4`, which the reference has, too: one library in memory, and
 * the same zpages from both. Only CPython's stable ABI is used, that of 3.11.
 *
 * Memory: nothing asks for any but Python objects that are returned, and for a run's zpages on their
 * way into one (at most 256 KiB, gone with the call). No call keeps a reference to what it was given,
 * but for the buffers of a Reader and an Appender; nor takes one, so nobody may change a list while it
 * is with a call. */

#ifndef ZCACHE_PAGE_LOOP_H
#define ZCACHE_PAGE_LOOP_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "an image is little-endian"
#endif

/* Those of zcache/pages/ (entry.py, codec.py, page_table.py) and zcache/allocators/log_frame.py. A test
 * compares them (`constants`). */
#define PAGE_BYTES 4096
#define MAX_RUN_PAGES 64
#define RAW 0
#define WORD 1
#define LZ4 2
#define FRAME_MASK ((UINT64_C(1) << 31) - 1)
#define OFFSET_SHIFT 31
#define OFFSET_MASK 0xFFFF
#define LENGTH_SHIFT 47
#define LENGTH_MASK 0xFFF
#define CODEC_SHIFT 59
#define CODEC_MASK 7
#define ZPAGE (UINT64_C(1) << 62)
#define SAME_FILLED (UINT64_C(2) << 62)
#define LOST (UINT64_C(3) << 62)
#define LOG_FRAME_BYTES 65536
#define RECORD_BYTES 8
#define SPAN_SHIFT 56

#pragma GCC visibility push(hidden) /* none of these is for others to see, or to replace */

/* Of lz4, where a stream is the memory that compressing takes. */
enum { LZ4_STREAM_BYTES = 16448 };
extern void *(*lz4_init_stream)(void *stream, size_t bytes);
extern int (*lz4_compress)(void *stream, const char *from, char *to, int from_bytes, int to_bytes, int acceleration);
extern int (*lz4_decompress)(const char *from, char *to, int from_bytes, int to_bytes);

extern PyType_Spec encoder_spec, reader_spec, head_spec, appender_spec;
extern PyTypeObject *head_type;
PyObject *decompress(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *decode_lz4(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *held(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *publish(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *decode(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#pragma GCC visibility pop

/* The part of a zpage's entry that is known before it has a place. */
static inline uint64_t zpage_tag(uint64_t codec, uint64_t length)
{
    return ZPAGE | codec << CODEC_SHIFT | (length - 1) << LENGTH_SHIFT;
}

/* How long the zpage of an entry, or of a tag, is; 0: it has none. */
static inline Py_ssize_t zpage_bytes(uint64_t entry)
{
    return entry && entry < SAME_FILLED ? (Py_ssize_t)(entry >> LENGTH_SHIFT & LENGTH_MASK) + 1 : 0;
}

/* A word of what outlives a server: whole, and after all that was written before it
 * (zcache/image/whole_words.py). */
static inline void publish_word(void *at, uint64_t word)
{
    __atomic_store_n((uint64_t *)at, word, __ATOMIC_RELEASE);
}

/* Whether a buffer begins where words of that size do, as the store's do; sets ValueError. */
static inline int is_aligned(const Py_buffer *buffer, size_t word_bytes)
{
    if ((uintptr_t)buffer->buf % word_bytes == 0)
        return 1;
    PyErr_Format(PyExc_ValueError, "not aligned to %zd bytes", (Py_ssize_t)word_bytes);
    return 0;
}

/* The entries of so many pages. NULL, and an error, if there are not so many. */
static inline const uint64_t *entries_at(const Py_buffer *table, Py_ssize_t first, Py_ssize_t count)
{
    if (!is_aligned(table, 8))
        return NULL;
    if (first >= 0 && count >= 0 && count <= table->len / 8 && first <= table->len / 8 - count)
        return (const uint64_t *)table->buf + first;
    PyErr_Format(PyExc_IndexError, "there are no %zd pages from %zd on", count, first);
    return NULL;
}

/* Whether so many arguments were given; sets TypeError. */
static inline int takes(const char *what, Py_ssize_t wanted, Py_ssize_t given)
{
    if (wanted == given)
        return 1;
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, not %zd", what, wanted, given);
    return 0;
}

#endif
