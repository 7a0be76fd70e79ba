//! Draws on the device are the host's: from the same logits, the same tokens.

use halfbyte_backend::conformance::compare_draws;
use halfbyte_cuda::{CubeBackend, WgpuRuntime};

#[test]
fn hundreds_of_draws_are_the_hosts() {
    let backend =
        CubeBackend::<WgpuRuntime>::open().expect("this test needs a wgpu adapter; Mesa's lavapipe will do");
    let tokens = pollster::block_on(compare_draws(&backend, 300)).unwrap();
    assert!(tokens > 100, "only {tokens} different tokens");
}
