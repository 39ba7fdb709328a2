//! A pool on a device under OpenCL: allocate, copy there and back, free.
//!
//! `cargo run -p terrane-gpu --features opencl --example opencl_pool` (it says which device it found)

mod rounds;

use std::error::Error;
use terrane_gpu::OpenCl;

fn main() -> Result<(), Box<dyn Error>> {
    match OpenCl::open(0) {
        Ok(device) => rounds::run(&device),
        Err(why) => {
            println!("no device: {why}");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_runs() {
        super::main().unwrap();
    }
}
