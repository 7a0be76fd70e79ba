//! Variants through naga's front end and validator.

use halfbyte_shaders::{Flag, Variant};
use naga::Module;
use naga::valid::{Capabilities, ModuleInfo, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};

/// The variant as naga sees it, valid with the features that its flags stand for and no others.
pub fn checked(variant: Variant) -> (Module, ModuleInfo) {
    let name = variant.name();
    let source = variant.wgsl().unwrap_or_else(|error| panic!("{name}: {error}"));
    valid(&name, &source, variant.flags.has(Flag::Subgroups))
}

/// A shader as naga sees it.
pub fn valid(name: &str, source: &str, subgroups: bool) -> (Module, ModuleInfo) {
    let module = naga::front::wgsl::parse_str(source)
        .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(source)));
    // What WebGPU has without any feature; `unpack2x16float` is part of it.
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SUBGROUP, subgroups);
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    let info = validator
        .subgroup_stages(ShaderStages::COMPUTE)
        .subgroup_operations(SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(source)));
    (module, info)
}
