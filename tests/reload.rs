//! Loading again and again does not grow the process. In a file of its own: it watches the whole process.
//! Only Linux tells how much of a process is its own; the ledger's test (memory.rs) runs everywhere.
#![cfg(target_os = "linux")]

mod reference;

use halfbyte::private_resident;
use reference::{Fixture, in_own_process, setups};

/// Whether this is the process that loads. It has one heap: glibc gives each thread of a driver's compiler one of its
/// own, which grow and shrink by mebibytes from one load to the next.
const WATCHED: &str = "HALFBYTE_TEST_WATCHED";

#[test]
fn twenty_loads_take_no_more_than_the_first_ones() {
    match std::env::var_os(WATCHED) {
        Some(_) => watched(),
        None => in_own_process(
            "twenty_loads_take_no_more_than_the_first_ones",
            &[("MALLOC_ARENA_MAX", "1"), (WATCHED, "1")],
        ),
    }
}

fn watched() {
    let fixture = Fixture::open("llama_mha");
    let input = fixture.ids("input_ids");
    for setup in setups() {
        let once = || {
            let mut model = fixture.load(&setup.defaults());
            model.logits(&input).unwrap();
            drop(model);
            private_resident().unwrap()
        };
        // Thread pools, caches of the driver and of the allocator fill; what the allocator keeps goes up and down.
        let first = (0..8).map(|_| once()).max().unwrap();
        let then: Vec<u64> = (0..16).map(|_| once()).collect();
        let last = then[12..].iter().copied().min().unwrap();
        println!("{}: {first} at first, {last} at last", setup.name);
        // A leaked model would be some 16 times 700 KiB.
        assert!(last < first + (4 << 20), "{}: {first} at first, {last} at last", setup.name);
    }
}
