/* Threads that end in the middle of an allocation: by pthread_exit and by cancellation inside the new-handler, which operator
 * new calls when memory is out. Nothing that the thread held inside the allocator is lost: others go on, and so does memory. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "check.h"
#include <new>
#include <pthread.h>

extern "C" int terrane_verify(void) __attribute__((weak));

static __thread int way;
static int handled;

static void handler()
{
    __atomic_fetch_add(&handled, 1, __ATOMIC_RELAXED);
    if (way == 0) pthread_exit((void *)7);
    if (way == 1) {
        pthread_cancel(pthread_self());
        pthread_testcancel();
    }
    throw std::bad_alloc();
}

static void *allocate(void *argument)
{
    way = (int)(intptr_t)argument;
    unsigned char *kept[50];
    for (unsigned i = 0; i < 50; i++) {
        kept[i] = new unsigned char[100 + i * 100];
        fill(kept[i], 100 + i * 100, i);
    }
    for (unsigned i = 0; i < 50; i++) {
        CHECK(holds(kept[i], 100 + i * 100, i));
        delete[] kept[i];
    }
    try {
        /* No address space is as long. */
        void *volatile block = ::operator new(opaque((size_t)1 << 60));
        CHECK(block == nullptr);
    } catch (const std::bad_alloc &) {
        CHECK(way == 2);
        return (void *)9;
    }
    return nullptr;
}

int main()
{
    std::set_new_handler(handler);
    for (int round = 0; round < 600; round++) {
        pthread_t threads[3];
        for (int i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], nullptr, allocate, (void *)(intptr_t)i) == 0);
        void *expected[3] = {(void *)7, PTHREAD_CANCELED, (void *)9};
        for (int i = 0; i < 3; i++) {
            void *result = nullptr;
            CHECK(pthread_join(threads[i], &result) == 0 && result == expected[i]);
        }
    }
    CHECK(handled == 1800);
    if (on_terrane()) {
        CHECK(terrane_verify != nullptr && terrane_verify() == 0);
    }
    puts("ok");
    return 0;
}
