//! Keys and values as they leave a cache and as they come back, beside the processor's.

use halfbyte_backend::KvType;
use halfbyte_backend::conformance::compare_kv;
use halfbyte_cpu::CpuBackend;
use halfbyte_cuda::{CubeBackend, WgpuRuntime};

#[test]
fn records_are_the_same_on_every_backend() {
    let cpu = CpuBackend::scalar();
    let subject =
        CubeBackend::<WgpuRuntime>::open().expect("this test needs a wgpu adapter; Mesa's lavapipe will do");
    // Each in a length at which its last word or block is not full, where it has such.
    for (dtype, head_dim) in [(KvType::F32, 6), (KvType::F16, 45), (KvType::Q8, 45), (KvType::Q4, 45)] {
        pollster::block_on(compare_kv(&cpu, &subject, dtype, head_dim)).unwrap();
    }
}
