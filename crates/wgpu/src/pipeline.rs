//! Pipelines, made once for each variant and set of constants, and dispatches made of them.

use crate::compile::{self, Job};
use crate::gpu::Gpu;
use crate::pipeline_cache::PipelineCache;
use crate::step_class::StepClass;
use halfbyte_backend::Fault;
use halfbyte_shaders::Variant;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::num::NonZeroU64;
use std::rc::Rc;

/// How many workgroups a submission needs along one dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Always the same.
    Fixed(u32),
    /// Rows divided by this, rounded up.
    Rows(u32),
    /// Outputs divided by this, rounded up.
    Outputs(u32),
    /// Tiles of rows.
    Tiles,
}

/// What a submission counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) rows: u32,
    pub(crate) outputs: u32,
    pub(crate) tiles: u32,
}

impl Extent {
    /// The number of workgroups.
    pub(crate) fn of(self, counts: &Counts) -> u32 {
        match self {
            Extent::Fixed(count) => count,
            Extent::Rows(per) => counts.rows.div_ceil(per),
            Extent::Outputs(per) => counts.outputs.div_ceil(per),
            Extent::Tiles => counts.tiles,
        }
    }
}

/// A buffer, or a part of it, at a binding of group 0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Binding<'a> {
    pub(crate) index: u32,
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) writable: bool,
    /// The first byte and the bytes that are bound, if not all.
    pub(crate) part: Option<(u64, NonZeroU64)>,
}

impl Binding<'_> {
    fn resource(&self) -> wgpu::BindingResource<'_> {
        match self.part {
            None => self.buffer.as_entire_binding(),
            Some((offset, bytes)) => wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: self.buffer,
                offset,
                size: Some(bytes),
            }),
        }
    }
}

/// A dispatch as a kernel describes it.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) variant: Variant,
    /// Values of `override`s by name; those that the variant does not have are passed over.
    pub(crate) constants: Vec<(&'static str, f64)>,
    pub(crate) bindings: Vec<Binding<'a>>,
    pub(crate) grid: [Extent; 3],
}

impl<'a> Launch<'a> {
    /// Binds `buffer` for reading.
    pub(crate) fn read(&mut self, index: u32, buffer: &'a wgpu::Buffer) {
        self.bindings.push(Binding { index, buffer, writable: false, part: None });
    }

    /// Binds `bytes` of `buffer` from `first` on, a multiple of 256, for reading.
    pub(crate) fn read_part(&mut self, index: u32, buffer: &'a wgpu::Buffer, first: u64, bytes: u64) {
        let part = NonZeroU64::new(bytes).map(|bytes| (first, bytes));
        self.bindings.push(Binding { index, buffer, writable: false, part });
    }

    /// Binds `buffer` for reading and writing.
    pub(crate) fn write(&mut self, index: u32, buffer: &'a wgpu::Buffer) {
        self.bindings.push(Binding { index, buffer, writable: true, part: None });
    }

    /// Sets constants.
    pub(crate) fn set(&mut self, constants: &[(&'static str, f64)]) {
        self.constants.extend_from_slice(constants);
    }
}

/// A dispatch that can be encoded again and again.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) pipeline: Rc<wgpu::ComputePipeline>,
    pub(crate) bindings: wgpu::BindGroup,
    /// Elsewhere: every token walks the list, profiles alone ask for this.
    pub(crate) class: Box<StepClass>,
}

impl Dispatch {
    /// Adds the dispatch of `grid` workgroups to a pass.
    pub(crate) fn encode(&self, pass: &mut wgpu::ComputePass<'_>, grid: [u32; 3]) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bindings, &[]);
        let [x, y, z] = grid;
        pass.dispatch_workgroups(x, y, z);
    }
}

/// Dispatches one after the other. Their extents lie side by side: they are all that a token has to work out, often
/// with cold caches.
#[derive(Debug)]
pub(crate) struct Dispatches {
    each: Vec<Dispatch>,
    extents: Vec<[Extent; 3]>,
}

impl Dispatches {
    /// Every dispatch with its workgroups.
    pub(crate) fn of<'a>(
        &'a self,
        counts: &'a Counts,
    ) -> impl Iterator<Item = (&'a Dispatch, [u32; 3])> + use<'a> {
        self.each.iter().zip(self.grids(counts))
    }

    /// The workgroups of every dispatch.
    pub(crate) fn grids<'a>(&'a self, counts: &'a Counts) -> impl Iterator<Item = [u32; 3]> + use<'a> {
        self.extents.iter().map(|extents| extents.map(|extent| extent.of(counts)))
    }
}

type Key = (Variant, Vec<(&'static str, u64)>);
type Layouts = HashMap<Vec<(u32, bool)>, Rc<(wgpu::BindGroupLayout, wgpu::PipelineLayout)>>;

/// Everything compiled so far.
#[derive(Default)]
pub(crate) struct Pipelines {
    /// Whether shaders carry the driver's own bounds checks.
    pub(crate) checked: bool,
    modules: RefCell<HashMap<Variant, Rc<(String, wgpu::ShaderModule)>>>,
    layouts: RefCell<Layouts>,
    pipelines: RefCell<HashMap<Key, Rc<wgpu::ComputePipeline>>>,
    kept: RefCell<Option<PipelineCache>>,
    /// Whether pipelines were made since the last time that they were saved.
    unsaved: Cell<bool>,
}

impl Pipelines {
    /// An empty cache.
    pub(crate) fn new(checked: bool) -> Self {
        Self { checked, ..Self::default() }
    }

    fn module(
        &self,
        device: &wgpu::Device,
        variant: Variant,
    ) -> Result<Rc<(String, wgpu::ShaderModule)>, Fault> {
        if let Some(module) = self.modules.borrow().get(&variant) {
            return Ok(module.clone());
        }
        let source = variant.wgsl().map_err(|error| Fault::Internal(error.to_string()))?;
        let name = variant.name();
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(&name),
            source: wgpu::ShaderSource::Wgsl(source.as_str().into()),
        };
        let module = if self.checked {
            device.create_shader_module(descriptor)
        } else {
            // SAFETY: the shaders are this workspace's own. Their loops end, and their indices are derived
            // from the shapes that the buffers were made for and from places that `submit` has checked.
            unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
        };
        let module = Rc::new((source, module));
        self.modules.borrow_mut().insert(variant, module.clone());
        Ok(module)
    }

    fn layout(
        &self,
        device: &wgpu::Device,
        bindings: &[Binding<'_>],
    ) -> Rc<(wgpu::BindGroupLayout, wgpu::PipelineLayout)> {
        let key: Vec<(u32, bool)> = bindings.iter().map(|b| (b.index, b.writable)).collect();
        let mut layouts = self.layouts.borrow_mut();
        let make = || {
            let entries: Vec<_> = key
                .iter()
                .map(|&(binding, writable)| wgpu::BindGroupLayoutEntry {
                    binding,
                    visibility: wgpu::ShaderStages::COMPUTE,
                    ty: wgpu::BindingType::Buffer {
                        ty: wgpu::BufferBindingType::Storage { read_only: !writable },
                        has_dynamic_offset: false,
                        min_binding_size: None,
                    },
                    count: None,
                })
                .collect();
            let group = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: None,
                entries: &entries,
            });
            let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: None,
                bind_group_layouts: &[Some(&group)],
                immediate_size: 0,
            });
            Rc::new((group, pipeline))
        };
        layouts.entry(key.clone()).or_insert_with(make).clone()
    }
}

/// A launch whose pipeline is known by its key.
struct Keyed {
    key: Key,
    constants: Vec<(&'static str, f64)>,
    module: Rc<(String, wgpu::ShaderModule)>,
    layout: Rc<(wgpu::BindGroupLayout, wgpu::PipelineLayout)>,
}

impl Pipelines {
    fn keyed(&self, device: &wgpu::Device, launch: &Launch<'_>) -> Result<Keyed, Fault> {
        let module = self.module(device, launch.variant)?;
        let layout = self.layout(device, &launch.bindings);
        let has = |name: &str| module.0.contains(&format!("override {name}:"));
        let constants: Vec<_> = launch.constants.iter().copied().filter(|(name, _)| has(name)).collect();
        let key = (launch.variant, constants.iter().map(|&(name, value)| (name, value.to_bits())).collect());
        Ok(Keyed { key, constants, module, layout })
    }

    /// Makes the pipelines that are not there yet, all at once.
    fn complete(&self, device: &wgpu::Device, wanted: &[Keyed]) {
        let mut missing: Vec<&Keyed> = Vec::new();
        let mut seen = HashSet::new();
        for keyed in wanted {
            if !self.pipelines.borrow().contains_key(&keyed.key) && seen.insert(&keyed.key) {
                missing.push(keyed);
            }
        }
        if missing.is_empty() {
            return;
        }
        let kept = self.kept.borrow();
        let mut jobs = Vec::with_capacity(missing.len());
        for keyed in &missing {
            jobs.push(Job {
                label: keyed.key.0.name(),
                layout: &keyed.layout.1,
                module: &keyed.module.1,
                constants: &keyed.constants,
                cache: kept.as_ref().map(PipelineCache::cache),
            });
        }
        let made = compile::make_all(device, &jobs);
        let mut pipelines = self.pipelines.borrow_mut();
        for (keyed, pipeline) in missing.iter().zip(made) {
            pipelines.insert(keyed.key.clone(), Rc::new(pipeline));
        }
        self.unsaved.set(true);
    }

    /// Makes pipelines through `cache` from now on.
    pub(crate) fn keep(&self, cache: Option<PipelineCache>) {
        *self.kept.borrow_mut() = cache;
    }

    /// Leaves what was compiled since for the next start, if there is a place for it.
    pub(crate) fn save(&self) {
        if let (Some(kept), true) = (&*self.kept.borrow(), self.unsaved.take()) {
            kept.save();
        }
    }
}

impl Gpu {
    /// Turns launches into dispatches; the pipelines that are not there yet are made in parallel.
    ///
    /// # Errors
    /// [`Fault::Internal`] if the device refuses a pipeline.
    pub(crate) fn prepare(&self, launches: &[Launch<'_>]) -> Result<Dispatches, Fault> {
        let Gpu { device, pipelines, .. } = self;
        let keyed: Vec<Keyed> =
            launches.iter().map(|launch| pipelines.keyed(device, launch)).collect::<Result<_, _>>()?;
        pipelines.complete(device, &keyed);
        let mut each = Vec::with_capacity(launches.len());
        for (launch, keyed) in launches.iter().zip(keyed) {
            let pipeline = pipelines.pipelines.borrow().get(&keyed.key).cloned();
            let pipeline = pipeline.ok_or_else(|| Fault::Internal("a launch without a pipeline".into()))?;
            let entries: Vec<_> = launch
                .bindings
                .iter()
                .map(|b| wgpu::BindGroupEntry { binding: b.index, resource: b.resource() })
                .collect();
            let bindings = device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &keyed.layout.0,
                entries: &entries,
            });
            each.push(Dispatch { pipeline, bindings, class: Box::new(StepClass::of(launch)) });
        }
        self.check()?;
        Ok(Dispatches { each, extents: launches.iter().map(|launch| launch.grid).collect() })
    }
}
