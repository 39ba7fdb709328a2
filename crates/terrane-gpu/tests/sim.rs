//! The simulated device keeps the rules of streams, and finds those who do not.
#![cfg(not(loom))]

use terrane_gpu::sim::{Access, Call, Fault, Sim, SimConfig, Violation};
use terrane_gpu::{Device, DriverError, Streams};

fn small() -> SimConfig {
    SimConfig { capacity: 1 << 20, granularity: 64 << 10, ..SimConfig::default() }
}

#[test]
fn work_on_two_streams_is_a_race_unless_an_event_orders_it() {
    for ordered in [false, true] {
        let sim = Sim::with(small());
        let device = sim.device(0);
        let (a, b) = (device.stream_create().unwrap(), device.stream_create().unwrap());
        let event = device.event_create().unwrap();
        let address = device.alloc(4096).unwrap();
        // SAFETY: the memory is never freed.
        unsafe {
            device.fill(address, 1, 4096, a).unwrap();
            device.event_record(event, a).unwrap();
            if ordered {
                device.stream_wait(b, event).unwrap();
            }
            device.fill(address + 4000, 2, 96, b).unwrap();
        }
        let expected = Violation::Race {
            address: address + 4000,
            len: 96,
            stream: b.raw(),
            earlier: a.raw(),
            write: true,
            what: "cuMemsetD8Async",
        };
        assert_eq!(sim.violations(), if ordered { vec![] } else { vec![expected] });
    }
}

#[test]
fn an_event_recorded_before_the_work_does_not_order_it() {
    let sim = Sim::with(small());
    let device = sim.device(0);
    let (a, b) = (device.stream_create().unwrap(), device.stream_create().unwrap());
    let event = device.event_create().unwrap();
    let address = device.alloc(512).unwrap();
    device.event_record(event, a).unwrap();
    // SAFETY: the memory is never freed.
    unsafe {
        device.fill(address, 1, 512, a).unwrap();
        device.stream_wait(b, event).unwrap();
        device.copy(address, address + 256, 256, b).unwrap();
    }
    assert_eq!(sim.violations().len(), 2, "the read and the write both race");
}

#[test]
fn the_scheduler_runs_ordered_work_in_order_whatever_the_seed() {
    for seed in 0..50 {
        let sim = Sim::with(SimConfig { seed, ..small() });
        let device = sim.device(0);
        let (a, b) = (device.stream_create().unwrap(), device.stream_create().unwrap());
        let event = device.event_create().unwrap();
        let address = device.alloc(512).unwrap();
        for round in 0..20u8 {
            let (writer, reader) = if round % 2 == 0 { (a, b) } else { (b, a) };
            let whole = [Access::write(address, 1)];
            device
                .launch(writer, &whole, move |memory| {
                    let mut old = [0];
                    memory.read(address, &mut old);
                    memory.write(address, &[if round == 0 { 0 } else { old[0] + 1 }]);
                })
                .unwrap();
            device.event_record(event, writer).unwrap();
            device.stream_wait(reader, event).unwrap();
        }
        device.synchronize().unwrap();
        assert_eq!(sim.peek(address, 1).unwrap(), [19], "seed {seed}");
        assert_eq!(sim.violations(), []);
    }
}

#[test]
fn an_event_that_is_destroyed_still_holds_back_who_waits_for_it() {
    for seed in 0..30 {
        let sim = Sim::with(SimConfig { seed, ..small() });
        let device = sim.device(0);
        let (a, b) = (device.stream_create().unwrap(), device.stream_create().unwrap());
        let event = device.event_create().unwrap();
        let address = device.alloc(512).unwrap();
        // SAFETY: the memory is never freed.
        unsafe {
            device.fill(address, 1, 512, a).unwrap();
            device.event_record(event, a).unwrap();
            device.stream_wait(b, event).unwrap();
            device.event_destroy(event);
            device.fill(address, 2, 512, b).unwrap();
        }
        assert!(device.event_record(event, a).is_err(), "it is gone for the host");
        sim.run_all();
        assert_eq!(sim.peek(address, 1).unwrap(), [2]);
    }
}

#[test]
fn nothing_runs_until_somebody_waits_and_different_seeds_run_differently() {
    let outcome = |seed| {
        let sim = Sim::with(SimConfig { seed, eagerness: 0, ..small() });
        let device = sim.device(0);
        let streams: Vec<_> = (0..4).map(|_| device.stream_create().unwrap()).collect();
        let address = device.alloc(512).unwrap();
        for (i, &stream) in streams.iter().enumerate() {
            // SAFETY: the memory is never freed; the race is meant.
            unsafe { device.fill(address, i as u8, 512, stream).unwrap() };
        }
        assert_eq!(sim.peek(address, 1).unwrap(), [0xCD], "lazy");
        device.synchronize().unwrap();
        sim.peek(address, 1).unwrap()[0]
    };
    let last: std::collections::HashSet<u8> = (0..40).map(outcome).collect();
    assert!(last.len() >= 3, "only {last:?} ever came last");
    assert_eq!(outcome(7), outcome(7), "the same seed gives the same run");
}

#[test]
fn memory_that_was_freed_is_gone_and_capacity_is_capped() {
    let sim = Sim::with(small());
    let device = sim.device(0);
    let stream = device.default_stream();
    let address = device.alloc(1 << 20).unwrap();
    assert_eq!(device.alloc(512), Err(DriverError { call: "cuMemAlloc", code: DriverError::OUT_OF_MEMORY }));
    // SAFETY: nothing uses it; the fill afterwards is the mistake under test.
    unsafe {
        device.free(address).unwrap();
        let error = device.fill(address, 0, 1, stream).unwrap_err();
        assert_eq!(error.code, DriverError::ILLEGAL_ADDRESS);
    }
    assert_eq!(device.memory().unwrap().free, 1 << 20);
    assert!(matches!(sim.take_violations()[..], [Violation::Unmapped { .. }]));
}

#[test]
fn a_physical_piece_brings_its_contents_and_its_history_to_another_address() {
    let sim = Sim::with(small());
    let device = sim.device(0);
    let vm = device.virtual_memory().unwrap();
    let (a, b) = (device.stream_create().unwrap(), device.stream_create().unwrap());
    let range = vm.reserve(256 << 10, 64 << 10).unwrap();
    let piece = vm.create(64 << 10).unwrap();
    // SAFETY: mapped before each use; the unmapping in use is the mistake under test.
    unsafe {
        vm.map(range, 64 << 10, piece).unwrap();
        assert!(device.fill(range, 7, 16, a).is_err(), "no access yet");
        sim.take_violations();
        vm.allow(range, 64 << 10).unwrap();
        device.fill(range, 7, 64 << 10, a).unwrap();
        vm.unmap(range, 64 << 10).unwrap();
        assert!(matches!(sim.take_violations()[..], [Violation::GivenBackInUse { .. }]));
        sim.run_all();
        assert!(matches!(sim.take_violations()[..], [Violation::Unmapped { .. }]), "the fill came too late");

        vm.map(range + (128 << 10), 64 << 10, piece).unwrap();
        vm.allow(range + (128 << 10), 64 << 10).unwrap();
        device.fill(range + (128 << 10), 9, 16, b).unwrap();
        assert!(matches!(sim.take_violations()[..], [Violation::Race { .. }]), "seen through the remap");
        device.synchronize().unwrap();
        vm.unmap(range + (128 << 10), 64 << 10).unwrap();
        assert_eq!(sim.take_violations(), [], "now the host knows that the work is done");
        vm.release(piece).unwrap();
        vm.unreserve(range, 256 << 10).unwrap();
    }
    assert_eq!(sim.used_bytes(0), 0);
}

#[test]
fn calls_are_counted_and_fail_when_told_to_without_an_effect() {
    let sim = Sim::with(small());
    let device = sim.device(0);
    sim.inject(Fault { call: Some(Call::Alloc), after: 1, times: 2, code: 999 });
    let outcomes: Vec<bool> = (0..4).map(|_| device.alloc(512).is_ok()).collect();
    assert_eq!(outcomes, [true, false, false, true]);
    assert_eq!(sim.calls(Call::Alloc), 4);
    assert_eq!(sim.used_bytes(0), 1024);
    sim.fail_nth_call(2, 999);
    assert!(
        device.event_create().is_ok() && device.stream_create().is_err() && device.event_create().is_ok()
    );
}

#[test]
fn asking_during_a_capture_spoils_it_and_a_clean_capture_can_be_launched_again_and_again() {
    let sim = Sim::with(small());
    let device = sim.device(0);
    let stream = device.default_stream();
    let event = device.event_create().unwrap();
    let address = device.alloc(512).unwrap();

    device.capture_begin(stream).unwrap();
    assert!(device.event_query(event).is_err());
    assert_eq!(device.capture_end(stream).unwrap_err().code, DriverError::CAPTURE_INVALIDATED);
    assert!(matches!(sim.take_violations()[..], [Violation::InCapture { .. }]));

    device.capture_begin(stream).unwrap();
    // SAFETY: the memory is never freed.
    unsafe { device.fill(address, 3, 512, stream).unwrap() };
    let graph = device.capture_end(stream).unwrap();
    device.synchronize().unwrap();
    assert_eq!(sim.peek(address, 1).unwrap(), [0xCD], "captured, not run");
    for byte in [4, 5] {
        // SAFETY: as above.
        unsafe { device.fill(address, byte, 512, stream).unwrap() };
        device.graph_launch(graph, stream).unwrap();
        device.synchronize().unwrap();
        assert_eq!(sim.peek(address, 1).unwrap(), [3]);
    }
}

#[test]
fn the_model_of_time_overlaps_copies_of_both_directions_but_not_of_one() {
    let nanos = |both: bool| {
        let sim = Sim::new();
        let device = sim.device(0);
        let (a, b) = (device.stream_create().unwrap(), device.stream_create().unwrap());
        let (len, start) = (64 << 20, sim.model_nanos());
        let (x, y) = (device.alloc(len).unwrap(), device.alloc(len).unwrap());
        let (p, q) = (device.host_alloc(len as usize).unwrap(), device.host_alloc(len as usize).unwrap());
        let start = start.max(sim.model_nanos());
        // SAFETY: all four ranges have this length and outlive the copies.
        unsafe {
            device.upload(x, p, len, a).unwrap();
            if both {
                device.download(q, y, len, b).unwrap();
            } else {
                device.upload(y, q, len, b).unwrap();
            }
        }
        device.synchronize().unwrap();
        let taken = sim.model_nanos() - start;
        // SAFETY: the copies are done.
        unsafe {
            device.host_free(p).unwrap();
            device.host_free(q).unwrap();
        }
        taken
    };
    assert!(nanos(false) as f64 > 1.9 * nanos(true) as f64, "{} {}", nanos(false), nanos(true));
}

#[test]
fn page_locked_memory_that_is_freed_under_a_copy_is_a_violation() {
    let sim = Sim::with(SimConfig { eagerness: 0, ..small() });
    let device = sim.device(0);
    let address = device.alloc(4096).unwrap();
    let host = device.host_alloc(4096).unwrap();
    // SAFETY: the copy that reads freed memory is never run.
    unsafe {
        device.upload(address, host, 4096, device.default_stream()).unwrap();
        device.host_free(host).unwrap();
    }
    assert!(matches!(sim.violations()[..], [Violation::GivenBackInUse { len: 4096, .. }]));
}

#[test]
fn devices_reach_each_other_only_over_links() {
    let sim = Sim::with(SimConfig { devices: 3, links: vec![(0, 1)], numa_nodes: vec![0, 1], ..small() });
    let [a, b, c] = [sim.device(0), sim.device(1), sim.device(2)];
    assert!(a.reaches(b.info().uuid) && b.reaches(a.info().uuid) && !a.reaches(c.info().uuid));
    assert_eq!((b.info().numa_node, c.info().numa_node), (Some(1), None));
    let (from, to, far) = (a.alloc(512).unwrap(), b.alloc(512).unwrap(), c.alloc(512).unwrap());
    let stream = a.default_stream();
    // SAFETY: the memory is never freed.
    unsafe {
        a.fill(from, 42, 512, stream).unwrap();
        a.copy_peer(to, b.info().uuid, from, 512, stream).unwrap();
        let refused = a.copy_peer(far, c.info().uuid, from, 512, stream).unwrap_err();
        assert_eq!(refused.code, DriverError::PEER_UNSUPPORTED);
    }
    a.stream_synchronize(stream).unwrap();
    assert_eq!(sim.peek(to, 2).unwrap(), [42, 42]);
}

#[test]
fn the_driver_s_pool_takes_back_what_streams_have_freed_before_it_gives_up() {
    let sim = Sim::with(SimConfig { capacity: 1 << 20, eagerness: 0, ..small() });
    let device = sim.device(0);
    let (stream, pool) = (device.stream_create().unwrap(), device.ordered_memory().unwrap());
    for _ in 0..3 {
        let address = pool.alloc_ordered(1 << 20, stream).unwrap();
        // SAFETY: no work uses the memory.
        unsafe { pool.free_ordered(address, stream).unwrap() };
    }
    let kept = pool.alloc_ordered(1 << 19, stream).unwrap();
    assert!(pool.alloc_ordered(1 << 20, stream).unwrap_err().is_out_of_memory());
    // SAFETY: as above.
    unsafe { pool.free_ordered(kept, stream).unwrap() };
    assert_eq!(sim.violations(), []);
}
