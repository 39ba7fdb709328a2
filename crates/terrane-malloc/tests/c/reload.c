/* reload LIBRARY MAKE TAKE: a library that brings its own allocator is opened, used by threads and closed, 100 times. Threads
 * that used it end after it was closed, and it has been given enough to do that it works in the background. */
#define _GNU_SOURCE
#include "check.h"
#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>

enum { ROUNDS = 100, THREADS = 3, BLOCKS = 200, LONG = 5 << 20, LONG_BLOCKS = 9 };

static struct {
    void *(*make)(size_t);
    void (*take)(void *);
} library;
static pthread_barrier_t used, closed;

static void work(unsigned seed)
{
    void *blocks[BLOCKS];
    for (unsigned i = 0; i < BLOCKS; i++) {
        blocks[i] = library.make(i * 29 + 1);
        CHECK(blocks[i] != NULL);
        fill(blocks[i], i * 29 + 1, seed + i);
    }
    for (unsigned i = 0; i < BLOCKS; i++) {
        CHECK(holds(blocks[i], i * 29 + 1, seed + i));
        library.take(blocks[i]);
    }
}

static void *thread(void *argument)
{
    work((unsigned)(uintptr_t)argument);
    pthread_barrier_wait(&used);
    pthread_barrier_wait(&closed);
    return NULL; /* the library's own clean-up of this thread runs now */
}

static long pages_of_address_space(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL && fscanf(file, "%ld", &pages) == 1);
    fclose(file);
    return pages;
}

int main(int argc, char **argv)
{
    CHECK(argc == 4);
    long early = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        void *handle = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        if (handle == NULL) fprintf(stderr, "%s\n", dlerror());
        CHECK(handle != NULL);
        library.make = (void *(*)(size_t))(uintptr_t)dlsym(handle, argv[2]);
        library.take = (void (*)(void *))(uintptr_t)dlsym(handle, argv[3]);
        CHECK(library.make != NULL && library.take != NULL);
        CHECK(pthread_barrier_init(&used, NULL, THREADS + 1) == 0 && pthread_barrier_init(&closed, NULL, THREADS + 1) == 0);
        pthread_t threads[THREADS];
        for (unsigned i = 0; i < THREADS; i++)
            CHECK(pthread_create(&threads[i], NULL, thread, (void *)(uintptr_t)(round * 7 + i)) == 0);
        pthread_barrier_wait(&used);
        char *blocks[LONG_BLOCKS];
        for (int i = 0; i < LONG_BLOCKS; i++) {
            blocks[i] = library.make(LONG);
            CHECK(blocks[i] != NULL);
            blocks[i][0] = blocks[i][LONG - 1] = (char)i;
        }
        char *survivor = library.make(1000);
        fill(survivor, 1000, round);
        for (int i = 0; i < LONG_BLOCKS; i++) library.take(blocks[i]);
        work(round);
        CHECK(dlclose(handle) == 0);
        pthread_barrier_wait(&closed);
        for (unsigned i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
        if (round % 10 == 0) usleep(20000); /* whatever works in the background does so without the library */
        CHECK(holds(survivor, 1000, round));
        if (round == 9) early = pages_of_address_space();
    }
    long late = pages_of_address_space();
    if (late > early + early / 2) fprintf(stderr, "%ld pages after 10 rounds, %ld after 100\n", early, late);
    CHECK(late <= early + early / 2);
    puts("ok");
    return 0;
}
