//! Blocks that grow.
//!
//! Invariant: what was written before a growth is there after it; the whole content is compared at the end.

use crate::block::CORRUPT;
use crate::gang::{Measured, Plan, gang};
use crate::probe::Quiet;
use crate::rng::Rng;

fn expect(intact: bool, what: &str) {
    if !intact {
        eprintln!("{what} lost its content while it grew");
        std::process::exit(CORRUPT);
    }
}

/// Pushes 8-byte values until the vector holds 256 MiB.
pub fn vec_to_256_mib(plan: Plan) -> Measured {
    let count = plan.count((256 << 20) / 8) as u64;
    gang::<Quiet>(plan, |_, _, gate| {
        let mut values = Vec::new();
        gate.start();
        (0..count).for_each(|i| values.push(i));
        gate.end(count);
        expect(values.iter().copied().eq(0..count), "a vector");
    })
}

/// 64 byte strings that grow in turn by exact small steps to 4 KiB, again and again.
pub fn many_small(plan: Plan) -> Measured {
    const STRINGS: usize = 64;
    const LIMIT: usize = 4096;
    let rounds = plan.share(200);
    gang::<Quiet>(plan, |index, _, gate| {
        let mut rng = Rng::new(index as u64);
        let mut steps = 0u64;
        gate.start();
        for round in 0..rounds {
            let mut strings: [Vec<u8>; STRINGS] = [const { Vec::new() }; STRINGS];
            while strings[0].len() < LIMIT {
                let more = rng.within(8, 40);
                for (i, string) in strings.iter_mut().enumerate() {
                    string.reserve_exact(more);
                    string.resize(string.len() + more, (round + i) as u8);
                    steps += 1;
                }
            }
            for (i, string) in strings.iter().enumerate() {
                expect(string.iter().all(|byte| *byte == (round + i) as u8), "a string");
            }
        }
        gate.end(steps);
    })
}
