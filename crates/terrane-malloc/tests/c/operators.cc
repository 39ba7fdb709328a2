// C++ operators new and delete in every form, and what the standard says about failure.
#include "check.h"
#include <malloc.h>
#include <algorithm>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

static int handler_calls;

struct alignas(128) Wide {
    char bytes[300];
};

static void every_form_of_new_and_delete_pairs_up()
{
    const size_t sizes[] = {0, 1, 8, 16, 24, 100, 128, 1000, 4096, 40000, 3000000};
    for (size_t size : sizes) {
        void *a = ::operator new(opaque(size)), *b = ::operator new[](opaque(size));
        void *c = ::operator new(opaque(size), std::nothrow), *d = ::operator new[](opaque(size), std::nothrow);
        void *all[] = {a, b, c, d};
        for (int i = 0; i < 4; i++) {
            CHECK(all[i] != nullptr && is_aligned(all[i], 16));
            for (int j = 0; j < i; j++) CHECK(all[i] != all[j]);
            fill(all[i], size, (unsigned)i);
        }
        for (int i = 0; i < 4; i++) CHECK(holds(all[i], size, (unsigned)i));
        ::operator delete(a);
        ::operator delete[](b, size);
        ::operator delete(c, std::nothrow);
        ::operator delete[](d, std::nothrow);
        ::operator delete(::operator new(opaque(size)), size);
        for (size_t align = 8; align <= 1 << 16; align *= 2) {
            std::align_val_t aligned{align};
            void *e = ::operator new(opaque(size), aligned), *f = ::operator new[](opaque(size), aligned);
            void *g = ::operator new(opaque(size), aligned, std::nothrow);
            void *h = ::operator new[](opaque(size), aligned, std::nothrow);
            for (void *block : {e, f, g, h}) CHECK(block != nullptr && is_aligned(block, align));
            ::operator delete(e, aligned);
            ::operator delete[](f, size, aligned);
            ::operator delete(g, aligned, std::nothrow);
            ::operator delete[](h, aligned, std::nothrow);
            ::operator delete(::operator new(opaque(size), aligned), size, aligned);
            ::operator delete[](::operator new[](opaque(size), aligned), aligned);
        }
    }
    ::operator delete(nullptr);
    ::operator delete[](nullptr);
    ::operator delete(nullptr, std::align_val_t{64});
}

static void failure_throws_or_gives_null()
{
    const size_t impossible[] = {SIZE_MAX, SIZE_MAX / 2, (size_t)PTRDIFF_MAX + 1};
    for (size_t size : impossible) {
        int caught = 0;
        try {
            ::operator delete(::operator new(opaque(size)));
        } catch (const std::bad_alloc &) {
            caught++;
        }
        try {
            ::operator delete[](::operator new[](opaque(size)));
        } catch (const std::bad_alloc &) {
            caught++;
        }
        try {
            // Some libraries round the size up to the alignment without a look at the carry; that is not ours to test.
            ::operator delete(::operator new(opaque(size - 4096), std::align_val_t{256}), std::align_val_t{256});
        } catch (const std::bad_alloc &) {
            caught++;
        }
        CHECK(caught == 3);
        CHECK(::operator new(opaque(size), std::nothrow) == nullptr);
        CHECK(::operator new[](opaque(size), std::nothrow) == nullptr);
        CHECK(::operator new(opaque(size - 4096), std::align_val_t{64}, std::nothrow) == nullptr);
    }
}

static void the_new_handler_is_asked_until_it_gives_up()
{
    handler_calls = 0;
    std::set_new_handler([] {
        if (++handler_calls == 3) std::set_new_handler(nullptr);
    });
    bool thrown = false;
    try {
        ::operator delete(::operator new(opaque(SIZE_MAX / 2)));
    } catch (const std::bad_alloc &) {
        thrown = true;
    }
    CHECK(thrown && handler_calls == 3);
    handler_calls = 0;
    std::set_new_handler([] {
        handler_calls++;
        throw std::bad_alloc();
    });
    CHECK(::operator new(opaque(SIZE_MAX / 2), std::nothrow) == nullptr);
    CHECK(handler_calls == 1);
    std::set_new_handler(nullptr);
}

static void the_memory_is_that_of_malloc()
{
    void *block = ::operator new(opaque(100));
    CHECK(malloc_usable_size(block) >= 100);
    ::operator delete(block);
}

static long work(unsigned seed)
{
    std::vector<std::unique_ptr<Wide>> wide;
    std::map<std::string, std::vector<std::string>> words;
    uint64_t state = seed;
    for (int i = 0; i < 3000; i++) {
        wide.push_back(std::make_unique<Wide>());
        CHECK(is_aligned(wide.back().get(), 128));
        words[std::to_string(next_number(&state) % 300)].push_back(std::string(next_number(&state) % 200, 'y'));
        if (i % 7 == 0) wide.erase(wide.begin());
    }
    long sum = 0;
    for (auto &pair : words)
        for (auto &word : pair.second) sum += (long)word.size();
    return sum;
}

int main()
{
    every_form_of_new_and_delete_pairs_up();
    failure_throws_or_gives_null();
    the_new_handler_is_asked_until_it_gives_up();
    the_memory_is_that_of_malloc();
    std::vector<std::thread> threads;
    std::vector<long> sums(8);
    for (unsigned i = 0; i < 8; i++) threads.emplace_back([&sums, i] { sums[i] = work(i % 2 + 1); });
    for (auto &thread : threads) thread.join();
    for (unsigned i = 2; i < 8; i++) CHECK(sums[i] == sums[i % 2]);
    puts("ok");
}
