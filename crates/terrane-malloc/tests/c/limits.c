/* Memory that runs out: every call gives NULL and ENOMEM, nothing that was live is harmed, and once something has been
 * given back there is room again. The limit is on the address space, set while the program runs. */
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

static size_t address_space_now(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    unsigned long pages = 0;
    CHECK(file != NULL && fscanf(file, "%lu", &pages) == 1);
    fclose(file);
    return (size_t)pages * (size_t)sysconf(_SC_PAGESIZE);
}

struct block {
    struct block *next;
    size_t size;
    unsigned seed;
    unsigned char bytes[];
};

/* Allocates until there is no more; checks and frees all of it; returns the number of bytes that were to be had. */
static size_t exhaust(uint64_t seed, size_t largest)
{
    struct block *list = NULL;
    size_t total = 0;
    unsigned count = 0, refusals = 0;
    while (refusals < 20) {
        size_t size = sizeof(struct block) + next_number(&seed) % largest;
        errno = 0;
        struct block *block = malloc(size);
        if (block == NULL) {
            CHECK(errno == ENOMEM);
            refusals++;
            /* The block that we have is not lost by a growth that fails, nor by one that works. */
            if (list != NULL) {
                size_t bytes = list->size - sizeof(struct block);
                struct block *grown = realloc(list, list->size + largest);
                if (grown != NULL) {
                    list = grown;
                    CHECK(holds(list->bytes, bytes, list->seed));
                } else {
                    CHECK(errno == ENOMEM);
                }
            }
            continue;
        }
        block->next = list;
        block->size = size;
        block->seed = ++count;
        fill(block->bytes, size - sizeof(struct block), block->seed);
        list = block;
        total += size;
        CHECK(total < (size_t)4 << 30);
    }
    while (list != NULL) {
        struct block *next = list->next;
        CHECK(holds(list->bytes, list->size - sizeof(struct block), list->seed));
        free(list);
        list = next;
    }
    return total;
}

static void *in_thread(void *argument)
{
    exhaust((uint64_t)(uintptr_t)argument, 5000);
    return NULL;
}

int main(void)
{
    void *before = malloc(1000);
    fill(before, 1000, 1);
    /* Whatever is mapped now, and 96 MiB more. */
    size_t limit = address_space_now() + ((size_t)96 << 20);
    struct rlimit limits = {limit, RLIM_INFINITY};
    CHECK(setrlimit(RLIMIT_AS, &limits) == 0);

    size_t first = exhaust(3, 1000);
    size_t second = exhaust(4, 200000);
    size_t third = exhaust(5, 5000000);
    size_t fourth = exhaust(6, 1000);
    fprintf(stderr, "MiB to be had: %zu %zu %zu %zu\n", first >> 20, second >> 20, third >> 20, fourth >> 20);
    if (on_terrane()) {
        /* What one round used, the next can use in other sizes. */
        CHECK(second > first / 4 && third > first / 8 && fourth > first / 2);
    }
    errno = 0;
    CHECK(malloc(opaque((size_t)8 << 30)) == NULL && errno == ENOMEM);
    CHECK(calloc(opaque((size_t)1 << 20), 1 << 13) == NULL);

    limits.rlim_cur = limit + ((size_t)64 << 20); /* room for stacks */
    CHECK(setrlimit(RLIMIT_AS, &limits) == 0);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 << 10);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], &attributes, in_thread, (void *)(uintptr_t)(i + 1)) == 0);
    for (int i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(holds(before, 1000, 1));
    free(before);
    puts("ok");
    return 0;
}
