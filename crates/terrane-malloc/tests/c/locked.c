/* mlockall: with TERRANE_GUARDED=on, locking all memory, now and in future, makes present what is used and not what is only
 * reserved. */
#define _GNU_SOURCE
#include "check.h"
#include <sys/mman.h>
#include <unistd.h>

static size_t resident(void)
{
    unsigned long all = 0, pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL && fscanf(file, "%lu %lu", &all, &pages) == 2);
    fclose(file);
    return (size_t)pages * (size_t)sysconf(_SC_PAGESIZE);
}

int main(void)
{
    free(malloc(1000));
    if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) {
        puts("ok: memory cannot be locked here");
        return 0;
    }
    unsigned char *blocks[400];
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 400; i++) {
            blocks[i] = malloc(opaque(i * 200 + 1));
            CHECK(blocks[i] != NULL);
            fill(blocks[i], i * 200 + 1, i);
        }
        for (unsigned i = 0; i < 400; i++) {
            CHECK(holds(blocks[i], i * 200 + 1, i));
            free(blocks[i]);
        }
    }
    CHECK(resident() < (size_t)128 << 20);
    puts("ok");
    return 0;
}
