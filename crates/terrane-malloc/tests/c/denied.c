/* A sandbox that denies madvise (and, told so, mremap): memory is kept or moved instead, and everything still works. */
#define _GNU_SOURCE
#include "check.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int deny(int call)
{
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof rules / sizeof rules[0], rules};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

int main(void)
{
    if (!deny(SYS_madvise) || !deny(SYS_mremap)) {
        puts("ok: no seccomp here");
        return 0;
    }
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED && madvise(page, 4096, MADV_DONTNEED) != 0 && errno == EPERM);
    uint64_t state = 17;
    static struct { unsigned char *block; size_t size; unsigned seed; } live[500];
    for (unsigned step = 0; step < 30000; step++) {
        size_t at = next_number(&state) % 500;
        if (live[at].block != NULL) CHECK(holds(live[at].block, live[at].size, live[at].seed));
        free(live[at].block);
        size_t size = next_number(&state) % (step % 50 == 0 ? 3000000 : 3000) + 1;
        if (step % 3 == 0) {
            live[at].block = calloc(1, size);
            CHECK(live[at].block != NULL && is_zero(live[at].block, size));
        } else {
            live[at].block = malloc(size);
            CHECK(live[at].block != NULL);
        }
        live[at].size = size;
        live[at].seed = step;
        fill(live[at].block, size, step);
        if (step % 1000 == 0) malloc_trim(0);
    }
    unsigned char *grown = malloc(1 << 20);
    fill(grown, 1 << 20, 3);
    for (size_t size = 2 << 20; size <= (size_t)64 << 20; size *= 2) {
        grown = realloc(grown, size);
        CHECK(grown != NULL && holds(grown, 1 << 20, 3));
    }
    free(grown);
    for (size_t at = 0; at < 500; at++) free(live[at].block);
    puts("ok");
    return 0;
}
