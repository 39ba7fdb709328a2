/* Pools of objects and of buffers, as terrane.h declares them. On another allocator there are none. */
#define _GNU_SOURCE
#include "../../include/terrane.h"
#include "check.h"
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* The program is not linked with the library: it finds the functions by name when that is preloaded. */
#define FUNCTIONS(F)                                                                                                   \
    F(terrane_pool_new) F(terrane_pool_destroy) F(terrane_pool_acquire) F(terrane_pool_release)                        \
    F(terrane_pool_trim) F(terrane_pool_stats) F(terrane_buffers_new) F(terrane_buffers_destroy)                       \
    F(terrane_buffers_take) F(terrane_buffers_capacity) F(terrane_buffers_give) F(terrane_buffers_trim)                \
    F(terrane_buffers_stats)
#define POINTER(name) static __typeof__(name) *call_##name;
FUNCTIONS(POINTER)

static void *library = RTLD_DEFAULT;

static void find(void **function, const char *name)
{
    *function = dlsym(library, name);
    CHECK(*function != NULL);
}

static void objects_are_zero_when_new_and_zero_again_when_they_come_back(void)
{
    terrane_pool_t *pool = call_terrane_pool_new(100, 3, NULL);
    CHECK(pool != NULL);
    void *objects[3];
    for (int i = 0; i < 3; i++) {
        objects[i] = call_terrane_pool_acquire(pool);
        CHECK(objects[i] != NULL && is_aligned(objects[i], 16) && is_zero(objects[i], 100));
        fill(objects[i], 100, (unsigned)i);
    }
    CHECK(call_terrane_pool_acquire(pool) == NULL); /* as many as may exist are out */
    for (int i = 0; i < 3; i++) CHECK(holds(objects[i], 100, (unsigned)i));
    terrane_pool_stats_t stats;
    call_terrane_pool_stats(pool, &stats);
    CHECK(stats.out == 3 && stats.idle == 0 && stats.created == 3 && stats.bytes == 300);
    for (int i = 0; i < 3; i++) call_terrane_pool_release(objects[i]);
    call_terrane_pool_release(NULL);
    for (int i = 0; i < 3; i++) {
        objects[i] = call_terrane_pool_acquire(pool);
        CHECK(is_zero(objects[i], 100));
    }
    for (int i = 0; i < 3; i++) call_terrane_pool_release(objects[i]);
    call_terrane_pool_stats(pool, &stats);
    CHECK(stats.out == 0 && stats.idle == 3 && stats.created == 3 && stats.hits >= 3);
    call_terrane_pool_trim(pool);
    CHECK(call_terrane_pool_destroy(pool) == 0);
    CHECK(call_terrane_pool_destroy(NULL) == 0);
}

static void impossible_pools_are_refused(void)
{
    CHECK(call_terrane_pool_new(0, 1, NULL) == NULL);
    CHECK(call_terrane_pool_new(1, 0, NULL) == NULL);
    CHECK(call_terrane_pool_new(SIZE_MAX, 1, NULL) == NULL);
    CHECK(call_terrane_buffers_new(0, 1) == NULL);
}

static void mark(void *object, size_t bytes)
{
    CHECK(bytes == 64);
    memset(object, 0x5A, bytes);
}

static void the_reset_of_the_user_is_called_at_every_return(void)
{
    terrane_pool_t *pool = call_terrane_pool_new(64, 10, mark);
    unsigned char *object = call_terrane_pool_acquire(pool);
    CHECK(is_zero(object, 64));
    call_terrane_pool_release(object);
    object = call_terrane_pool_acquire(pool);
    for (int i = 0; i < 64; i++) CHECK(object[i] == 0x5A);
    CHECK(call_terrane_pool_destroy(pool) == 1); /* one is out, */
    object[0] = 1;                               /* still valid, */
    call_terrane_pool_release(object);           /* and freed here */
}

static void releasing_twice_ends_the_process(void)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        (void)!freopen("/dev/null", "w", stderr);
        terrane_pool_t *pool = call_terrane_pool_new(64, 10, NULL);
        void *object = call_terrane_pool_acquire(pool);
        call_terrane_pool_release(object);
        call_terrane_pool_release(object);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void buffers_have_the_room_asked_for_and_go_by_their_length(void)
{
    terrane_buffers_t *pool = call_terrane_buffers_new(1000, 1 << 20);
    for (size_t bytes = 1; bytes < (size_t)8 << 20; bytes = bytes * 3 + 1) {
        void *buffer = call_terrane_buffers_take(pool, bytes);
        CHECK(buffer != NULL && is_aligned(buffer, 16));
        size_t room = call_terrane_buffers_capacity(buffer);
        CHECK(room >= bytes);
        fill(buffer, room, 9);
        CHECK(holds(buffer, room, 9));
        call_terrane_buffers_give(buffer);
    }
    terrane_pool_stats_t stats;
    call_terrane_buffers_stats(pool, &stats);
    CHECK(stats.out == 0 && stats.idle > 0 && stats.bytes < (size_t)4 << 20); /* the longest were freed */
    CHECK(call_terrane_buffers_take(pool, SIZE_MAX) == NULL);
    CHECK(call_terrane_buffers_take(pool, SIZE_MAX - 64) == NULL);
    CHECK(call_terrane_buffers_take(pool, (size_t)1 << 45) == NULL); /* more than any machine has */
    void *kept = call_terrane_buffers_take(pool, 1000);
    call_terrane_buffers_trim(pool);
    CHECK(call_terrane_buffers_destroy(pool) == 1);
    fill(kept, 1000, 4);
    call_terrane_buffers_give(kept);
}

enum { THREADS = 4, ROUNDS = 20000, SLOTS = 64 };
static void *slots[SLOTS];
static terrane_pool_t *shared_pool;

/* Each thread puts its object into a random slot and releases what was there: most go back on another thread. */
static void *exchange(void *argument)
{
    uint64_t random = (uintptr_t)argument * 77 + 1;
    for (int round = 0; round < ROUNDS; round++) {
        void *object = call_terrane_pool_acquire(shared_pool);
        CHECK(object != NULL && is_zero(object, 48));
        fill(object, 48, 3);
        void *other = __atomic_exchange_n(&slots[next_number(&random) % SLOTS], object, __ATOMIC_ACQ_REL);
        if (other != NULL) CHECK(holds(other, 48, 3));
        call_terrane_pool_release(other);
    }
    return NULL;
}

static void objects_may_be_released_on_any_thread(void)
{
    shared_pool = call_terrane_pool_new(48, SLOTS + THREADS, NULL);
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, exchange, (void *)i) == 0);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    for (int i = 0; i < SLOTS; i++) call_terrane_pool_release(slots[i]);
    terrane_pool_stats_t stats;
    call_terrane_pool_stats(shared_pool, &stats);
    CHECK(stats.out == 0 && stats.created <= SLOTS + THREADS);
    CHECK(call_terrane_pool_destroy(shared_pool) == 0);
}

/* With an argument: the library to open beside whatever allocator the program has. */
int main(int count, char **arguments)
{
    if (count > 1) {
        library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
        CHECK(library != NULL);
    } else if (!on_terrane()) {
        CHECK(dlsym(RTLD_DEFAULT, "terrane_pool_new") == NULL);
        puts("ok");
        return 0;
    }
#define FIND(name) find((void **)&call_##name, #name);
    FUNCTIONS(FIND)
    objects_are_zero_when_new_and_zero_again_when_they_come_back();
    impossible_pools_are_refused();
    the_reset_of_the_user_is_called_at_every_return();
    releasing_twice_ends_the_process();
    buffers_have_the_room_asked_for_and_go_by_their_length();
    objects_may_be_released_on_any_thread();
    puts("ok");
    return 0;
}
