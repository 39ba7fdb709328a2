//! The pools of other projects, where they are installed, each in a process of its own, at the lowest level that Python
//! reaches.

use crate::{Bench, Failure};
use std::process::Command;

const SCRIPT: &str = r#"
import time
def measure(name, pair):
    pair(); rounds = []
    for _ in range(5):
        start = time.perf_counter_ns()
        for _ in range(2000): pair()
        rounds.append((time.perf_counter_ns() - start) / 2000)
    print(f"{name}: {sorted(rounds)[2]:.0f} ns a pair (through Python)")
def torch_pair():
    import torch
    torch.cuda.init()
    a, d = torch._C._cuda_cudaCachingAllocator_raw_alloc, torch._C._cuda_cudaCachingAllocator_raw_delete
    s = torch.cuda.current_stream().cuda_stream
    return lambda n: (lambda: d(a(n, s)))
def cupy_pair():
    import cupy
    pool = cupy.cuda.MemoryPool()
    return lambda n: (lambda: pool.malloc(n))
def rmm_pair():
    import rmm
    pool = rmm.mr.PoolMemoryResource(rmm.mr.CudaMemoryResource(), initial_pool_size=1 << 30)
    return lambda n: (lambda: pool.deallocate(pool.allocate(n), n))
for name, make in (("PyTorch", torch_pair), ("CuPy", cupy_pair), ("RMM pool", rmm_pair)):
    try:
        pair = make()
    except Exception as why:
        print(f"{name}: skipped: {type(why).__name__}: {why}")
        continue
    for size in (256, 4 << 10, 64 << 10, 1 << 20, 2 << 20, 16 << 20, 256 << 20):
        measure(f"{name}, {size} B", pair(size))
"#;

/// Runs the script, on a real device only.
pub fn run(bench: &Bench) -> Result<(), Failure> {
    if !bench.real {
        println!("peers: PyTorch, CuPy and RMM need a device");
        return Ok(());
    }
    match Command::new("python3").args(["-c", SCRIPT]).output() {
        Ok(output) => print!("{}", String::from_utf8_lossy(&output.stdout)),
        Err(why) => println!("peers: skipped: python3: {why}"),
    }
    Ok(())
}
