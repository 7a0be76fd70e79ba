//! The device.

use super::adapter::State;
use super::bindings::{Group, GroupLayout, Module, Pipeline, PipelineLayout};
use super::buffer::Buffer;
use super::commands::Encoder;
use super::errors::{Errors, validation};
use crate::shader::Shader;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wgpu::custom::*;

/// What a device and its objects share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) adapter: Arc<State>,
    pub(super) features: wgpu::Features,
    pub(super) limits: wgpu::Limits,
    errors: Mutex<Errors>,
    held: AtomicU64,
    dispatches: AtomicU32,
    submissions: AtomicU64,
    waiting: Mutex<Waiting>,
}

/// What is to be called when the device is polled.
#[derive(Default)]
struct Waiting {
    mapped: Vec<Buffer>,
    done: Vec<Box<dyn FnOnce() + Send + 'static>>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} mappings, {} callbacks", self.mapped.len(), self.done.len())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For objects that compute never makes.
pub(super) fn absent(what: &str) -> ! {
    panic!("the interpreter has no {what}")
}

impl Shared {
    pub(super) fn new(adapter: Arc<State>, desc: &wgpu::DeviceDescriptor<'_>) -> Self {
        Self {
            features: desc.required_features,
            limits: desc.required_limits.clone(),
            adapter,
            errors: Mutex::default(),
            held: AtomicU64::new(0),
            dispatches: AtomicU32::new(0),
            submissions: AtomicU64::new(0),
            waiting: Mutex::default(),
        }
    }

    /// Reports an error as WebGPU does.
    pub(super) fn report(&self, error: wgpu::Error) {
        let call = lock(&self.errors).add(error);
        if let Some((handler, error)) = call {
            handler(error);
        }
    }

    /// Reports that something is not there.
    pub(super) fn refuse(&self, what: &str) {
        self.report(validation(format!("{what} is not implemented by the interpreter")));
    }

    /// Enters `bytes` as held, or says that they do not fit.
    pub(super) fn allocate(&self, bytes: u64, label: &str) -> Option<wgpu::Error> {
        let most = self.adapter.settings.memory;
        let grow = |held: u64| held.checked_add(bytes).filter(|&held| held <= most);
        match self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow) {
            Ok(_) => None,
            Err(held) => Some(wgpu::Error::OutOfMemory {
                source: format!("{bytes} bytes for `{label}`; {held} of {most} are held").into(),
            }),
        }
    }

    pub(super) fn free(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Has `buffer` mapped at the next poll.
    pub(super) fn awaits(&self, buffer: Buffer) {
        lock(&self.waiting).mapped.push(buffer);
    }

    /// Has `callback` called at the next poll.
    pub(super) fn done(&self, callback: Box<dyn FnOnce() + Send + 'static>) {
        lock(&self.waiting).done.push(callback);
    }

    /// The next dispatch's number, from 1.
    pub(super) fn next_dispatch(&self) -> u32 {
        self.dispatches.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn next_submission(&self) -> u64 {
        self.submissions.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// What was made, or something invalid and an error.
    fn or_invalid<T>(&self, what: &str, label: wgpu::Label<'_>, made: Result<T, String>, invalid: T) -> T {
        made.unwrap_or_else(|why| {
            self.report(validation(format!("{what} `{}`: {why}", label.unwrap_or(""))));
            invalid
        })
    }
}

/// A device.
#[derive(Debug)]
pub(super) struct Device(pub(super) Arc<Shared>);

#[allow(unsafe_code, reason = "the interface's methods are unsafe; nothing here is")]
impl DeviceInterface for Device {
    fn features(&self) -> wgpu::Features {
        self.0.features
    }

    fn limits(&self) -> wgpu::Limits {
        self.0.limits.clone()
    }

    fn adapter_info(&self) -> wgpu::AdapterInfo {
        self.0.adapter.settings.info()
    }

    fn create_shader_module(
        &self,
        desc: wgpu::ShaderModuleDescriptor<'_>,
        _checks: wgpu::ShaderRuntimeChecks,
    ) -> DispatchShaderModule {
        let made = match &desc.source {
            wgpu::ShaderSource::Wgsl(text) => {
                let label = desc.label.unwrap_or("a shader");
                let edited = self.0.adapter.edit.as_ref().map(|edit| edit(label, text));
                Shader::new(label, edited.as_deref().unwrap_or(text), self.0.features)
            }
            _ => Err("only WGSL is implemented".into()),
        };
        let made = made.map(|shader| Module(Some(Arc::new(shader))));
        DispatchShaderModule::custom(self.0.or_invalid("shader module", desc.label, made, Module(None)))
    }

    unsafe fn create_shader_module_passthrough(
        &self,
        _: &wgpu::ShaderModuleDescriptorPassthrough<'_>,
    ) -> DispatchShaderModule {
        self.0.refuse("a shader that is not WGSL");
        DispatchShaderModule::custom(Module(None))
    }

    fn create_bind_group_layout(
        &self,
        desc: &wgpu::BindGroupLayoutDescriptor<'_>,
    ) -> DispatchBindGroupLayout {
        let made = GroupLayout::new(&self.0, desc.entries);
        let invalid = GroupLayout(Arc::default());
        DispatchBindGroupLayout::custom(self.0.or_invalid("bind group layout", desc.label, made, invalid))
    }

    fn create_bind_group(&self, desc: &wgpu::BindGroupDescriptor<'_>) -> DispatchBindGroup {
        let made = Group::new(&self.0, desc);
        DispatchBindGroup::custom(self.0.or_invalid("bind group", desc.label, made, Group(None)))
    }

    fn create_pipeline_layout(&self, desc: &wgpu::PipelineLayoutDescriptor<'_>) -> DispatchPipelineLayout {
        let groups = desc.bind_group_layouts.iter();
        let groups = groups.map(|group| group.and_then(|group| group.as_custom::<GroupLayout>().cloned()));
        let made = PipelineLayout::new(&self.0, groups.collect(), desc.immediate_size);
        let invalid = PipelineLayout { groups: Arc::default(), immediates: 0 };
        DispatchPipelineLayout::custom(self.0.or_invalid("pipeline layout", desc.label, made, invalid))
    }

    fn create_render_pipeline(&self, _: &wgpu::RenderPipelineDescriptor<'_>) -> DispatchRenderPipeline {
        absent("render pipelines")
    }

    fn create_mesh_pipeline(&self, _: &wgpu::MeshPipelineDescriptor<'_>) -> DispatchRenderPipeline {
        absent("mesh pipelines")
    }

    fn create_compute_pipeline(&self, desc: &wgpu::ComputePipelineDescriptor<'_>) -> DispatchComputePipeline {
        let made = Pipeline::new(&self.0, desc);
        let made = self.0.or_invalid("compute pipeline", desc.label, made, Pipeline(None));
        DispatchComputePipeline::custom(made)
    }

    unsafe fn create_pipeline_cache(&self, _: &wgpu::PipelineCacheDescriptor<'_>) -> DispatchPipelineCache {
        absent("pipeline caches")
    }

    fn create_buffer(&self, desc: &wgpu::BufferDescriptor<'_>) -> DispatchBuffer {
        DispatchBuffer::custom(Buffer::new(self.0.clone(), desc))
    }

    fn create_texture(&self, _: &wgpu::TextureDescriptor<'_>) -> DispatchTexture {
        absent("textures")
    }

    fn create_external_texture(
        &self,
        _: &wgpu::ExternalTextureDescriptor<'_>,
        _: &[&wgpu::TextureView],
    ) -> DispatchExternalTexture {
        absent("external textures")
    }

    fn create_blas(
        &self,
        _: &wgpu::CreateBlasDescriptor<'_>,
        _: wgpu::BlasGeometrySizeDescriptors,
    ) -> (Option<u64>, DispatchBlas) {
        absent("ray tracing")
    }

    fn create_tlas(&self, _: &wgpu::CreateTlasDescriptor<'_>) -> DispatchTlas {
        absent("ray tracing")
    }

    fn create_sampler(&self, _: &wgpu::SamplerDescriptor<'_>) -> DispatchSampler {
        absent("samplers")
    }

    fn create_query_set(&self, _: &wgpu::QuerySetDescriptor<'_>) -> DispatchQuerySet {
        absent("query sets")
    }

    fn create_command_encoder(&self, _: &wgpu::CommandEncoderDescriptor<'_>) -> DispatchCommandEncoder {
        DispatchCommandEncoder::custom(Encoder::new(self.0.clone()))
    }

    fn create_render_bundle_encoder(
        &self,
        _: &wgpu::RenderBundleEncoderDescriptor<'_>,
    ) -> DispatchRenderBundleEncoder {
        absent("render bundles")
    }

    fn set_device_lost_callback(&self, _: BoxDeviceLostCallback) {}

    fn on_uncaptured_error(&self, handler: Arc<dyn wgpu::UncapturedErrorHandler>) {
        let missed = lock(&self.0.errors).handle(handler.clone());
        missed.into_iter().for_each(|error| handler(error));
    }

    fn push_error_scope(&self, filter: wgpu::ErrorFilter) -> u32 {
        lock(&self.0.errors).push(filter)
    }

    fn pop_error_scope(&self, _index: u32) -> Pin<Box<dyn PopErrorScopeFuture>> {
        Box::pin(std::future::ready(lock(&self.0.errors).pop()))
    }

    unsafe fn start_graphics_debugger_capture(&self) {}

    unsafe fn stop_graphics_debugger_capture(&self) {}

    fn poll(&self, _: wgpu::wgt::PollType<u64>) -> Result<wgpu::PollStatus, wgpu::PollError> {
        let waiting = std::mem::take(&mut *lock(&self.0.waiting));
        waiting.mapped.iter().for_each(Buffer::arrive);
        waiting.done.into_iter().for_each(|callback| callback());
        Ok(wgpu::PollStatus::QueueEmpty)
    }

    fn get_internal_counters(&self) -> wgpu::InternalCounters {
        wgpu::InternalCounters::default()
    }

    fn generate_allocator_report(&self) -> Option<wgpu::AllocatorReport> {
        None
    }

    fn destroy(&self) {}
}
