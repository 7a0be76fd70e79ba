//! WGSL, parsed and validated as wgpu does it, and made ready to run.

use crate::code::Code;
use crate::finding::Source;
use crate::lower;
use naga::back::pipeline_constants::process_overrides;
use naga::valid::{Capabilities, ModuleInfo, SubgroupOperationSet, ValidationFlags, Validator};
use naga::{Module, ShaderStage};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// A parsed shader.
#[derive(Debug)]
pub(crate) struct Shader {
    pub(crate) source: Arc<Source>,
    module: Module,
    info: ModuleInfo,
}

/// A shader with its constants.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) source: Arc<Source>,
    pub(crate) code: Code,
    /// Whether workgroup memory begins with zeros.
    pub(crate) zeroed: bool,
}

impl Shader {
    /// Parses and validates `text`.
    pub(crate) fn new(name: &str, text: &str, features: wgpu::Features) -> Result<Self, String> {
        let module = naga::front::wgsl::parse_str(text)
            .map_err(|error| format!("{name}: {}", error.emit_to_string(text)))?;
        // `unpack2x16float` is part of WebGPU without any feature.
        let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        capabilities.set(Capabilities::SUBGROUP, features.contains(wgpu::Features::SUBGROUP));
        capabilities.set(Capabilities::SHADER_FLOAT16, features.contains(wgpu::Features::SHADER_F16));
        capabilities.set(Capabilities::IMMEDIATES, features.contains(wgpu::Features::IMMEDIATES));
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
            .subgroup_operations(SubgroupOperationSet::all())
            .validate(&module)
            .map_err(|error| format!("{name}: {}", error.emit_to_string(text)))?;
        let id = SERIAL.fetch_add(1, Ordering::Relaxed);
        let source = Arc::new(Source { name: name.to_owned(), text: text.to_owned(), id });
        Ok(Self { source, module, info })
    }

    /// Sets the constants and lowers entry point `entry`, or the only one.
    pub(crate) fn kernel(
        &self,
        entry: Option<&str>,
        constants: &[(&str, f64)],
        zeroed: bool,
    ) -> Result<Kernel, String> {
        let name = &self.source.name;
        let compute = |entry: &&naga::EntryPoint| entry.stage == ShaderStage::Compute;
        let mut entries = self.module.entry_points.iter().filter(compute);
        let entry = match entry {
            Some(wanted) => entries.find(|entry| entry.name == wanted),
            None => entries.next(),
        };
        let entry = entry.ok_or_else(|| format!("{name}: no such compute entry point"))?;
        let mut values = naga::back::PipelineConstants::default();
        for &(name, value) in constants {
            values.insert(name.to_owned(), value);
        }
        let stage = Some((ShaderStage::Compute, entry.name.as_str()));
        let (module, info) = process_overrides(&self.module, &self.info, stage, &values)
            .map_err(|error| format!("{name}: {error}"))?;
        let index = module.entry_points.iter().position(|other| other.name == entry.name);
        let code =
            lower::lower(&module, &info, index.unwrap_or(0)).map_err(|why| format!("{name}: {why}"))?;
        Ok(Kernel { source: self.source.clone(), code, zeroed })
    }
}
