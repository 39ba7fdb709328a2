/* dlopen and dlclose, many times, with threads that are inside the library's functions in between: blocks that the
 * library made outlive it, blocks made before are freed by it. */
#define _GNU_SOURCE
#include "check.h"
#include <dlfcn.h>
#include <pthread.h>

struct plugin {
    char *(*make)(size_t);
    void (*take)(char *);
    void (*end_of_thread)(void);
};

static void *use(void *argument)
{
    const struct plugin *plugin = argument;
    for (size_t size = 1; size < 2000; size += 19) {
        char *block = plugin->make(size);
        CHECK(block != NULL && block[0] == 'p' && block[size - 1] == 'p');
        plugin->take(block);
        plugin->take(malloc(size));
        free(plugin->make(size));
    }
    plugin->end_of_thread();
    return NULL;
}

int main(int argc, char **argv)
{
    CHECK(argc > 1);
    char *survivors[200];
    for (int round = 0; round < 200; round++) {
        void *library = dlopen(argv[1], round % 2 ? RTLD_NOW | RTLD_LOCAL : RTLD_LAZY | RTLD_GLOBAL);
        if (library == NULL) fprintf(stderr, "%s\n", dlerror());
        CHECK(library != NULL);
        struct plugin plugin = {
            (char *(*)(size_t))(uintptr_t)dlsym(library, "plugin_make"),
            (void (*)(char *))(uintptr_t)dlsym(library, "plugin_take"),
            (void (*)(void))(uintptr_t)dlsym(library, "plugin_end_of_thread"),
        };
        CHECK(plugin.make != NULL && plugin.take != NULL && plugin.end_of_thread != NULL);
        CHECK(dlsym(library, "no_such_function") == NULL && dlerror() != NULL);
        pthread_t threads[2];
        for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, use, &plugin) == 0);
        use(&plugin);
        for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
        survivors[round] = plugin.make((size_t)round * 10 + 1);
        plugin.end_of_thread();
        CHECK(dlclose(library) == 0);
    }
    for (int round = 0; round < 200; round++) {
        CHECK(survivors[round][0] == 'p' && survivors[round][round * 10] == 'p');
        free(survivors[round]);
    }
    puts("ok");
    return 0;
}
