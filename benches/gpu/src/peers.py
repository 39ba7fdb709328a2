# One pool of another project, in a process of its own, by the lowest calls that Python reaches. Prints a line for each
# figure: name, length in bytes (0: mixed lengths between 2000 free blocks), nanoseconds a pair, and nanoseconds of the same
# loop over built-in functions of the same shape, which allocate nothing: what is Python's own.
import itertools, sys, time

SIZES = (256, 4 << 10, 64 << 10, 1 << 20, 2 << 20, 16 << 20, 256 << 20)
CALLS, ROUNDS = int(sys.argv[2]), int(sys.argv[3])


def odd(i):
    return 1024 + (i * 37 % 61) * 256


def pytorch():
    import torch
    torch.cuda.init()
    take, give = torch._C._cuda_cudaCachingAllocator_raw_alloc, torch._C._cuda_cudaCachingAllocator_raw_delete
    stream = torch.cuda.current_stream().cuda_stream
    fixed = lambda take, give: lambda n: lambda: give(take(n, stream))
    mixed = lambda take, give: lambda following: lambda: give(take(following(), stream))
    return (take, give), (max, abs), fixed, mixed, lambda n: take(n, stream), lambda held, n: give(held)


def cupy():
    import cupy
    take = cupy.cuda.MemoryPool().malloc
    # What is taken is given back when nobody refers to it.
    fixed = lambda take, _: lambda n: lambda: take(n)
    mixed = lambda take, _: lambda following: lambda: take(following())
    return (take, None), (abs, None), fixed, mixed, take, lambda held, n: None


def rmm():
    import rmm
    pool = rmm.mr.PoolMemoryResource(rmm.mr.CudaMemoryResource(), initial_pool_size=1 << 30)
    take, give = pool.allocate, pool.deallocate
    fixed = lambda take, give: lambda n: lambda: give(take(n), n)
    mixed = lambda take, give: lambda following: lambda: give(take(n := following()), n)
    return (take, give), (abs, max), fixed, mixed, take, give


def nanos(pair):
    pair()
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        for _ in range(CALLS):
            pair()
        rounds.append((time.perf_counter_ns() - start) / CALLS)
    return sorted(rounds)[ROUNDS // 2]


def report(size, pair, empty):
    print(size, nanos(pair), nanos(empty), sep="\t", flush=True)


real, built_in, fixed, mixed, take, give = {"PyTorch": pytorch, "CuPy": cupy, "RMM": rmm}[sys.argv[1]]()
for size in SIZES:
    report(size, fixed(*real)(size), fixed(*built_in)(size))
held = [(take(odd(i)), odd(i)) for i in range(4000)]
for i in range(0, 4000, 2):
    give(*held[i])
    held[i] = None
lengths = [odd(i) for i in range(61)]
report(0, mixed(*real)(itertools.cycle(lengths).__next__), mixed(*built_in)(itertools.cycle(lengths).__next__))
