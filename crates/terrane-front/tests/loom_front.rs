//! Models of the front end's protocols, over the production code: heap records, counting, hazard pointers, the limit of
//! garbage. The arguments are in `docs/src/protocols/`: heap-records.md, statistics.md, hazard-pointers.md. Each model has twins
//! with a planted fault, which must fail.
#![cfg(loom)]

mod harness;

use harness::{check, front, models};
use loom::sync::Arc;
use loom::thread;
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize as Plain, Ordering};
use terrane_core::sync::atomic::{AtomicPtr, AtomicU64 as ModelU64, Ordering as ModelOrdering};
use terrane_core::sync::cell::UnsafeCell;
use terrane_front::fault::Fault;
use terrane_front::hazard::Hazards;
use terrane_front::reclaim::{Budget, model::on_free};
use terrane_front::records::{Record, Records};
use terrane_slab::fault::{Fault as SlabFault, plant as plant_in_slab};
use terrane_slab::stats::{Counter, add_up};

fn slab(fault: SlabFault) {
    plant_in_slab(Some(fault));
}

models! {
    model_records: records, threads 3, faults [
        fault_records_release_relaxed: front(Fault::RecordRelaxed),
        fault_records_taken_twice: front(Fault::RecordUnexchanged),
        fault_records_listed_relaxed: front(Fault::ListRelaxed)
    ];
    model_statistics: statistics, threads 3, faults [
        fault_statistics_record_relaxed: front(Fault::RecordRelaxed),
        fault_statistics_count_relaxed: slab(SlabFault::CountRelaxed),
        fault_statistics_begun_first: slab(SlabFault::BegunFirst)
    ];
    model_hazards: hazards, threads 2, faults [
        fault_hazards_protect_unfenced: front(Fault::ProtectUnfenced),
        fault_hazards_protect_unchecked: front(Fault::ProtectUnchecked),
        fault_hazards_scan_unfenced: front(Fault::ScanUnfenced),
        fault_hazards_clear_relaxed: front(Fault::ClearRelaxed)
    ];
    model_budget: budget, threads 3, faults [fault_budget_torn: front(Fault::BudgetTorn)];
}

/// What a thread counts, in words that loom watches.
struct Counts {
    begun: Counter<ModelU64>,
    ended: Counter<ModelU64>,
}

/// What stands for a heap: its user writes to it without any lock, and its counters are part of it.
struct Heap {
    uses: u32,
    counts: Counts,
}

fn record() -> Option<&'static Record<Heap, Counts>> {
    let zero = || Counter::of(ModelU64::new(0));
    let heap = Heap { uses: 0, counts: Counts { begun: zero(), ended: zero() } };
    let place = Box::leak(Box::<Record<Heap, Counts>>::new_uninit());
    // SAFETY: the place is leaked, so it is there for good.
    Some(unsafe { Record::emplace(place.as_mut_ptr(), heap, |heap| &raw const (*heap).counts) })
}

/// Uses the heap of a record as a thread does that begins, works and ends.
fn live_and_end(records: &Records<Heap, Counts>) {
    let record = records.acquire(record).unwrap();
    // SAFETY: this thread has the record.
    unsafe { record.heap(|heap| heap.uses += 1) };
    record.release();
}

/// Threads begin and end, and take the records of those that ended; one walks over all records meanwhile. No record is in two
/// hands, and none is lost.
fn records(iterations: &'static AtomicU64) {
    check(3, iterations, || {
        let records = Arc::new(Records::new());
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let records = records.clone();
                thread::spawn(move || live_and_end(&records))
            })
            .collect();
        let walker = {
            let records = records.clone();
            thread::spawn(move || {
                for record in records.all() {
                    // Reading a counter of a record that is not whole would be a race with its making.
                    assert_eq!(record.counters().begun.get(), 0);
                }
            })
        };
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        walker.join().unwrap();
        let mut uses = 0;
        for record in records.all() {
            assert!(!record.is_used());
            // SAFETY: the threads have ended.
            uses += unsafe { record.heap(|heap| heap.uses) };
        }
        assert_eq!(uses, 2, "a record was lost, or used by two at once");
    });
}

/// Something begins in one thread and ends in another, whose record a third takes over and goes on counting, while a reader adds
/// up. The reader never sees more ended than begun, and in the end nothing is lost or counted twice.
fn statistics(iterations: &'static AtomicU64) {
    check(3, iterations, || {
        let records: Arc<Records<Heap, Counts>> = Arc::new(Records::new());
        let sum = |records: &Records<Heap, Counts>| {
            let (mut ended, mut begun) = (0, 0);
            add_up(
                || records.all(),
                |record| ended += record.counters().ended.get(),
                |record| begun += record.counters().begun.get(),
            );
            (begun, ended)
        };
        // Both threads find a record that was made before they were.
        let (first, second) = (records.acquire(record).unwrap(), records.acquire(record).unwrap());
        first.release();
        second.release();
        let handed = Arc::new(ModelU64::new(0));
        let beginner = {
            let (records, handed) = (records.clone(), handed.clone());
            thread::spawn(move || {
                let record = records.acquire(record).unwrap();
                record.counters().begun.add(1);
                // The block goes to the other thread by some synchronisation of the program's.
                handed.store(1, ModelOrdering::Release);
                record.release();
            })
        };
        let ender = {
            let (records, handed) = (records.clone(), handed.clone());
            thread::spawn(move || {
                let record = records.acquire(record).unwrap();
                let got = handed.load(ModelOrdering::Acquire);
                if got == 1 {
                    record.counters().ended.add(1);
                }
                record.counters().begun.add(1);
                record.release();
                got
            })
        };
        let reader = {
            let records = records.clone();
            thread::spawn(move || {
                let (begun, ended) = sum(&records);
                assert!(ended <= begun, "{ended} ended of {begun} begun");
            })
        };
        beginner.join().unwrap();
        let ended = ender.join().unwrap();
        reader.join().unwrap();
        assert_eq!(sum(&records), (2, ended), "counts are lost, or counted twice");
    });
}

/// A block of the hazard model, which is written when it is freed.
struct Value(UnsafeCell<u32>);

/// A reader protects what a source holds and reads it, while a writer takes it out, retires it and scans: the block is freed
/// after the read, or not at all.
fn hazards(iterations: &'static AtomicU64) {
    static FREED: Plain = Plain::new(0);
    on_free(|block, _| {
        FREED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: whoever frees a block has it alone: loom checks exactly that.
        unsafe { (*block.cast::<Value>().as_ptr()).0.with_mut(|value| *value = 0) };
    });
    check(3, iterations, || {
        FREED.store(0, Ordering::Relaxed);
        let value = |number| Box::into_raw(Box::new(Value(UnsafeCell::new(number))));
        let (old, new) = (value(1), value(2));
        let shared = Arc::new((Hazards::new(2), AtomicPtr::new(old)));
        let reader = {
            let shared = shared.clone();
            thread::spawn(move || {
                let mut member = shared.0.register().unwrap();
                let found = member.protect(&shared.1);
                // SAFETY: the block is protected: loom checks exactly that.
                let number = unsafe { (*found).0.with(|value| *value) };
                assert!(number == 1 || number == 2, "a block was freed under its reader");
                member.clear();
            })
        };
        let (old, new) = (old.expose_provenance(), new.expose_provenance());
        let writer = {
            let shared = shared.clone();
            thread::spawn(move || {
                let mut member = shared.0.register().unwrap();
                let taken = shared.1.swap(std::ptr::with_exposed_provenance_mut(new), ModelOrdering::AcqRel);
                // SAFETY: the block was just taken out of its only source.
                unsafe { member.retire(NonNull::new(taken).unwrap().cast(), Layout::new::<Value>()) };
                member.scan();
            })
        };
        reader.join().unwrap();
        writer.join().unwrap();
        // A new member frees what those that left had to leave.
        shared.0.register().unwrap().scan();
        assert_eq!(FREED.load(Ordering::Relaxed), 1, "a retired block is freed once");
        for address in [old, new] {
            // SAFETY: made by a box; all threads have ended.
            drop(unsafe { Box::from_raw(std::ptr::with_exposed_provenance_mut::<Value>(address)) });
        }
    });
}

/// Two threads reserve and give back, each more than half, while a third looks: the limit holds at every moment.
fn budget(iterations: &'static AtomicU64) {
    check(3, iterations, || {
        let budget = Arc::new(Budget::new(100));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let budget = budget.clone();
                thread::spawn(move || {
                    let reserved = budget.reserve(60);
                    if reserved {
                        budget.give_back(60);
                    }
                    reserved
                })
            })
            .collect();
        let watcher = {
            let budget = budget.clone();
            thread::spawn(move || assert!(budget.used() <= budget.limit(), "more garbage than the limit"))
        };
        let reserved = threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>();
        watcher.join().unwrap();
        assert!(reserved.contains(&true), "both were refused although either would have fitted");
        assert_eq!(budget.used(), 0);
    });
}
