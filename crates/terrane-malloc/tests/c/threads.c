/* Threads that come and go: blocks outlive the thread that made them, and every way to end a thread is harmless. */
#define _GNU_SOURCE
#include "check.h"
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#define HANDED 256
static struct { _Atomic(unsigned char *) block; } shelf[HANDED];
static pthread_key_t early_key, late_key;
static atomic_int destructor_rounds;

/* Swaps a new block against whatever another thread, perhaps long gone, has left, and frees that. */
static void trade(uint64_t *state)
{
    size_t size = next_number(state) % 3000 + 9;
    unsigned char *block = malloc(size);
    CHECK(block != NULL);
    uint64_t length = size;
    memcpy(block, &length, 8);
    block[8] = (unsigned char)size;
    memset(block + 9, (int)(size & 255), size - 9);
    unsigned char *old = atomic_exchange(&shelf[next_number(state) % HANDED].block, block);
    if (old == NULL) return;
    memcpy(&length, old, 8);
    for (size_t i = 8; i < length; i++) CHECK(old[i] == (unsigned char)length);
    free(old);
}

/* Runs after the thread's function has returned; allocates and frees in every round that POSIX grants. */
static void late_destructor(void *value)
{
    uint64_t state = (uint64_t)(uintptr_t)value | 1;
    for (int i = 0; i < 20; i++) trade(&state);
    free(value);
    if (atomic_fetch_add(&destructor_rounds, 1) % 4 != 3) CHECK(pthread_setspecific(late_key, malloc(100)) == 0);
}

static void early_destructor(void *value)
{
    free(value);
    CHECK(pthread_setspecific(late_key, malloc(5000)) == 0);
}

static void *short_life(void *argument)
{
    uint64_t state = (uint64_t)(uintptr_t)argument * 0x9E3779B97F4A7C15ull | 1;
    int way = (int)((uintptr_t)argument % 5);
    if (way == 0) return NULL; /* never allocates */
    for (int i = 0; i < 30; i++) trade(&state);
    if (way == 1) CHECK(pthread_setspecific(early_key, malloc(64)) == 0);
    if (way == 2) {
        CHECK(pthread_setspecific(late_key, malloc(64)) == 0);
        pthread_exit(malloc(77));
    }
    if (way == 3) return malloc(100000);
    return NULL;
}

/* A thread that only frees: what it frees was made by others, and it never owned a heap. */
static void *only_frees(void *argument)
{
    void **blocks = argument;
    for (int i = 0; i < 10000; i++) free(blocks[i]);
    return NULL;
}

static void cleanup(void *block) { free(block); }

static void *is_cancelled(void *argument)
{
    void *block = malloc(1234);
    pthread_cleanup_push(cleanup, block);
    uint64_t state = (uint64_t)(uintptr_t)argument | 1;
    for (;;) {
        trade(&state);
        pthread_testcancel();
    }
    pthread_cleanup_pop(1);
    return NULL;
}

static void *stays_idle(void *argument)
{
    pthread_barrier_t *barrier = argument;
    void **blocks = malloc(10000 * sizeof(void *));
    for (int i = 0; i < 10000; i++) blocks[i] = malloc((size_t)(i % 700));
    pthread_barrier_wait(barrier); /* the main thread frees all blocks while this thread does nothing */
    pthread_barrier_wait(barrier);
    return blocks;
}

int main(int argc, char **argv)
{
    int lives = argc > 1 ? atoi(argv[1]) : 10000;
    CHECK(pthread_key_create(&early_key, early_destructor) == 0);
    CHECK(pthread_key_create(&late_key, late_destructor) == 0);

    enum { AT_ONCE = 16 };
    pthread_t threads[AT_ONCE];
    for (int life = 0; life < lives; life += AT_ONCE) {
        for (int i = 0; i < AT_ONCE; i++)
            CHECK(pthread_create(&threads[i], NULL, short_life, (void *)(uintptr_t)(life + i)) == 0);
        for (int i = 0; i < AT_ONCE; i++) {
            void *result = NULL;
            CHECK(pthread_join(threads[i], &result) == 0);
            free(result);
        }
    }
    CHECK(atomic_load(&destructor_rounds) > lives / 10);

    for (int round = 0; round < 20; round++) {
        void **blocks = malloc(10000 * sizeof(void *));
        for (int i = 0; i < 10000; i++) blocks[i] = malloc((size_t)(i % 900));
        CHECK(pthread_create(&threads[0], NULL, only_frees, blocks) == 0);
        CHECK(pthread_join(threads[0], NULL) == 0);
        free(blocks);
    }

    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < 4; i++)
            CHECK(pthread_create(&threads[i], NULL, is_cancelled, (void *)(uintptr_t)(round * 4 + i)) == 0);
        usleep(500);
        for (int i = 0; i < 4; i++) {
            CHECK(pthread_cancel(threads[i]) == 0);
            void *result = NULL;
            CHECK(pthread_join(threads[i], &result) == 0 && result == PTHREAD_CANCELED);
        }
    }

    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, NULL, 2);
    CHECK(pthread_create(&threads[0], NULL, stays_idle, &barrier) == 0);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    void *list = NULL;
    CHECK(pthread_join(threads[0], &list) == 0);
    for (int i = 0; i < 10000; i++) free(((void **)list)[i]);
    free(list);
    pthread_barrier_destroy(&barrier);

    for (int i = 0; i < HANDED; i++) free(shelf[i].block);
    puts("ok");
    /* The main thread may end before the process does. */
    pthread_exit(NULL);
}
