//! Keys and values as they leave a cache and as they come back, beside the processor's.

use halfbyte_backend::KvType;
use halfbyte_backend::conformance::compare_kv;
use halfbyte_cpu::CpuBackend;
use halfbyte_wgpu::{Options, WgpuBackend};
use pollster::block_on;

#[test]
fn records_are_the_same_on_every_backend() {
    let cpu = CpuBackend::scalar();
    // Shards of one head, and of all.
    for (max_binding, head_dims) in [(Some(4096), [45, 64]), (None, [128, 6])] {
        let options = Options { max_binding, ..Options::default() };
        let gpu = block_on(WgpuBackend::open(0, options)).unwrap();
        for dtype in [KvType::F32, KvType::F16, KvType::Q8, KvType::Q4] {
            for head_dim in head_dims {
                block_on(compare_kv(&cpu, &gpu, dtype, head_dim)).unwrap();
            }
        }
    }
}
