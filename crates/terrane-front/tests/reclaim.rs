//! Deferred frees: nothing is freed under a reader, everything is freed after, and garbage is bounded while one stalls.
#![cfg(all(feature = "reclaim", not(loom)))]

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::thread;
use terrane_front::epoch::{BUFFER, Epochs};
use terrane_front::hazard::Hazards;

#[repr(C)]
struct Value {
    number: AtomicU64,
    check: AtomicU64,
}

const LAYOUT: Layout = Layout::new::<Value>();

fn value(number: u64) -> *mut Value {
    // SAFETY: the alignment is a power of two; the block is long enough.
    unsafe {
        let block = terrane_front::alloc(LAYOUT.size(), LAYOUT.align()).cast::<Value>();
        block.write(Value { number: AtomicU64::new(number), check: AtomicU64::new(!number) });
        block
    }
}

/// A value never changes while its block is live: a late reader of a freed block that was used again sees another one.
fn check(value: *mut Value) {
    // SAFETY: the caller protects the block.
    let value = unsafe { &*value };
    let number = value.number.load(Ordering::Relaxed);
    for _ in 0..20 {
        assert_eq!(value.number.load(Ordering::Relaxed), number, "a block was freed under its reader");
        assert_eq!(value.check.load(Ordering::Relaxed), !number, "a block was freed under its reader");
        std::hint::spin_loop();
    }
}

fn block(value: *mut Value) -> NonNull<u8> {
    NonNull::new(value.cast()).unwrap()
}

#[test]
fn a_stalled_reader_makes_epochs_refuse_at_the_limit_and_the_backlog_goes_with_it() {
    let limit = 100 * BUFFER * LAYOUT.size();
    let epochs = Epochs::new(limit);
    let (stalled, writer) = (epochs.register(), epochs.register());
    let guard = stalled.pin();
    let mut retired = 0;
    let refused = loop {
        // SAFETY: the block is new, and nobody else knows it.
        match unsafe { writer.retire(block(value(retired)), LAYOUT) } {
            Ok(()) => retired += 1,
            Err(backlog) => break backlog,
        }
        assert!(epochs.garbage() <= limit, "{} bytes of garbage", epochs.garbage());
        assert!(retired as usize <= limit / LAYOUT.size() + BUFFER, "never refused");
    };
    assert_eq!((refused.limit, retired as usize), (limit, limit / LAYOUT.size() + BUFFER));
    drop(guard);
    // SAFETY: the block was refused: it is still ours, and was not retired.
    unsafe { writer.retire(refused.block, LAYOUT) }.unwrap();
    for _ in 0..100 {
        writer.flush();
    }
    assert_eq!(epochs.garbage(), 0);
}

/// Blocks of a length that nothing else in these tests has, so that what is freed comes back to this thread's next calls.
const RARE: Layout = Layout::new::<[u64; 85]>();

fn rare(count: usize) -> Vec<NonNull<u8>> {
    // SAFETY: the alignment is a power of two.
    (0..count)
        .map(|_| NonNull::new(unsafe { terrane_front::alloc(RARE.size(), RARE.align()) }).unwrap())
        .collect()
}

/// How many of `blocks` were freed: they are among those that the allocator hands out now. A slab that became empty may serve other
/// lengths and threads meanwhile, so of all that were freed, not all are seen: some are, and none if none was.
fn freed(blocks: &[NonNull<u8>]) -> usize {
    let handed_out = rare(blocks.len() * 4);
    let count = blocks.iter().filter(|block| handed_out.contains(block)).count();
    for block in handed_out {
        // SAFETY: just made, with this layout.
        unsafe { terrane_front::free_sized(block.as_ptr(), RARE.size(), RARE.align()) };
    }
    count
}

#[test]
fn what_is_retired_is_freed_after_the_last_guard_and_not_before() {
    let epochs = Epochs::new(1 << 20);
    let (reader, writer) = (epochs.register(), epochs.register());
    let blocks = rare(BUFFER);
    let guard = reader.pin();
    for block in &blocks {
        // SAFETY: the block is new, and nobody else knows it.
        unsafe { writer.retire(*block, RARE) }.unwrap();
    }
    assert!(writer.flush());
    (0..10).for_each(|_| _ = writer.flush());
    assert_eq!(freed(&blocks), 0, "freed under a guard");
    assert_eq!(epochs.garbage(), BUFFER * RARE.size());
    drop(guard);
    (0..10).for_each(|_| _ = writer.flush());
    assert!(freed(&blocks) > BUFFER / 4, "not freed");
    assert_eq!(epochs.garbage(), 0);
}

#[test]
fn what_a_participant_that_ends_had_gathered_is_freed_after_the_last_guard_and_not_before() {
    let epochs = Epochs::new(1 << 20);
    let reader = epochs.register();
    let blocks = rare(BUFFER / 2);
    let guard = reader.pin();
    let writer = epochs.register();
    for block in &blocks {
        // SAFETY: the block is new, and nobody else knows it.
        unsafe { writer.retire(*block, RARE) }.unwrap();
    }
    drop(writer);
    (0..10).for_each(|_| _ = reader.flush());
    assert_eq!(freed(&blocks), 0, "freed under a guard");
    drop(guard);
    (0..10).for_each(|_| _ = reader.flush());
    assert!(freed(&blocks) > BUFFER / 8, "not freed");
}

#[test]
fn what_is_retired_is_freed_under_hazard_pointers_but_for_what_is_protected() {
    let hazards = Hazards::new(4);
    let (mut reader, mut writer) = (hazards.register().unwrap(), hazards.register().unwrap());
    let blocks = rare(BUFFER);
    let source = AtomicPtr::new(blocks[3].as_ptr());
    assert_eq!(reader.protect(&source), blocks[3].as_ptr());
    for block in &blocks {
        // SAFETY: the block is new; its only source is read no more, but for what was protected before.
        unsafe { writer.retire(*block, RARE) };
    }
    writer.scan();
    assert_eq!((freed(&blocks[3..4]), writer.waiting()), (0, 1));
    assert!(freed(&blocks) > BUFFER / 4);
    reader.clear();
    writer.scan();
    assert_eq!(writer.waiting(), 0);
}

#[test]
fn readers_under_guards_never_see_a_freed_block() {
    let epochs = Epochs::new(1 << 20);
    let (source, end) = (AtomicPtr::new(value(0)), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let me = epochs.register();
                while !end.load(Ordering::Relaxed) {
                    let _guard = me.pin();
                    check(source.load(Ordering::Acquire));
                }
            });
        }
        let me = epochs.register();
        for number in 1..20_000 {
            let mut old = block(source.swap(value(number), Ordering::AcqRel));
            // SAFETY: the block was just taken out of its only source.
            while let Err(backlog) = unsafe { me.retire(old, LAYOUT) } {
                old = backlog.block;
                thread::yield_now();
            }
        }
        end.store(true, Ordering::Relaxed);
    });
    let me = epochs.register();
    // SAFETY: the readers are gone.
    unsafe { me.retire(block(source.into_inner()), LAYOUT) }.unwrap();
    for _ in 0..100 {
        me.flush();
    }
    assert_eq!(epochs.garbage(), 0);
}

#[test]
fn a_stalled_reader_holds_back_one_block_under_hazard_pointers() {
    let hazards = Hazards::new(4);
    let (mut stalled, mut writer) = (hazards.register().unwrap(), hazards.register().unwrap());
    let source = AtomicPtr::new(value(0));
    let held = stalled.protect(&source);
    for number in 1..10_000 {
        let old = source.swap(value(number), Ordering::AcqRel);
        // SAFETY: the block was just taken out of its only source.
        unsafe { writer.retire(block(old), LAYOUT) };
        assert!(writer.waiting() < hazards.bound(), "{} blocks wait", writer.waiting());
        check(held);
    }
    writer.scan();
    assert_eq!(writer.waiting(), 1);
    drop(writer); // leaves the block to whoever looks next
    stalled.clear();
    stalled.scan();
    assert_eq!(stalled.waiting(), 0);
    // SAFETY: taken out of its only source.
    unsafe { stalled.retire(block(source.into_inner()), LAYOUT) };
}

#[test]
fn readers_under_hazard_pointers_never_see_a_freed_block() {
    let hazards = Hazards::new(4);
    let (source, end) = (AtomicPtr::new(value(0)), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut me = hazards.register().unwrap();
                while !end.load(Ordering::Relaxed) {
                    check(me.protect(&source));
                    me.clear();
                }
            });
        }
        let mut me = hazards.register().unwrap();
        for number in 1..20_000 {
            let old = source.swap(value(number), Ordering::AcqRel);
            // SAFETY: the block was just taken out of its only source.
            unsafe { me.retire(block(old), LAYOUT) };
        }
        end.store(true, Ordering::Relaxed);
        assert!(me.waiting() < hazards.bound());
    });
    let mut me = hazards.register().unwrap();
    // SAFETY: the readers are gone.
    unsafe { me.retire(block(source.into_inner()), LAYOUT) };
}

#[test]
fn a_group_has_no_more_members_than_slots() {
    let hazards = Hazards::new(1);
    let member = hazards.register().unwrap();
    assert!(hazards.register().is_none());
    drop(member);
    assert!(hazards.register().is_some());
}
