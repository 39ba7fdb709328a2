/* Many more threads than processors hand blocks to each other in every pattern: each block is checked by whoever frees
 * it. Afterwards almost nothing is held: memory that others freed has come back. */
#define _GNU_SOURCE
#include "check.h"
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

enum { SLOTS = 4096 };
struct block {
    size_t size;
    unsigned seed;
    unsigned char bytes[];
};
static _Atomic(struct block *) slots[SLOTS];
static unsigned steps;

static struct block *make(uint64_t *state, unsigned seed)
{
    uint64_t kind = next_number(state) % 1000;
    size_t size = next_number(state) % (kind == 0 ? 2000000 : kind < 20 ? 50000 : 500);
    struct block *block = kind % 3 == 0 ? calloc(1, sizeof *block + size) : malloc(sizeof *block + size);
    CHECK(block != NULL);
    if (kind % 3 == 0) CHECK(is_zero(block->bytes, size));
    block->size = size;
    block->seed = seed;
    fill(block->bytes, size, seed);
    return block;
}

static void take(struct block *block)
{
    if (block == NULL) return;
    CHECK(holds(block->bytes, block->size, block->seed));
    free(block);
}

static void *run(void *argument)
{
    unsigned thread = (unsigned)(uintptr_t)argument;
    uint64_t state = (uint64_t)thread * 7919 + 1;
    for (unsigned step = 0; step < steps; step++) {
        size_t at;
        switch (thread % 3) {
        case 0: at = next_number(&state) % SLOTS; break;                       /* everywhere */
        case 1: at = step % SLOTS; break;                                      /* one after the other */
        default: at = next_number(&state) % 64 + (size_t)(thread % 64) * 64;   /* near a place of its own */
        }
        struct block *old = atomic_exchange(&slots[at], make(&state, step ^ thread));
        if (old != NULL && step % 16 == 0) {
            size_t size = next_number(&state) % 1000, common = size < old->size ? size : old->size;
            old = realloc(old, sizeof *old + size);
            CHECK(old != NULL && holds(old->bytes, common, old->seed));
            old->size = common;
        }
        take(old);
        if (thread % 3 == 2 && step % 4 == 0) take(atomic_exchange(&slots[next_number(&state) % SLOTS], NULL));
    }
    return NULL;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : (int)sysconf(_SC_NPROCESSORS_ONLN) * 8;
    steps = argc > 2 ? (unsigned)atoi(argv[2]) : 20000;
    pthread_t *ids = malloc((size_t)threads * sizeof *ids);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < threads; i++) CHECK(pthread_create(&ids[i], NULL, run, (void *)(uintptr_t)(i + 1)) == 0);
        for (int i = 0; i < threads; i++) CHECK(pthread_join(ids[i], NULL) == 0);
    }
    for (int at = 0; at < SLOTS; at++) take(atomic_exchange(&slots[at], NULL));
    free(ids);
    if (on_terrane()) {
        malloc_trim(0);
        struct mallinfo2 info = mallinfo2();
        fprintf(stderr, "in use after all frees: %zu bytes\n", info.uordblks + info.hblkhd);
        CHECK(info.uordblks + info.hblkhd < (size_t)4 << 20);
    }
    puts("ok");
    return 0;
}
