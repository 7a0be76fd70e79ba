//! Every variant is valid WGSL within WebGPU's default limits, without a GPU.

use halfbyte_shaders::{Flag, Variant};
use naga::back::pipeline_constants::process_overrides;
use naga::proc::Layouter;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ShaderStage};

fn checked(variant: Variant) -> (Module, ModuleInfo) {
    let name = variant.name();
    let source = variant.wgsl().unwrap_or_else(|error| panic!("{name}: {error}"));
    let module = naga::front::wgsl::parse_str(&source)
        .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(&source)));
    // What WebGPU has without any feature; `unpack2x16float` is part of it.
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SUBGROUP, variant.flags.has(Flag::Subgroups));
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    let info = validator
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(&source)));
    (module, info)
}

#[test]
fn every_variant_is_valid() {
    let variants = Variant::all();
    assert!(variants.len() > 100, "{} variants", variants.len());
    for variant in variants {
        checked(variant);
    }
}

#[test]
fn default_limits_suffice() {
    for variant in Variant::all() {
        let (module, info) = checked(variant);
        let name = variant.name();
        let storage = module
            .global_variables
            .iter()
            .filter(|(_, variable)| matches!(variable.space, AddressSpace::Storage { .. }));
        assert!(storage.count() <= 8, "{name} binds more than 8 storage buffers");

        let constants = Default::default();
        let stage = Some((ShaderStage::Compute, "main"));
        let (module, _) = process_overrides(&module, &info, stage, &constants)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut layouter = Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        let workgroup: u32 = module
            .global_variables
            .iter()
            .filter(|(_, variable)| variable.space == AddressSpace::WorkGroup)
            .map(|(_, variable)| layouter[variable.ty].size.next_multiple_of(16))
            .sum();
        assert!(workgroup <= 16 << 10, "{name} uses {workgroup} bytes of workgroup memory");
        let [x, y, z] = module.entry_points[0].workgroup_size;
        assert!(x * y * z <= 256, "{name} has {} invocations", x * y * z);
    }
}
