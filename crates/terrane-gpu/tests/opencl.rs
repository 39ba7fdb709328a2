//! The OpenCL back-end on whatever OpenCL there is (a processor will do). Without any, the tests say so and pass.
#![cfg(all(feature = "opencl", not(loom)))]

use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use terrane_fit::Tlsf;
use terrane_gpu::transfer::Transfers;
use terrane_gpu::{
    ChunkConfig, Device, DeviceBuf, DevicePool, GpuAbsence, OpenCl, PinnedPool, Streams, VariablePool,
    conformance,
};

fn engine() -> Tlsf {
    Tlsf::with_granule(256)
}

fn device(test: &str) -> Option<Arc<OpenCl>> {
    match OpenCl::open(0) {
        Ok(device) => Some(device),
        Err(why) => {
            println!("skipped: {test}: {why}");
            None
        }
    }
}

#[test]
fn opencl_device_conforms() {
    let Some(device) = device("opencl_device_conforms") else { return };
    println!("on {}", device.info().name);
    let outcomes = conformance::run(&device, engine);
    let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.failure.is_some()).collect();
    assert!(failed.is_empty() && outcomes.len() > 8, "{failed:?}");
    assert_eq!(device.memory().unwrap().free, device.info().total_bytes, "all memory went back");
}

#[test]
fn opencl_transfers_give_their_buffers_back() {
    let Some(device) = device("opencl_transfers") else { return };
    let (a, b) = (device.stream_create().unwrap(), device.stream_create().unwrap());
    let pool = Arc::new(VariablePool::on(device.clone(), ChunkConfig::default(), engine));
    let pinned = PinnedPool::new(device.clone(), ChunkConfig::default());
    let transfers = Transfers::new(device.clone(), pinned.clone());
    let values: Vec<u32> = (0..3_000_000).collect();
    let there = DeviceBuf::new_in(pool.clone(), values.len(), a).unwrap();
    let there = transfers.upload_slice(&values, there).unwrap().wait().unwrap();
    let other = DeviceBuf::new_in(pool.clone(), values.len(), b).unwrap();
    let (there, other) = transfers.copy(there, other).unwrap().wait().unwrap();
    drop(there);
    let (back, other) =
        transfers.download(other, pinned.zeroed(values.len()).unwrap()).unwrap().wait().unwrap();
    assert_eq!(back[..], values[..]);
    drop(transfers.upload(back, other).unwrap());
    drop(transfers);
    assert_eq!((pool.stats().live_blocks, pinned.stats().live_blocks), (0, 0));
}

#[test]
fn opencl_events_tell_when_work_is_done_and_call_back() {
    let Some(device) = device("opencl_events") else { return };
    let stream = device.stream_create().unwrap();
    let event = device.event_create().unwrap();
    assert!(device.event_query(event).unwrap(), "never recorded");
    let address = device.alloc(64 << 20).unwrap();
    assert!(address.is_multiple_of(256));
    // SAFETY: the memory is ours.
    unsafe { device.fill(address, 3, 64 << 20, stream).unwrap() };
    device.event_record(event, stream).unwrap();
    let (done, called) = mpsc::channel();
    device.when_done(stream, Box::new(move || done.send(()).unwrap())).unwrap();
    called.recv_timeout(Duration::from_secs(60)).unwrap();
    device.event_synchronize(event).unwrap();
    assert!(device.event_query(event).unwrap());
    device.event_destroy(event);
    assert!(device.event_query(event).is_err(), "gone");
    // SAFETY: all work is done.
    unsafe { device.free(address).unwrap() };
    // SAFETY: refused, since it is gone.
    assert!(unsafe { device.free(address) }.is_err());
    device.stream_destroy(stream).unwrap();
}

#[test]
fn opencl_streams_wait_for_long_work_of_others() {
    let Some(device) = device("opencl_streams_wait") else { return };
    let (a, b) = (device.stream_create().unwrap(), device.stream_create().unwrap());
    let (first, second) = (device.event_create().unwrap(), device.event_create().unwrap());
    let len = 128 << 20;
    let address = device.alloc(len).unwrap();
    for round in 0..4 {
        // SAFETY: the memory is ours.
        unsafe { device.fill(address, round, len, a).unwrap() };
        device.event_record(first, a).unwrap();
        device.stream_wait(b, first).unwrap();
        device.event_record(second, b).unwrap();
        while !device.event_query(second).unwrap() {
            std::thread::yield_now();
        }
        assert!(device.event_query(first).unwrap(), "the second stream did not wait");
    }
    // SAFETY: `free` waits for all work.
    unsafe { device.free(address).unwrap() };
}

#[test]
fn opencl_copies_with_memory_that_is_not_page_locked_are_done_when_they_return() {
    let Some(device) = device("opencl_copies") else { return };
    let stream = device.stream_create().unwrap();
    let len = 64 << 20;
    let address = device.alloc(len).unwrap();
    let mut host = vec![1u8; len as usize];
    let mut back = vec![0u8; len as usize];
    for round in 1..=3u8 {
        host.fill(round);
        // SAFETY: the memory is ours, and the host's is read before the call returns.
        unsafe { device.upload(address, host.as_ptr(), len, stream).unwrap() };
        host.fill(0);
        // SAFETY: as above, and written before the call returns.
        unsafe { device.download(back.as_mut_ptr(), address, len, stream).unwrap() };
        assert!(back.iter().all(|&byte| byte == round), "round {round}");
    }
    // SAFETY: `free` waits for all work.
    unsafe { device.free(address).unwrap() };
}

#[test]
fn child_says_what_is_absent() {
    let Ok(expected) = std::env::var("EXPECTED_ABSENCE") else { return };
    // A panic ends this process, even one that somebody catches.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::abort();
    }));
    let kind = match OpenCl::open(0).map(|_| ()) {
        Err(GpuAbsence::NoLibrary { .. }) => "NoLibrary",
        Err(GpuAbsence::NoDevice { count: 0, .. }) => "NoDevice",
        other => panic!("{other:?}"),
    };
    assert_eq!(kind, expected);
}

#[test]
#[cfg(target_os = "linux")]
fn the_absence_of_a_library_or_a_device_is_told_and_nothing_panics() {
    let folder = std::env::temp_dir().join(format!("terrane-no-opencl-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["libOpenCL.so.1", "libOpenCL.so"] {
        std::fs::write(folder.join(name), "not a library").unwrap();
    }
    let mut cases = vec![("NoLibrary", "LD_LIBRARY_PATH")];
    if OpenCl::open(0).is_ok() {
        // The usual loader's variable for the folder where platforms register.
        cases.push(("NoDevice", "OCL_ICD_VENDORS"));
    }
    for (expected, variable) in cases {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["child_says_what_is_absent", "--exact", "--nocapture"])
            .env("EXPECTED_ABSENCE", expected)
            .env(variable, &folder)
            .output()
            .unwrap();
        assert!(output.status.success(), "{expected}: {}", String::from_utf8_lossy(&output.stderr));
    }
    std::fs::remove_dir_all(folder).unwrap();
}
