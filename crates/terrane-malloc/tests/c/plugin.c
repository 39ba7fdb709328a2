/* A library that is loaded and unloaded: it allocates when it is loaded, in calls and when it is unloaded. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

static char *from_load;
static __thread char *of_thread;
static __thread char large_thread_local[2000];

__attribute__((constructor)) static void load(void) { from_load = strdup("allocated while the library was loaded"); }

__attribute__((destructor)) static void unload(void)
{
    free(from_load);
    free(malloc(100));
}

char *plugin_make(size_t size)
{
    of_thread = realloc(of_thread, size + 1);
    of_thread[size] = 1;
    large_thread_local[size % sizeof large_thread_local] = 1;
    char *block = malloc(size);
    if (block != NULL) memset(block, 'p', size);
    return block;
}

void plugin_take(char *block) { free(block); }

void plugin_end_of_thread(void)
{
    free(of_thread);
    of_thread = NULL;
}
