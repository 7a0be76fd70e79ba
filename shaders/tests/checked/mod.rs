//! Shaders through naga's front end and validator.

use halfbyte_shaders::{Flag, Flags};
use naga::Module;
use naga::valid::{Capabilities, ModuleInfo, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};

/// A shader as naga sees it, valid with the features that `flags` stand for and no others.
pub fn checked(name: &str, source: &str, flags: Flags) -> (Module, ModuleInfo) {
    let module = naga::front::wgsl::parse_str(source)
        .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(source)));
    // What WebGPU has without any feature; `unpack2x16float` is part of it.
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SUBGROUP, flags.has(Flag::Subgroups));
    capabilities.set(Capabilities::SHADER_FLOAT16, flags.has(Flag::F16));
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    let info = validator
        .subgroup_stages(ShaderStages::COMPUTE)
        .subgroup_operations(SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(source)));
    (module, info)
}
