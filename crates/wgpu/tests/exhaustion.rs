//! Vulkan allocations that truly fail: in a process of its own, whose address space is limited.

#![cfg(target_os = "linux")]

use halfbyte_backend::{Backend, Fault, Kind, KvShape, KvType, Purpose, Want};
use halfbyte_wgpu::{Options, WgpuBackend};
use pollster::block_on;
use std::process::Command;

/// Set in the process that is limited.
const LIMITED: &str = "HALFBYTE_TEST_LIMITED";

fn cache(positions: usize) -> Want {
    let shape = KvShape {
        sequences: 1,
        kv_heads: 1,
        head_dim: 64,
        capacity: positions,
        ring: None,
        dtype: KvType::F32,
    };
    Want { name: format!("a cache of {positions}"), purpose: Purpose::KvCache, kind: Kind::Kv(shape) }
}

/// Reserves until the driver has no more, gives half back, and goes on.
#[test]
fn a_vulkan_allocation_that_truly_fails_is_a_value() {
    if std::env::var_os(LIMITED).is_none() {
        let test = std::env::current_exe().unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -c 0 && ulimit -v 4000000 && exec \"$0\" --nocapture"]).arg(test);
        let outcome = shell.env(LIMITED, "1").output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&outcome.stdout), String::from_utf8_lossy(&outcome.stderr));
        println!("{out}");
        assert!(outcome.status.success(), "{:?}\n{out}\n{err}", outcome.status);
        assert!(out.contains("gave way at"), "{out}");
        return;
    }
    let backend = block_on(WgpuBackend::open(0, Options::default())).unwrap();
    let before = backend.ledger().footprint();
    // 128 MiB each.
    let wants = [cache(1 << 18)];
    let mut slots = Vec::new();
    for _ in 0..2 {
        let fault = loop {
            match block_on(backend.reserve(&wants)) {
                Ok(more) => slots.extend(more),
                Err(fault) => break fault,
            }
            assert!(slots.len() < 64, "8 GiB in an address space of 4");
        };
        let Fault::OutOfMemory { wanted, .. } = &fault else { panic!("{fault:?}") };
        println!("gave way at {} caches: {fault}", slots.len());
        assert!(*wanted > 0);
        // The device still stands: half is given back, and can be had again.
        let half = slots.split_off(slots.len() / 2);
        assert!(!half.is_empty());
        backend.release(&half);
    }
    backend.release(&slots);
    assert_eq!(backend.ledger().footprint(), before);
}
