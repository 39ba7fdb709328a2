/* fork while eight threads allocate: the child, which has only the forking thread, can allocate, free what any thread of
 * the parent had, start threads, fork again and exit; nothing waits for a lock that a vanished thread held. */
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 8, SHARED = 512 };
static _Atomic(unsigned char *) shared[SHARED];
static atomic_bool stop;

static void churn(uint64_t *state, int steps)
{
    for (int i = 0; i < steps; i++) {
        size_t size = next_number(state) % 100 == 0 ? next_number(state) % 300000 + 2 : next_number(state) % 1000 + 2;
        unsigned char *block = malloc(size);
        CHECK(block != NULL);
        block[0] = block[size - 1] = (unsigned char)size;
        unsigned char *old = atomic_exchange(&shared[next_number(state) % SHARED], block);
        free(old);
    }
}

static void *allocate_forever(void *argument)
{
    uint64_t state = (uint64_t)(uintptr_t)argument | 1;
    while (!atomic_load(&stop)) churn(&state, 100);
    return NULL;
}

static void *in_child(void *argument)
{
    uint64_t state = (uint64_t)(uintptr_t)argument | 1;
    churn(&state, 500);
    return malloc(100);
}

static void child(int round)
{
    uint64_t state = (uint64_t)round * 77 + 5;
    churn(&state, 500);
    if (round % 2 == 0) {
        for (int i = 0; i < SHARED; i++) free(atomic_exchange(&shared[i], NULL));
    }
    if (round % 3 == 0) {
        pthread_t threads[3];
        for (int i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, in_child, (void *)(uintptr_t)(i + 1)) == 0);
        for (int i = 0; i < 3; i++) {
            void *block;
            CHECK(pthread_join(threads[i], &block) == 0);
            free(block);
        }
    }
    if (round % 10 == 0) {
        pid_t grandchild = fork();
        CHECK(grandchild >= 0);
        if (grandchild == 0) {
            churn(&state, 200);
            _exit(3);
        }
        int status;
        CHECK(waitpid(grandchild, &status, 0) == grandchild && WIFEXITED(status) && WEXITSTATUS(status) == 3);
    }
    if (round % 4 == 0) exit(5); /* runs exit handlers as well */
    _exit(5);
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 300;
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, allocate_forever, (void *)(uintptr_t)(i + 1)) == 0);
    for (int round = 0; round < rounds; round++) {
        pid_t id = fork();
        CHECK(id >= 0);
        if (id == 0) {
            alarm(30); /* a child that waits for ever dies by SIGALRM and is seen below */
            child(round);
        }
        uint64_t state = (uint64_t)round + 1;
        churn(&state, 50);
        int status;
        CHECK(waitpid(id, &status, 0) == id);
        if (!(WIFEXITED(status) && WEXITSTATUS(status) == 5)) {
            fprintf(stderr, "round %d: child status %#x\n", round, (unsigned)status);
            _Exit(1);
        }
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    for (int i = 0; i < SHARED; i++) free(shared[i]);
    puts("ok");
    return 0;
}
