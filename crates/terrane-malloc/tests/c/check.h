/* What every test program here uses: a check that says where it failed and ends the program. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not so: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno);                  \
            _Exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

/* Set when the library is preloaded: what glibc alone does not have is then required. */
static inline int on_terrane(void) { return getenv("ON_TERRANE") != NULL; }

/* Hides a value from the compiler, so that it neither warns about nor removes a call it can see through. */
static inline size_t opaque(size_t value)
{
    volatile size_t hidden = value;
    return hidden;
}

static inline int is_aligned(const void *block, size_t align) { return ((uintptr_t)block & (align - 1)) == 0; }

/* A pattern that depends on `seed` and the position, and its check. */
static inline void fill(void *block, size_t bytes, unsigned seed)
{
    unsigned char *at = (unsigned char *)block;
    for (size_t i = 0; i < bytes; i++) at[i] = (unsigned char)(seed * 31u + i * 7u + (i >> 8));
}

static inline int holds(const void *block, size_t bytes, unsigned seed)
{
    const unsigned char *at = (const unsigned char *)block;
    for (size_t i = 0; i < bytes; i++)
        if (at[i] != (unsigned char)(seed * 31u + i * 7u + (i >> 8))) return 0;
    return 1;
}

static inline int is_zero(const void *block, size_t bytes)
{
    const unsigned char *at = (const unsigned char *)block;
    for (size_t i = 0; i < bytes; i++)
        if (at[i] != 0) return 0;
    return 1;
}

/* xorshift64*; deterministic per seed. */
static inline uint64_t next_number(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545F4914F6CDD1Dull;
}

#endif
