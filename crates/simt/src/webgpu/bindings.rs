//! Layouts, bind groups and pipelines.

use super::buffer::Buffer;
use super::device::Shared;
use crate::code::BufferUse;
use crate::shader::{Kernel, Shader};
use std::sync::Arc;
use wgpu::custom::{
    BindGroupInterface, BindGroupLayoutInterface, ComputePipelineInterface, DispatchBindGroupLayout,
    PipelineLayoutInterface, ShaderCompilationInfoFuture, ShaderModuleInterface,
};
use wgpu::{BindingType, BufferBindingType, BufferUsages};

/// A shader module; `None` if it was refused.
#[derive(Debug, Clone)]
pub(super) struct Module(pub(super) Option<Arc<Shader>>);

impl ShaderModuleInterface for Module {
    fn get_compilation_info(&self) -> std::pin::Pin<Box<dyn ShaderCompilationInfoFuture>> {
        Box::pin(std::future::ready(wgpu::CompilationInfo { messages: Vec::new() }))
    }
}

/// A bind group layout, sorted by binding.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct GroupLayout(pub(super) Arc<Vec<wgpu::BindGroupLayoutEntry>>);

impl BindGroupLayoutInterface for GroupLayout {}

impl GroupLayout {
    /// Checks and keeps the entries.
    pub(super) fn new(device: &Shared, entries: &[wgpu::BindGroupLayoutEntry]) -> Result<Self, String> {
        let mut sorted = entries.to_vec();
        sorted.sort_by_key(|entry| entry.binding);
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0].binding == pair[1].binding) {
            return Err(format!("binding {} comes twice", pair[0].binding));
        }
        for entry in &sorted {
            if !matches!(entry.ty, BindingType::Buffer { has_dynamic_offset: false, .. })
                || entry.count.is_some()
            {
                return Err(format!("binding {}: {:?} is not implemented", entry.binding, entry.ty));
            }
            let most = device.limits.max_bindings_per_bind_group;
            if entry.binding >= most {
                return Err(format!("binding {} exceeds max_bindings_per_bind_group, {most}", entry.binding));
            }
        }
        Ok(Self(Arc::new(sorted)))
    }

    fn storage(&self) -> usize {
        let is = |ty| matches!(ty, BindingType::Buffer { ty: BufferBindingType::Storage { .. }, .. });
        self.0.iter().filter(|entry| is(entry.ty)).count()
    }
}

/// A pipeline layout.
#[derive(Debug, Clone)]
pub(super) struct PipelineLayout {
    pub(super) groups: Arc<Vec<Option<GroupLayout>>>,
    pub(super) immediates: u32,
}

impl PipelineLayoutInterface for PipelineLayout {}

impl PipelineLayout {
    /// Checks and keeps the groups.
    pub(super) fn new(
        device: &Shared,
        groups: Vec<Option<GroupLayout>>,
        immediates: u32,
    ) -> Result<Self, String> {
        let limits = &device.limits;
        let storage: usize = groups.iter().flatten().map(GroupLayout::storage).sum();
        if storage > limits.max_storage_buffers_per_shader_stage as usize {
            return Err(format!(
                "{storage} storage buffers exceed max_storage_buffers_per_shader_stage, {}",
                limits.max_storage_buffers_per_shader_stage
            ));
        }
        if groups.len() > limits.max_bind_groups as usize {
            return Err(format!(
                "{} groups exceed max_bind_groups, {}",
                groups.len(),
                limits.max_bind_groups
            ));
        }
        if immediates > limits.max_immediate_size {
            return Err(format!(
                "{immediates} bytes exceed max_immediate_size, {}",
                limits.max_immediate_size
            ));
        }
        Ok(Self { groups: Arc::new(groups), immediates })
    }
}

/// A part of a buffer that is bound.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) binding: u32,
    pub(super) buffer: Buffer,
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) writable: bool,
}

/// A bind group; `None` if it was refused.
#[derive(Debug, Clone)]
pub(super) struct Group(pub(super) Option<Arc<(GroupLayout, Vec<Part>)>>);

impl BindGroupInterface for Group {}

impl Group {
    /// Checks and keeps the entries.
    pub(super) fn new(device: &Shared, desc: &wgpu::BindGroupDescriptor<'_>) -> Result<Self, String> {
        let layout = desc.layout.as_custom::<GroupLayout>().ok_or("the layout is another backend's")?;
        if layout.0.len() != desc.entries.len() {
            return Err(format!("{} entries for a layout of {}", desc.entries.len(), layout.0.len()));
        }
        let mut parts = Vec::new();
        for wanted in layout.0.iter() {
            let binding = wanted.binding;
            let entry = desc.entries.iter().find(|entry| entry.binding == binding);
            let entry = entry.ok_or_else(|| format!("binding {binding} is missing"))?;
            let wgpu::BindingResource::Buffer(bound) = &entry.resource else {
                return Err(format!("binding {binding} is no buffer"));
            };
            let buffer = bound.buffer.as_custom::<Buffer>().ok_or("a buffer of another backend")?.clone();
            let name = format!("binding {binding}, buffer `{}`", buffer.0.label);
            let BindingType::Buffer { ty, min_binding_size, .. } = wanted.ty else {
                return Err(format!("{name}: not a buffer's binding"));
            };
            let limits = &device.limits;
            let (usage, align, most) = match ty {
                BufferBindingType::Storage { .. } => (
                    BufferUsages::STORAGE,
                    limits.min_storage_buffer_offset_alignment,
                    limits.max_storage_buffer_binding_size,
                ),
                BufferBindingType::Uniform => (
                    BufferUsages::UNIFORM,
                    limits.min_uniform_buffer_offset_alignment,
                    limits.max_uniform_buffer_binding_size,
                ),
            };
            let size = bound.size.map_or(buffer.0.size.saturating_sub(bound.offset), |size| size.get());
            let wrong = if !buffer.0.usage.contains(usage) {
                Some(format!("is {:?}, not {usage:?}", buffer.0.usage))
            } else if !bound.offset.is_multiple_of(u64::from(align)) {
                Some(format!("offset {} is not aligned to {align}", bound.offset))
            } else if size == 0 || bound.offset.checked_add(size).is_none_or(|end| end > buffer.0.size) {
                Some(format!("{size} bytes at {} of {}", bound.offset, buffer.0.size))
            } else if size > most {
                Some(format!("{size} bytes exceed the largest binding, {most}"))
            } else if usage == BufferUsages::STORAGE && !size.is_multiple_of(4) {
                Some(format!("{size} bytes are not aligned to 4"))
            } else {
                min_binding_size
                    .filter(|least| size < least.get())
                    .map(|least| format!("{size} bytes are fewer than {least}"))
            };
            if let Some(wrong) = wrong {
                return Err(format!("{name}: {wrong}"));
            }
            let writable = ty == BufferBindingType::Storage { read_only: false };
            parts.push(Part { binding, buffer, offset: bound.offset, size, writable });
        }
        Ok(Self(Some(Arc::new((layout.clone(), parts)))))
    }
}

/// A compute pipeline; `None` if it was refused.
#[derive(Debug, Clone)]
pub(super) struct Pipeline(pub(super) Option<Arc<(Kernel, PipelineLayout)>>);

impl ComputePipelineInterface for Pipeline {
    fn get_bind_group_layout(&self, index: u32) -> DispatchBindGroupLayout {
        let layout = self.0.as_ref().and_then(|pipeline| pipeline.1.groups.get(index as usize)?.clone());
        DispatchBindGroupLayout::custom(layout.unwrap_or(GroupLayout(Arc::default())))
    }
}

impl Pipeline {
    /// Lowers the shader and checks it against limits and layout.
    pub(super) fn new(device: &Shared, desc: &wgpu::ComputePipelineDescriptor<'_>) -> Result<Self, String> {
        let module = desc.module.as_custom::<Module>().and_then(|module| module.0.as_ref());
        let module = module.ok_or("its shader module is invalid")?;
        let options = &desc.compilation_options;
        let zeroed = options.zero_initialize_workgroup_memory;
        let kernel = module.kernel(desc.entry_point, options.constants, zeroed)?;
        let (code, limits) = (&kernel.code, &device.limits);
        let most = [
            limits.max_compute_workgroup_size_x,
            limits.max_compute_workgroup_size_y,
            limits.max_compute_workgroup_size_z,
        ];
        let lanes: u64 = code.size.iter().map(|&size| u64::from(size)).product();
        if code.size.iter().zip(most).any(|(&size, most)| size > most)
            || lanes > u64::from(limits.max_compute_invocations_per_workgroup)
            || lanes > crate::lanes::MAX_LANES as u64
        {
            return Err(format!("workgroups of {:?} exceed the limits", code.size));
        }
        let bytes = u64::from(code.shared_bytes);
        if bytes > u64::from(limits.max_compute_workgroup_storage_size) {
            return Err(format!("{bytes} bytes exceed max_compute_workgroup_storage_size"));
        }
        let layout = match desc.layout {
            Some(layout) => {
                layout.as_custom::<PipelineLayout>().ok_or("the layout is another backend's")?.clone()
            }
            None => derived(device, &code.buffers, code.immediate_bytes)?,
        };
        for used in &code.buffers {
            let group = layout.groups.get(used.group as usize).and_then(Option::as_ref);
            let entry = group.and_then(|group| group.0.iter().find(|entry| entry.binding == used.binding));
            let fits = entry.is_some_and(|entry| match entry.ty {
                BindingType::Buffer { ty: BufferBindingType::Uniform, .. } => used.uniform,
                BindingType::Buffer { ty: BufferBindingType::Storage { read_only }, .. } => {
                    !used.uniform && (!used.writable || !read_only)
                }
                _ => false,
            });
            if !fits {
                return Err(format!("`{}`, binding {}, is not in the layout", used.name, used.binding));
            }
        }
        if code.immediate_bytes > layout.immediates {
            return Err(format!(
                "{} bytes of immediates for a layout of {}",
                code.immediate_bytes, layout.immediates
            ));
        }
        Ok(Self(Some(Arc::new((kernel, layout)))))
    }
}

/// The layout of what a shader uses.
fn derived(device: &Shared, used: &[BufferUse], immediates: u32) -> Result<PipelineLayout, String> {
    let groups = used.iter().map(|used| used.group + 1).max().unwrap_or(0);
    let group = |index: u32| {
        let of_group = used.iter().filter(|used| used.group == index);
        let entries: Vec<_> = of_group
            .map(|used| wgpu::BindGroupLayoutEntry {
                binding: used.binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: BindingType::Buffer {
                    ty: if used.uniform {
                        BufferBindingType::Uniform
                    } else {
                        BufferBindingType::Storage { read_only: !used.writable }
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        GroupLayout::new(device, &entries).map(Some)
    };
    let groups = (0..groups).map(group).collect::<Result<Vec<_>, _>>()?;
    PipelineLayout::new(device, groups, immediates)
}
