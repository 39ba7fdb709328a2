// Frees and allocations at the very end: thread_local and static destructors, exit handlers, functions of the loader.
#include "check.h"
#include <memory>
#include <string>
#include <thread>
#include <vector>

struct Holder {
    std::vector<std::string> words;
    const char *name;
    explicit Holder(const char *name) : name(name) { grow(50); }
    void grow(int count)
    {
        for (int i = 0; i < count; i++) words.push_back(std::string(100 + (size_t)i, name[0]));
    }
    ~Holder()
    {
        grow(20); // a destructor may also allocate
        for (auto &word : words)
            for (char letter : word) CHECK(letter == name[0]);
    }
};

static Holder at_static_end("static");
static thread_local Holder at_thread_end("thread");
static thread_local std::unique_ptr<Holder> made_by_other;
static void *from_constructor;

__attribute__((constructor(101))) static void very_early()
{
    from_constructor = malloc(333);
    fill(from_constructor, 333, 1);
}

__attribute__((destructor(101))) static void very_late()
{
    CHECK(holds(from_constructor, 333, 1));
    free(from_constructor);
    char *text = strdup("after everything else");
    CHECK(strlen(text) == 21);
    free(text);
    fputs("very late\n", stderr);
}

static void *left_for_exit;
static void at_exit()
{
    free(left_for_exit);
    delete new Holder("exit");
}

int main()
{
    left_for_exit = malloc(5000);
    CHECK(atexit(at_exit) == 0);
    for (int round = 0; round < 200; round++) {
        auto gift = std::make_unique<Holder>("gift");
        std::thread([&gift] {
            at_thread_end.grow(10);
            made_by_other = std::move(gift); // freed here, after this thread's function, made elsewhere
        }).join();
    }
    at_thread_end.grow(10); // the main thread's own, destroyed before static destructors
    made_by_other = std::make_unique<Holder>("main");
    puts("ok");
}
