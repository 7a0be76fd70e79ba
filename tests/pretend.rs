//! Devices that are taken to be smaller than they are.

use halfbyte::{CausalLm, Error, LoadOptions, ModelSource, Silent};
#[cfg(feature = "wgpu")]
use halfbyte::{Flow, GenerateOptions, SampleParams};

fn stories() -> ModelSource {
    ModelSource::Bundled("stories".into())
}

fn pretend(device: &str, bytes: u64, device_map: &str) -> LoadOptions {
    LoadOptions {
        device_map: device_map.parse().unwrap(),
        pretend_memory: [(device.to_owned(), bytes)].into(),
        context: Some(128),
        chunk: 8,
        ..LoadOptions::default()
    }
}

#[test]
fn a_cpu_that_is_said_to_be_small_refuses_and_says_why() {
    let fits = |bytes| halfbyte::plan(&stories(), &pretend("cpu", bytes, "cpu"), &mut Silent).unwrap();
    let plan = fits(64 << 20);
    assert!(plan.fits);
    let needed = plan.devices[0].planned_bytes;
    // A tenth is left to others, as it would be.
    let plan = fits(needed);
    assert!(!plan.fits);
    assert!(plan.devices[0].budget_bytes < needed);
    assert_eq!(plan.devices[0].budget_source, "--pretend-memory less 10 %");
    let refused = CausalLm::load(&stories(), &pretend("cpu", needed, "cpu"), &mut Silent);
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
}

#[test]
#[cfg(feature = "wgpu")]
fn a_gpu_that_is_said_to_be_small_shares_with_the_cpu() {
    let mut whole =
        CausalLm::load(&stories(), &pretend("wgpu:0", 1 << 30, "sequential"), &mut Silent).unwrap();
    let wanted = text(&mut whole);
    let all = whole.memory()[0].planned_bytes;
    assert_eq!(whole.blocks_on("cpu"), 0);
    drop(whole);
    let options = pretend("wgpu:0", all, "sequential");
    let mut model = CausalLm::load(&stories(), &options, &mut Silent).unwrap();
    assert!(model.blocks_on("wgpu:0") > 0 && model.blocks_on("cpu") > 0, "{:?}", model.device_map());
    for row in model.memory() {
        assert_eq!(row.planned_bytes, row.measured_bytes, "{row:?}");
        assert!(row.device != "wgpu:0" || row.measured_bytes < all, "{row:?} of {all}");
    }
    assert_eq!(text(&mut model), wanted);
}

/// What the model says greedily.
#[cfg(feature = "wgpu")]
fn text(model: &mut CausalLm) -> String {
    let how = GenerateOptions { max_new_tokens: 8, sample: SampleParams::default() };
    model.generate("Once there was", &how, &mut |_| Flow::Continue).unwrap().text
}
