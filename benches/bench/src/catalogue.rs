//! The list of workloads: what the driver schedules, what the worker runs and what the report explains.
//!
//! Invariant: a workload has exactly one entry here and one function in the worker, under the same name; the
//! worker's tests run every entry at a small scale.

/// What a workload does to an allocator, and how it is scheduled.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// The name used on the command line, in results and in plots.
    pub name: &'static str,
    /// What one operation is, for "time per operation".
    pub op: &'static str,
    /// What it stresses and where its description comes from, in one paragraph.
    pub about: &'static str,
    /// Numbers of threads of a full run.
    pub threads: &'static [usize],
    /// Numbers of threads of a quick run; empty where the quick run leaves the workload out.
    pub quick: &'static [usize],
    /// How the goals group it.
    pub family: Family,
    /// Whether a second run samples the latency of single operations.
    pub latency: bool,
    /// Whether a further run records resident memory over time.
    pub timeline: bool,
}

/// The family of a workload: goals are stated over families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Allocation and free of one block of one size.
    Pair,
    /// Patterns of many blocks.
    Pattern,
    /// Server-like patterns in which threads meet.
    Shared,
    /// Growth of one block.
    Grow,
    /// Programs as people write them.
    Real,
    /// Memory over time is the point.
    Memory,
    /// Whole processes.
    Process,
}

const PAIR: Workload = Workload {
    name: "",
    op: "allocate + free",
    about: "",
    threads: &[1],
    quick: &[],
    family: Family::Pair,
    latency: false,
    timeline: false,
};

const PATTERN: Workload = Workload { threads: &[1, 2, 8], family: Family::Pattern, ..PAIR };
const SHARED: Workload = Workload { threads: &[1, 2, 8], family: Family::Shared, ..PAIR };
const REAL: Workload = Workload { threads: &[1], family: Family::Real, ..PAIR };

/// Every workload, in the order of the report.
pub const WORKLOADS: &[Workload] = &[
    Workload { name: "pair-8", about: PAIR_ABOUT, ..PAIR },
    Workload {
        name: "pair-64",
        about: PAIR_ABOUT,
        threads: &[1, 2, 8],
        quick: &[1, 2],
        latency: true,
        ..PAIR
    },
    Workload { name: "pair-256", about: PAIR_ABOUT, ..PAIR },
    Workload { name: "pair-1k", about: PAIR_ABOUT, ..PAIR },
    Workload { name: "pair-4k", about: PAIR_ABOUT, threads: &[1, 2], quick: &[1], ..PAIR },
    Workload { name: "pair-16k", about: PAIR_ABOUT, ..PAIR },
    Workload { name: "pair-64k", about: PAIR_ABOUT, ..PAIR },
    Workload { name: "pair-256k", about: PAIR_ABOUT, ..PAIR },
    Workload { name: "pair-1m", about: PAIR_ABOUT, quick: &[1], ..PAIR },
    Workload { name: "pair-4m", about: PAIR_ABOUT, ..PAIR },
    Workload {
        name: "lifo",
        about: "Fills a stack of 1000 blocks of 8 to 1024 bytes and empties it from the top. The order that free \
                lists like best; it shows the cost of refilling a list when the stack grows and of flushing it \
                when the stack shrinks.",
        quick: &[1],
        ..PATTERN
    },
    Workload {
        name: "fifo",
        about: "Keeps a queue of 1000 blocks of 8 to 1024 bytes: frees the oldest, allocates a new one at the end. \
                The block just freed is never the one a last-freed-first list will hand out warm, so it shows \
                what locality the allocator's own order brings.",
        ..PATTERN
    },
    Workload {
        name: "random-live-10k",
        about: "Holds 10 000 blocks of 16 to 512 bytes (small ones more often) and replaces one at random each \
                step: the steady state of most long-lived programs, with a working set that fits the caches.",
        quick: &[1, 2],
        latency: true,
        ..PATTERN
    },
    Workload {
        name: "random-live-1m",
        about: "The same with one million live blocks, shared out among the threads: every free touches cold \
                memory, so metadata layout and translation-buffer misses decide.",
        threads: &[1, 2],
        timeline: true,
        ..PATTERN
    },
    Workload {
        name: "mixed",
        about: "Replaces a random one of 1000 live blocks; 80 % are up to 256 bytes, 15 % up to 8 KiB, 4 % up to \
                128 KiB and 1 % up to 1 MiB, all sizes known only at run time. Small, medium and large paths \
                meet in one loop.",
        quick: &[1],
        latency: true,
        ..PATTERN
    },
    Workload {
        name: "remote-free",
        about: "A ring of threads: each allocates batches of 256 small blocks, hands them to its neighbour and \
                frees the batches it is handed, so every free is remote and every thread both sends and receives.",
        threads: &[2, 8],
        quick: &[2],
        latency: true,
        ..SHARED
    },
    Workload {
        name: "larson",
        about: "A server as Larson and Krishnan describe it (Memory Allocation for Long-Running Server \
                Applications, ISMM 1998): each thread owns an array of blocks of 8 to 1000 bytes and replaces \
                random ones; after some time it ends and a new thread inherits the array, so that blocks are \
                freed by threads other than their allocators.",
        quick: &[2],
        latency: true,
        ..SHARED
    },
    Workload {
        name: "xmalloc",
        about: "Producer and consumer as Lever and Boreham describe them (malloc() Performance in a Multithreaded \
                Linux Environment, USENIX 2000): half of the threads allocate batches and put them into one \
                shared queue, the other half takes batches out and frees them; memory flows one way only.",
        threads: &[2, 8],
        latency: true,
        ..SHARED
    },
    Workload {
        name: "cache-scratch",
        op: "allocate + 1000 writes + free",
        about: "Passive false sharing, after Hoard (Berger and others, ASPLOS 2000): the main thread allocates one \
                8-byte block per thread, each thread frees its own and then allocates, writes and frees blocks of \
                8 bytes. An allocator that hands the freed neighbours of one cache line to different threads \
                makes them slow each other down.",
        ..SHARED
    },
    Workload {
        name: "cache-thrash",
        op: "allocate + 1000 writes + free",
        about: "Active false sharing, after Hoard (Berger and others, ASPLOS 2000): every thread allocates an \
                8-byte block, writes it a thousand times and frees it. An allocator that serves several threads \
                from one cache line makes them slow each other down.",
        threads: &[2, 8],
        ..SHARED
    },
    Workload {
        name: "shbench",
        about: "After MicroQuill's SmartHeap benchmark as the literature describes it: batches of blocks of 1 to \
                1000 bytes in which small sizes are far more frequent, freed partly in the order of allocation, \
                partly in reverse and partly interleaved with new allocations.",
        quick: &[2],
        ..SHARED
    },
    Workload {
        name: "alloc-test",
        about: "After the alloc-test of the OLogN project as the literature describes it: a table of slots per \
                thread, visited at random; an empty slot is filled with a block whose size follows a power law, \
                a full one is freed, so the live set wanders as it does in simulations of real programs.",
        latency: true,
        ..SHARED
    },
    Workload {
        name: "mstress",
        op: "allocate, free or exchange",
        about: "After the stress test that mimalloc's authors describe (Leijen and others, TR-2019-18): threads \
                allocate objects of skewed sizes (few are large), keep some, free others, and exchange random \
                ones with a shared table, so that objects migrate and die on other threads; threads restart \
                between rounds.",
        quick: &[2],
        latency: true,
        timeline: true,
        ..SHARED
    },
    Workload {
        name: "thread-churn",
        op: "thread life with 200 blocks",
        about: "Short-lived threads: each allocates 200 blocks, frees half and leaves the other half to be freed by \
                the thread that joins it. Shows the price of making and abandoning a thread's heap.",
        ..SHARED
    },
    Workload {
        name: "realloc-grow",
        op: "push of 8 bytes",
        about: "Pushes 8-byte values into a Vec until it holds 256 MiB, then checks them. Growth in place and \
                mremap turn the copies into nothing; otherwise each doubling copies all and touches twice the \
                pages.",
        threads: &[1],
        quick: &[1],
        family: Family::Grow,
        timeline: true,
        ..PAIR
    },
    Workload {
        name: "realloc-small",
        op: "growth step",
        about: "Strings that grow by a few bytes at a time to 4 KiB, 64 of them in turn: the same-class \
                reallocation should be one comparison, a move should copy only what is used.",
        threads: &[1],
        family: Family::Grow,
        ..PAIR
    },
    Workload {
        name: "calloc",
        about: "Zeroed blocks of 64 bytes to 256 KiB whose zeroes are checked and which are then dirtied and freed: \
                an allocator that knows which memory is still zero saves the clearing, one that is wrong fails.",
        threads: &[1, 2],
        ..PATTERN
    },
    Workload {
        name: "large",
        about: "Keeps eight blocks between 64 KiB and 32 MiB (sizes spread evenly over the logarithm), replaces one \
                at random and writes to each of its pages. Returning such blocks to the system at once costs a \
                page fault per page; keeping them all costs memory.",
        quick: &[1],
        timeline: true,
        threads: &[1, 2],
        ..PATTERN
    },
    Workload {
        name: "fragmentation",
        about: "A long run whose sizes shift: a live set of about 32 MiB is replaced at random by blocks of the next \
                size range while a tenth of every earlier range stays. What earlier sizes leave behind must be of \
                use to later ones, or memory grows with each shift.",
        threads: &[1],
        family: Family::Memory,
        timeline: true,
        ..PATTERN
    },
    Workload {
        name: "burst-and-idle",
        about: "Holds 16 MiB, allocates 256 MiB of mixed blocks on top, frees the burst, and then does nothing for a \
                second, its threads asleep. The memory that is still resident then is what the program's \
                neighbours pay for.",
        threads: &[1, 2],
        quick: &[1],
        family: Family::Memory,
        timeline: true,
        ..PATTERN
    },
    Workload {
        name: "startup",
        op: "process from start to exit",
        about: "A process that starts, makes a few small allocations and exits, timed from outside: what an \
                allocator costs a program that hardly uses it.",
        quick: &[1],
        threads: &[1],
        family: Family::Process,
        ..PAIR
    },
    Workload {
        name: "json",
        op: "parse + edit + print of 60 kB",
        about: "Parses a JSON document into a tree with serde_json, edits a part of it, prints it and compares the \
                length: many strings, vectors and tree nodes of short life.",
        threads: &[1, 2],
        quick: &[1],
        ..REAL
    },
    Workload {
        name: "btree",
        op: "insert or remove",
        about: "Churn of a BTreeMap from integers to boxed integers: tree nodes are split and merged while entries \
                come and go at random.",
        ..REAL
    },
    Workload {
        name: "hashmap",
        op: "insert or remove",
        about: "Churn of a HashMap from short strings to short vectors: entries of two or three blocks each and \
                table growth by doubling.",
        threads: &[1, 2],
        quick: &[1],
        ..REAL
    },
    Workload {
        name: "intern",
        op: "lookup or insert",
        about: "String interning: words drawn from a skewed distribution are looked up and, when new, copied and \
                kept; the table is dropped and rebuilt several times.",
        ..REAL
    },
    Workload {
        name: "columns",
        op: "update of one cell",
        about: "A table of 24 columns, each a vector of 5 000 to 40 000 numbers, updated row by row: the same element of \
                every column in turn, as column stores and structures of arrays do it. If all vectors start at the same \
                place of a page, their elements fight for the ways of one cache set.",
        ..REAL
    },
    Workload {
        name: "syn",
        op: "parse of one source file",
        about: "Parses a large Rust source file into a syntax tree with syn and drops the tree: deep structures of \
                boxes and vectors, all of one lifetime.",
        ..REAL
    },
    Workload {
        name: "echo",
        op: "request + reply",
        about: "An asynchronous echo server on the loopback interface under tokio: a task per connection, a buffer \
                per request, futures boxed and dropped. Mostly system calls, as real servers are.",
        ..REAL
    },
];

const PAIR_ABOUT: &str = "Allocates one block of the size in the name, with a layout known at compile time, writes a \
                          word to it, reads it back and frees it: the hit path and nothing else. Large sizes show \
                          whether a block goes back to the system each time.";

/// The workload of that name.
pub fn find(name: &str) -> Option<&'static Workload> {
    WORKLOADS.iter().find(|w| w.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_workload_is_explained() {
        for (i, w) in WORKLOADS.iter().enumerate() {
            assert!(WORKLOADS[..i].iter().all(|other| other.name != w.name), "{} appears twice", w.name);
            assert!(w.about.len() > 80, "{} is not explained", w.name);
            assert!(!w.threads.is_empty(), "{} never runs", w.name);
            assert!(w.quick.iter().all(|t| w.threads.contains(t)), "{}: quick is not part of full", w.name);
        }
    }
}
