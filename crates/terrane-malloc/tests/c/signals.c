/* Signals that arrive while every thread allocates: handlers that do not allocate are harmless, system calls that are
 * interrupted are tried again, and errno is kept. */
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/time.h>

static atomic_uint signals;

static void handler(int number)
{
    (void)number;
    atomic_fetch_add(&signals, 1);
}

static void *allocate(void *argument)
{
    uint64_t state = (uint64_t)(uintptr_t)argument | 1;
    for (unsigned round = 0; round < 400 || atomic_load(&signals) < 200; round++) {
        unsigned char *blocks[100];
        size_t sizes[100];
        for (unsigned i = 0; i < 100; i++) {
            sizes[i] = next_number(&state) % (i == 0 ? 4000000 : 2000) + 1;
            errno = 99;
            blocks[i] = malloc(sizes[i]);
            CHECK(blocks[i] != NULL && errno == 99);
            fill(blocks[i], sizes[i] < 5000 ? sizes[i] : 5000, round + i);
        }
        for (unsigned i = 0; i < 100; i++) {
            CHECK(holds(blocks[i], sizes[i] < 5000 ? sizes[i] : 5000, round + i));
            free(blocks[i]);
            CHECK(errno == 99);
        }
    }
    return NULL;
}

int main(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler; /* without SA_RESTART */
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerval timer = {{0, 500}, {0, 500}};
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, allocate, (void *)(uintptr_t)(i + 1)) == 0);
    for (int i = 0; i < 3; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    memset(&timer, 0, sizeof timer);
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    puts("ok");
    return 0;
}
