/* Every entry point of the malloc family, as programs written for glibc expect it. */
#define _GNU_SOURCE
#include "check.h"
#include <dlfcn.h>
#include <malloc.h>
#include <stddef.h>
#include <unistd.h>

static const size_t SIZES[] = {1,    7,    8,     15,    16,    17,     24,      31,      32,     33,      48,      63,
                               64,   65,   100,   127,   128,   129,    200,     255,     256,    257,     500,     511,
                               512,  513,  1000,  1023,  1024,  1025,   2000,    3000,    4000,   4095,    4096,    4097,
                               5000, 8191, 8192,  8193,  10000, 16384,  20000,   32767,   32768,  32769,   40000,   65535,
                               65536, 65537, 100000, 131072, 200000, 262144, 300000, 524288, 1000000, 1048576, 1048577,
                               2097152, 3000000, 4194303, 4194304, 4194305, 8388608, 20000000, 33554432, 33554433};
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static void malloc_of_every_size_is_aligned_usable_and_keeps_its_contents(void)
{
    void *blocks[COUNT(SIZES)];
    for (size_t i = 0; i < COUNT(SIZES); i++) {
        blocks[i] = malloc(opaque(SIZES[i]));
        CHECK(blocks[i] != NULL);
        CHECK(is_aligned(blocks[i], 16));
        CHECK(malloc_usable_size(blocks[i]) >= SIZES[i]);
        fill(blocks[i], malloc_usable_size(blocks[i]), (unsigned)i);
    }
    for (size_t i = 0; i < COUNT(SIZES); i++) {
        CHECK(holds(blocks[i], malloc_usable_size(blocks[i]), (unsigned)i));
        free(blocks[i]);
    }
}

static void size_zero_gives_a_block_of_its_own(void)
{
    void *a = malloc(opaque(0)), *b = malloc(opaque(0)), *c = calloc(opaque(0), 8), *d = calloc(8, opaque(0));
    void *e = realloc(NULL, opaque(0)), *f = memalign(64, opaque(0)), *g = NULL;
    CHECK(posix_memalign(&g, 256, opaque(0)) == 0);
    void *all[] = {a, b, c, d, e, f, g};
    for (size_t i = 0; i < COUNT(all); i++) {
        CHECK(all[i] != NULL);
        for (size_t j = 0; j < i; j++) CHECK(all[i] != all[j]);
    }
    for (size_t i = 0; i < COUNT(all); i++) free(all[i]);
}

static void free_takes_null_and_leaves_errno_alone(void)
{
    errno = 4242;
    free(NULL);
    CHECK(errno == 4242);
    for (size_t i = 0; i < COUNT(SIZES); i++) {
        void *block = malloc(opaque(SIZES[i]));
        CHECK(block != NULL);
        memset(block, 1, SIZES[i]);
        errno = 4242;
        free(block);
        CHECK(errno == 4242);
    }
}

static void successful_calls_leave_errno_alone(void)
{
    errno = 77;
    void *block = malloc(opaque(100));
    block = realloc(block, opaque(100000));
    block = realloc(block, opaque(10));
    free(block);
    free(calloc(10, opaque(1000)));
    CHECK(errno == 77);
}

/* What cannot be had: NULL and ENOMEM, for every entry point that takes a size. */
static void impossible_sizes_give_null_and_enomem(void)
{
    const size_t impossible[] = {SIZE_MAX, SIZE_MAX - 1, SIZE_MAX - 15, SIZE_MAX - 4096, (size_t)PTRDIFF_MAX + 1,
                                 (size_t)PTRDIFF_MAX, (size_t)PTRDIFF_MAX - 4096};
    for (size_t i = 0; i < COUNT(impossible); i++) {
        size_t size = opaque(impossible[i]);
        errno = 0;
        CHECK(malloc(size) == NULL && errno == ENOMEM);
        errno = 0;
        CHECK(calloc(1, size) == NULL && errno == ENOMEM);
        errno = 0;
        CHECK(calloc(size, 1) == NULL && errno == ENOMEM);
        errno = 0;
        CHECK(realloc(NULL, size) == NULL && errno == ENOMEM);
        errno = 0;
        CHECK(memalign(64, size) == NULL && errno == ENOMEM);
        errno = 0;
        CHECK(aligned_alloc(64, size) == NULL && errno == ENOMEM);
        errno = 0;
        CHECK(valloc(size) == NULL && errno == ENOMEM);
        errno = 0;
        CHECK(pvalloc(size) == NULL && errno == ENOMEM);
        void *untouched = (void *)0x1234;
        CHECK(posix_memalign(&untouched, 64, size) == ENOMEM);
        CHECK(untouched == (void *)0x1234);

        /* A failed realloc leaves the block as it was. */
        void *block = malloc(opaque(1000));
        fill(block, 1000, 9);
        errno = 0;
        CHECK(realloc(block, size) == NULL && errno == ENOMEM);
        CHECK(holds(block, 1000, 9));
        free(block);
    }
}

static void products_that_overflow_are_refused(void)
{
    const size_t pairs[][2] = {{SIZE_MAX, 2}, {2, SIZE_MAX}, {SIZE_MAX / 2, 3}, {(size_t)1 << 32, (size_t)1 << 32},
                               {((size_t)1 << 32) + 1, (size_t)1 << 32}, {SIZE_MAX, SIZE_MAX}};
    for (size_t i = 0; i < COUNT(pairs); i++) {
        size_t count = opaque(pairs[i][0]), size = opaque(pairs[i][1]);
        errno = 0;
        CHECK(calloc(count, size) == NULL && errno == ENOMEM);
        errno = 0;
        CHECK(reallocarray(NULL, count, size) == NULL && errno == ENOMEM);
        void *block = malloc(64);
        fill(block, 64, 3);
        errno = 0;
        CHECK(reallocarray(block, count, size) == NULL && errno == ENOMEM);
        CHECK(holds(block, 64, 3));
        free(block);
    }
    int *numbers = reallocarray(NULL, opaque(1000), sizeof(int));
    CHECK(numbers != NULL);
    fill(numbers, 1000 * sizeof(int), 5);
    numbers = reallocarray(numbers, opaque(50000), sizeof(int));
    CHECK(numbers != NULL && holds(numbers, 1000 * sizeof(int), 5));
    free(numbers);
}

static void calloc_is_zero_also_on_memory_that_was_used(void)
{
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < COUNT(SIZES); i++) {
            unsigned char *block = calloc(1, opaque(SIZES[i]));
            CHECK(block != NULL && is_aligned(block, 16));
            CHECK(is_zero(block, SIZES[i]));
            memset(block, 0xAA, malloc_usable_size(block));
            free(block);
        }
    }
    unsigned char *many[200];
    for (int round = 0; round < 20; round++) {
        for (size_t i = 0; i < COUNT(many); i++) {
            many[i] = calloc(opaque(i + 1), 13);
            CHECK(is_zero(many[i], (i + 1) * 13));
            memset(many[i], 0x55, malloc_usable_size(many[i]));
        }
        for (size_t i = 0; i < COUNT(many); i++) free(many[i]);
    }
}

static void realloc_keeps_the_common_part(void)
{
    for (size_t i = 0; i < COUNT(SIZES); i++) {
        for (size_t j = 0; j < COUNT(SIZES); j += 3) {
            size_t from = SIZES[i], to = SIZES[j], common = from < to ? from : to;
            if (from > 3000000 && to > 3000000) continue;
            void *block = malloc(opaque(from));
            fill(block, from, (unsigned)(i + j));
            block = realloc(block, opaque(to));
            CHECK(block != NULL && is_aligned(block, 16) && malloc_usable_size(block) >= to);
            CHECK(holds(block, common, (unsigned)(i + j)));
            free(block);
        }
    }
    /* A chain that grows by little and shrinks by much. */
    char *text = NULL;
    for (size_t size = 1; size < 300000; size += size / 7 + 1) {
        text = realloc(text, opaque(size));
        CHECK(text != NULL);
        text[size - 1] = 'x';
        text[0] = 'a';
    }
    for (size_t size = 300000; size > 1; size = size * 2 / 3) {
        text = realloc(text, opaque(size));
        CHECK(text != NULL && text[0] == 'a');
    }
    free(text);
}

static void realloc_of_null_allocates_and_to_zero_frees(void)
{
    void *block = realloc(NULL, opaque(333));
    CHECK(block != NULL && malloc_usable_size(block) >= 333);
    CHECK(realloc(block, opaque(0)) == NULL);
}

static void every_alignment_is_kept_by_every_entry_point(void)
{
    const size_t sizes[] = {0, 1, 8, 24, 100, 1000, 4096, 5000, 70000, 3000000};
    for (size_t align = 1; align <= (size_t)1 << 26; align <<= 1) {
        for (size_t i = 0; i < COUNT(sizes); i++) {
            size_t size = sizes[i];
            void *block = memalign(opaque(align), size);
            CHECK(block != NULL && is_aligned(block, align) && malloc_usable_size(block) >= size);
            fill(block, size, 1);
            if (align >= sizeof(void *)) {
                void *other = NULL;
                CHECK(posix_memalign(&other, opaque(align), size) == 0);
                CHECK(other != NULL && other != block && is_aligned(other, align));
                fill(other, size, 2);
                void *third = aligned_alloc(opaque(align), size);
                CHECK(third != NULL && is_aligned(third, align));
                fill(third, size, 3);
                CHECK(holds(block, size, 1) && holds(other, size, 2) && holds(third, size, 3));
                /* An aligned block may be grown like any other; its alignment is then no longer promised. */
                other = realloc(other, opaque(size + 5000));
                CHECK(other != NULL && holds(other, size, 2));
                /* Grown far beyond what it was, and cut down again: the great alignment of a small block is forgotten. */
                const size_t lengths[] = {40000, 300000, 6000000, 40000000, 150000000};
                for (size_t j = 0; j < COUNT(lengths); j++) {
                    third = realloc(third, opaque(size + lengths[j]));
                    CHECK(third != NULL && holds(third, size, 3));
                    ((char *)third)[size + lengths[j] - 1] = 1;
                    if (align < (size_t)1 << 20) break;
                }
                third = realloc(third, opaque(size / 2 + 1));
                CHECK(third != NULL && holds(third, size / 2, 3));
                free(other);
                free(third);
            }
            free(block);
        }
    }
    for (size_t align = (size_t)1 << 27; align <= (size_t)1 << 30; align <<= 1) {
        void *block = memalign(opaque(align), 100);
        CHECK(block != NULL && is_aligned(block, align));
        fill(block, 100, 4);
        /* It is not a small block, whatever its length says: seen when it has to move, far from all other blocks. The
         * system may refuse so much memory even untouched; then the block stays as it is. */
        void *grown = realloc(block, opaque((size_t)35 << 30));
        if (on_terrane()) CHECK(grown != NULL);
        if (grown != NULL) block = grown;
        CHECK(holds(block, 100, 4));
        free(block);
    }
}

static void bad_alignments_are_refused(void)
{
    void *block = (void *)0x77;
    errno = 11;
    CHECK(posix_memalign(&block, opaque(0), 8) == EINVAL);
    CHECK(posix_memalign(&block, opaque(3), 8) == EINVAL);
    CHECK(posix_memalign(&block, opaque(4), 8) == EINVAL); /* not a multiple of sizeof(void *) */
    CHECK(posix_memalign(&block, opaque(24), 8) == EINVAL);
    CHECK(posix_memalign(&block, opaque(SIZE_MAX), 8) == EINVAL);
    CHECK(errno == 11 && block == (void *)0x77);
    int refused = posix_memalign(&block, opaque((size_t)1 << 63), 8);
    CHECK(refused == ENOMEM || refused == EINVAL);
    CHECK(block == (void *)0x77);
    errno = 0;
    CHECK(memalign(opaque((size_t)1 << 63), 8) == NULL && (errno == ENOMEM || errno == EINVAL));
}

static void pages_come_aligned_and_whole(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *block = valloc(opaque(100));
    CHECK(block != NULL && is_aligned(block, page));
    free(block);
    block = pvalloc(opaque(page + 1));
    CHECK(block != NULL && is_aligned(block, page) && malloc_usable_size(block) >= 2 * page);
    fill(block, 2 * page, 8);
    free(block);
}

static void usable_size_of_null_is_zero(void) { CHECK(malloc_usable_size(NULL) == 0); }

static void libc_functions_that_allocate_use_the_same_heap(void)
{
    char *copy = strdup("a string that libc copies");
    CHECK(copy != NULL && malloc_usable_size(copy) >= 26);
    copy = realloc(copy, opaque(10000));
    CHECK(strcmp(copy, "a string that libc copies") == 0);
    free(copy);
    char *printed = NULL;
    CHECK(asprintf(&printed, "%0500d", 7) == 500);
    CHECK(strlen(printed) == 500);
    free(printed);
    char *folder = getcwd(NULL, 0);
    CHECK(folder != NULL);
    free(folder);
    FILE *file = tmpfile();
    CHECK(file != NULL);
    for (int i = 0; i < 5000; i++) fprintf(file, "%d ", i);
    rewind(file);
    char *line = NULL;
    size_t capacity = 0;
    CHECK(getdelim(&line, &capacity, '!', file) == 23890);
    CHECK(malloc_usable_size(line) >= capacity);
    free(line);
    fclose(file);
}

static void the_heap_can_be_asked_and_trimmed(void)
{
    void *block = malloc(opaque(5000000));
    memset(block, 1, 5000000);
    struct mallinfo2 info = mallinfo2();
    CHECK(info.arena + info.hblkhd >= 5000000);
    CHECK(info.uordblks + info.hblkhd >= 5000000);
    free(block);
    int trimmed = malloc_trim(0);
    CHECK(trimmed == 0 || trimmed == 1);
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    CHECK(stream != NULL);
    CHECK(malloc_info(0, stream) == 0);
    fclose(stream);
    CHECK(length > 20 && strstr(text, "<malloc") != NULL && strstr(text, "</malloc>") != NULL);
    free(text);
    stream = tmpfile();
    CHECK(malloc_info(1, stream) != 0); /* no options exist */
    fclose(stream);
}

static void c23_sized_frees_are_there(void)
{
    void (*free_sized)(void *, size_t) = (void (*)(void *, size_t))(uintptr_t)dlsym(RTLD_DEFAULT, "free_sized");
    void (*free_aligned_sized)(void *, size_t, size_t) =
        (void (*)(void *, size_t, size_t))(uintptr_t)dlsym(RTLD_DEFAULT, "free_aligned_sized");
    if (on_terrane()) CHECK(free_sized != NULL && free_aligned_sized != NULL);
    if (free_sized == NULL || free_aligned_sized == NULL) return;
    errno = 31;
    for (int round = 0; round < 1000; round++) {
        for (size_t size = 0; size < 3000; size += 37) {
            void *block = malloc(opaque(size));
            memset(block, 1, size);
            free_sized(block, size);
        }
    }
    for (size_t align = 8; align <= 65536; align <<= 1) {
        void *block = aligned_alloc(align, opaque(align * 3));
        CHECK(is_aligned(block, align));
        free_aligned_sized(block, align, align * 3);
    }
    free_sized(malloc(opaque(50000000)), 50000000);
    free_sized(NULL, 100);
    free_aligned_sized(NULL, 64, 100);
    CHECK(errno == 31);
}

static void live_blocks_never_overlap(void)
{
    enum { LIVE = 4000 };
    static struct { unsigned char *block; size_t size; unsigned seed; } live[LIVE];
    uint64_t state = 99;
    for (unsigned step = 0; step < 200000; step++) {
        size_t at = next_number(&state) % LIVE;
        if (live[at].block != NULL) {
            CHECK(holds(live[at].block, live[at].size, live[at].seed));
            if (step % 5 == 0) {
                size_t size = next_number(&state) % 2000;
                size_t common = size < live[at].size ? size : live[at].size;
                live[at].block = realloc(live[at].block, size + 1);
                CHECK(holds(live[at].block, common, live[at].seed));
                live[at].size = size;
                fill(live[at].block, size, live[at].seed);
                continue;
            }
            free(live[at].block);
        }
        size_t size = next_number(&state) % (step % 100 == 0 ? 100000 : 600);
        live[at].block = malloc(size);
        live[at].size = size;
        live[at].seed = step;
        fill(live[at].block, size, step);
    }
    for (size_t at = 0; at < LIVE; at++) {
        if (live[at].block != NULL) CHECK(holds(live[at].block, live[at].size, live[at].seed));
        free(live[at].block);
    }
}

int main(void)
{
    malloc_of_every_size_is_aligned_usable_and_keeps_its_contents();
    size_zero_gives_a_block_of_its_own();
    free_takes_null_and_leaves_errno_alone();
    successful_calls_leave_errno_alone();
    impossible_sizes_give_null_and_enomem();
    products_that_overflow_are_refused();
    calloc_is_zero_also_on_memory_that_was_used();
    realloc_keeps_the_common_part();
    realloc_of_null_allocates_and_to_zero_frees();
    every_alignment_is_kept_by_every_entry_point();
    bad_alignments_are_refused();
    pages_come_aligned_and_whole();
    usable_size_of_null_is_zero();
    libc_functions_that_allocate_use_the_same_heap();
    the_heap_can_be_asked_and_trimmed();
    c23_sized_frees_are_there();
    live_blocks_never_overlap();
    puts("ok");
    return 0;
}
