/* The slow paths too fit on the smallest stack that a thread may have, and at the end of a deep recursion. */
#define _GNU_SOURCE
#include "check.h"
#include <limits.h>
#include <pthread.h>
#include <unistd.h>

static void *allocate_all_over(void *argument)
{
    (void)argument;
    /* Fresh slabs and segments, large blocks, alignment, growth: everything that is not the short way. */
    void *blocks[64];
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 64; i++) {
            blocks[i] = malloc(opaque((size_t)1 << (i % 22)));
            CHECK(blocks[i] != NULL);
            *(char *)blocks[i] = 1;
        }
        for (int i = 0; i < 64; i++) {
            blocks[i] = realloc(blocks[i], opaque((size_t)1 << ((i + 5) % 22)));
            CHECK(blocks[i] != NULL);
        }
        for (int i = 0; i < 64; i++) free(blocks[i]);
    }
    void *block = NULL;
    CHECK(posix_memalign(&block, 65536, 100000) == 0);
    free(block);
    free(calloc(1000, 1000));
    return NULL;
}

/* Each level holds a block, so that the last allocations happen with the stack nearly used up. */
static int dive(int depth)
{
    volatile char frame[1000];
    frame[0] = (char)depth;
    char *block = malloc(opaque(64 + (size_t)depth % 512));
    CHECK(block != NULL);
    block[0] = (char)depth;
    int below = depth > 0 ? dive(depth - 1) : 0;
    CHECK(block[0] == (char)depth && frame[0] == (char)depth);
    free(block);
    return below + 1;
}

static void *dive_deep(void *argument)
{
    CHECK(dive((int)(uintptr_t)argument) == (int)(uintptr_t)argument + 1);
    return NULL;
}

static void with_stack(size_t bytes, void *(*run)(void *), void *argument)
{
    pthread_attr_t attributes;
    pthread_t thread;
    CHECK(pthread_attr_init(&attributes) == 0);
    CHECK(pthread_attr_setstacksize(&attributes, bytes) == 0);
    CHECK(pthread_create(&thread, &attributes, run, argument) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    pthread_attr_destroy(&attributes);
}

int main(void)
{
    for (int round = 0; round < 50; round++) {
        with_stack((size_t)sysconf(_SC_THREAD_STACK_MIN), allocate_all_over, NULL);
        with_stack(1 << 20, dive_deep, (void *)(uintptr_t)850);
    }
    puts("ok");
    return 0;
}
