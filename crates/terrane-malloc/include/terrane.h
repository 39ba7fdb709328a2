/* Terrane: a general-purpose memory allocator.
 *
 * Link with libterrane.so or libterrane.a, or preload the former: malloc, calloc, realloc, reallocarray, free, cfree, free_sized,
 * free_aligned_sized, memalign, aligned_alloc, posix_memalign, valloc, pvalloc, malloc_usable_size, malloc_trim, malloc_stats,
 * malloc_info, mallinfo, mallinfo2, mallopt (which does nothing) and C++'s operators new and delete are then Terrane's. Below is what
 * the standard headers do not declare.
 *
 * Environment variables, read when the library is loaded:
 *   TERRANE_PURGE_DELAY_MS  milliseconds that free memory is kept for reuse, or "never" (250)
 *   TERRANE_PURGE           "now" or "lazy": when memory goes back to the system (now)
 *   TERRANE_BACKGROUND      "on" or "off": a thread that gives memory back while the program is idle (off)
 *   TERRANE_HUGE_CACHE_MIB  MiB of freed blocks above 4 MiB that are kept for reuse (256)
 *   TERRANE_LARGE_CACHE_MIB MiB of freed blocks of 32 KiB to 4 MiB that each thread keeps (4)
 *   TERRANE_HUGE_PAGES      "on" or "off": transparent huge pages behind blocks above 4 MiB that are expected to be filled (on)
 *   TERRANE_GUARDED         "on" or "off": reserved memory is inaccessible until it is used, so that mlockall does not make
 *                           it present (off)
 *   TERRANE_NUMA            "on" or "off": memory of each NUMA node kept apart (off)
 *   TERRANE_REPORT          a path, for the first process that has the variable, or "stderr", for each: where the heap report
 *                           goes at exit (no report)
 *   TERRANE_REPORT_FORMAT   "text" or "json" (text)
 */
#ifndef TERRANE_H
#define TERRANE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A heap of its own, usable by any thread, destroyed at once with all its blocks. A block of a heap is freed by
 * terrane_heap_free on that heap, never by free. A heap has a lock: after a fork the child may use it if no other thread was using
 * it at that moment. */
typedef struct terrane_heap terrane_heap_t;

/* NULL when memory is out. */
terrane_heap_t *terrane_heap_new(void);
/* Frees every block of the heap and the heap. NULL is ignored. */
void terrane_heap_destroy(terrane_heap_t *heap);
/* Blocks are aligned to 16 bytes; NULL when memory is out; errno says nothing then. */
void *terrane_heap_malloc(terrane_heap_t *heap, size_t size);
void *terrane_heap_calloc(terrane_heap_t *heap, size_t count, size_t size);
/* A NULL block is a new block; a size of 0 is a size like any other. On NULL the block is as before. */
void *terrane_heap_realloc(terrane_heap_t *heap, void *block, size_t size);
/* NULL is ignored. */
void terrane_heap_free(terrane_heap_t *heap, void *block);
/* Gives the heap's free memory back to the system. */
void terrane_heap_purge(terrane_heap_t *heap);

/* Pools of objects of one size, for any thread, with a cache for each. At most `max` objects exist at a time. An object is zero
 * when it is new; when it comes back `reset` is called with it and its length, or it is made zero if `reset` is NULL. NULL if a
 * number is 0 or too large. */
typedef struct terrane_pool terrane_pool_t;
terrane_pool_t *terrane_pool_new(size_t object_bytes, size_t max, void (*reset)(void *object, size_t bytes));
/* How many objects are still out: those stay valid until they are released. NULL is ignored. */
size_t terrane_pool_destroy(terrane_pool_t *pool);
/* Aligned to 16 bytes; NULL if `max` are out, or memory is. */
void *terrane_pool_acquire(terrane_pool_t *pool);
/* On any thread; NULL is ignored; releasing twice ends the process. */
void terrane_pool_release(void *object);
/* Frees the idle objects that are in no thread's own cache. */
void terrane_pool_trim(terrane_pool_t *pool);

/* hits: taken from the caller's own cache; misses: not found there; created, idle, out: objects; bytes: of all that exist. */
typedef struct {
    uint64_t hits, misses, created, idle, out, bytes;
} terrane_pool_stats_t;
void terrane_pool_stats(const terrane_pool_t *pool, terrane_pool_stats_t *stats);

/* Pools of buffers of any length: at most `max_per_class` of each size class exist at a time, and those above `keep_up_to` bytes
 * are freed when they come back. NULL if `max_per_class` is 0 or too large. The rest is as for pools of objects, but contents are
 * never touched. */
typedef struct terrane_buffers terrane_buffers_t;
terrane_buffers_t *terrane_buffers_new(size_t max_per_class, size_t keep_up_to);
size_t terrane_buffers_destroy(terrane_buffers_t *pool);
void *terrane_buffers_take(terrane_buffers_t *pool, size_t bytes);
/* Bytes of a buffer, at least what was asked for. */
size_t terrane_buffers_capacity(const void *buffer);
void terrane_buffers_give(void *buffer);
void terrane_buffers_trim(terrane_buffers_t *pool);
void terrane_buffers_stats(const terrane_buffers_t *pool, terrane_pool_stats_t *stats);

/* Gives back what the process has not needed for a while. For idle loops. */
void terrane_tick(void);
/* Returns the free blocks that the calling thread holds back to their slabs. */
void terrane_collect(void);
/* Checks what the calling thread owns, and what of the shared structures holds at any moment: 0, or -1 after one line on
 * standard error that says what is broken. */
int terrane_verify(void);
/* Gives all free memory back to the system but for what waits in the lists of other threads; bytes given back. */
size_t terrane_purge(void);

/* C23, for C libraries that do not declare them yet. */
void free_sized(void *block, size_t size);
void free_aligned_sized(void *block, size_t alignment, size_t size);

#ifdef __cplusplus
}
#endif

#endif
