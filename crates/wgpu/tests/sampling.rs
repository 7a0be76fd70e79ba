//! Draws on the device are the host's: from the same logits, the same tokens.

use halfbyte_backend::conformance::{self, Verdict, compare_draws};
use halfbyte_cpu::CpuBackend;
use halfbyte_wgpu::{Options, WgpuBackend};
use pollster::block_on;

async fn open() -> WgpuBackend {
    let devices = WgpuBackend::all().await.unwrap();
    WgpuBackend::open(devices.len() - 1, Options { checked: true, ..Options::default() }).await.unwrap()
}

#[test]
fn the_rows_of_the_table() {
    block_on(async {
        let (subject, reference) = (open().await, CpuBackend::scalar());
        let cases = conformance::cases();
        let drawn = cases.iter().filter(|case| case.step == "sample" && case.name.starts_with("draws"));
        let mut count = 0;
        for case in drawn {
            let outcome = conformance::run_case(case, &reference, &subject).await;
            assert_eq!(outcome.result, Verdict::Passed, "{}", case.name);
            count += 1;
        }
        assert!(count >= 4, "{count} rows of draws");
    });
}

#[test]
fn hundreds_of_draws_are_the_hosts() {
    let tokens = block_on(async { compare_draws(&open().await, 300).await }).unwrap();
    assert!(tokens > 100, "only {tokens} different tokens");
}
