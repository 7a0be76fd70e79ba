//! Command encoders and compute passes: they record, and check what can be checked by then.

use super::bindings::{Group, Pipeline};
use super::buffer::{Buffer, copy};
use super::device::{Shared, absent};
use super::errors::validation;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wgpu::custom::{
    CommandBufferInterface, CommandEncoderInterface, ComputePassInterface, DispatchBindGroup, DispatchBuffer,
    DispatchCommandBuffer, DispatchComputePass, DispatchComputePipeline, DispatchQuerySet,
    DispatchRenderPass, DispatchTexture,
};

/// One command.
#[derive(Debug)]
pub(super) enum Command {
    Copy { from: Buffer, from_at: u64, to: Buffer, to_at: u64, size: u64 },
    Clear { buffer: Buffer, at: u64, size: u64 },
    Dispatch(Dispatch),
}

/// A dispatch with all that was set before it.
#[derive(Debug)]
pub(super) struct Dispatch {
    pub(super) pipeline: Pipeline,
    pub(super) groups: BTreeMap<u32, Group>,
    pub(super) immediates: Vec<u8>,
    pub(super) grid: [u32; 3],
}

/// What was recorded.
#[derive(Debug, Default)]
pub(super) struct Recording {
    pub(super) commands: Vec<Command>,
    /// The first breach of the rules.
    pub(super) error: Option<String>,
}

impl Recording {
    fn fail(&mut self, what: String) {
        self.error.get_or_insert(what);
    }
}

type Shelf = Arc<Mutex<Recording>>;

fn open(shelf: &Shelf) -> MutexGuard<'_, Recording> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A command encoder.
#[derive(Debug)]
pub(super) struct Encoder {
    device: Arc<Shared>,
    shelf: Shelf,
}

impl Encoder {
    pub(super) fn new(device: Arc<Shared>) -> Self {
        Self { device, shelf: Shelf::default() }
    }

    fn refuse(&self, what: &str) {
        open(&self.shelf).fail(format!("{what} is not implemented by the interpreter"));
    }
}

/// Recorded commands.
#[derive(Debug)]
pub(super) struct Commands(pub(super) Mutex<Option<Recording>>);

impl CommandBufferInterface for Commands {}

impl CommandEncoderInterface for Encoder {
    fn copy_buffer_to_buffer(
        &self,
        source: &DispatchBuffer,
        source_offset: u64,
        destination: &DispatchBuffer,
        destination_offset: u64,
        copy_size: Option<u64>,
    ) {
        let mut recording = open(&self.shelf);
        let (Some(from), Some(to)) = (source.as_custom::<Buffer>(), destination.as_custom::<Buffer>()) else {
            recording.fail("a copy of another backend's buffer".into());
            return;
        };
        let size = copy_size.unwrap_or(from.0.size.saturating_sub(source_offset));
        if let Some(why) = copy(from, source_offset, to, destination_offset, size) {
            recording.fail(why);
            return;
        }
        let (from, to, from_at, to_at) = (from.clone(), to.clone(), source_offset, destination_offset);
        recording.commands.push(Command::Copy { from, from_at, to, to_at, size });
    }

    fn copy_buffer_to_texture(
        &self,
        _: wgpu::TexelCopyBufferInfo<'_>,
        _: wgpu::TexelCopyTextureInfo<'_>,
        _: wgpu::Extent3d,
    ) {
        self.refuse("a copy to a texture");
    }

    fn copy_texture_to_buffer(
        &self,
        _: wgpu::TexelCopyTextureInfo<'_>,
        _: wgpu::TexelCopyBufferInfo<'_>,
        _: wgpu::Extent3d,
    ) {
        self.refuse("a copy from a texture");
    }

    fn copy_texture_to_texture(
        &self,
        _: wgpu::TexelCopyTextureInfo<'_>,
        _: wgpu::TexelCopyTextureInfo<'_>,
        _: wgpu::Extent3d,
    ) {
        self.refuse("a copy between textures");
    }

    fn begin_compute_pass(&self, desc: &wgpu::ComputePassDescriptor<'_>) -> DispatchComputePass {
        if desc.timestamp_writes.is_some() {
            self.refuse("a timestamp");
        }
        DispatchComputePass::custom(Pass {
            device: self.device.clone(),
            shelf: self.shelf.clone(),
            pipeline: None,
            groups: BTreeMap::new(),
            immediates: Vec::new(),
        })
    }

    fn begin_render_pass(&self, _: &wgpu::RenderPassDescriptor<'_>) -> DispatchRenderPass {
        absent("render passes")
    }

    fn finish(&mut self) -> DispatchCommandBuffer {
        let recording = std::mem::take(&mut *open(&self.shelf));
        if let Some(error) = &recording.error {
            self.device.report(validation(error.clone()));
        }
        DispatchCommandBuffer::custom(Commands(Mutex::new(Some(recording))))
    }

    fn clear_texture(&self, _: &DispatchTexture, _: &wgpu::ImageSubresourceRange) {
        self.refuse("clearing a texture");
    }

    fn clear_buffer(&self, buffer: &DispatchBuffer, offset: u64, size: Option<u64>) {
        let mut recording = open(&self.shelf);
        let Some(buffer) = buffer.as_custom::<Buffer>() else {
            recording.fail("clearing another backend's buffer".into());
            return;
        };
        let size = size.unwrap_or(buffer.0.size.saturating_sub(offset));
        match buffer.refuses(offset, size, wgpu::BufferUsages::COPY_DST) {
            Some(why) => recording.fail(why),
            None => {
                recording.commands.push(Command::Clear { buffer: buffer.clone(), at: offset, size });
            }
        }
    }

    fn insert_debug_marker(&self, _: &str) {}

    fn push_debug_group(&self, _: &str) {}

    fn pop_debug_group(&self) {}

    fn write_timestamp(&self, _: &DispatchQuerySet, _: u32) {
        self.refuse("a timestamp");
    }

    fn resolve_query_set(&self, _: &DispatchQuerySet, _: u32, _: u32, _: &DispatchBuffer, _: u64) {
        self.refuse("a query set");
    }

    fn mark_acceleration_structures_built<'a>(
        &self,
        _: &mut dyn Iterator<Item = &'a wgpu::Blas>,
        _: &mut dyn Iterator<Item = &'a wgpu::Tlas>,
    ) {
        self.refuse("ray tracing");
    }

    fn build_acceleration_structures<'a>(
        &self,
        _: &mut dyn Iterator<Item = &'a wgpu::BlasBuildEntry<'a>>,
        _: &mut dyn Iterator<Item = &'a wgpu::Tlas>,
    ) {
        self.refuse("ray tracing");
    }

    fn transition_resources<'a>(
        &mut self,
        _: &mut dyn Iterator<Item = wgpu::wgt::BufferTransition<&'a DispatchBuffer>>,
        _: &mut dyn Iterator<Item = wgpu::wgt::TextureTransition<&'a DispatchTexture>>,
    ) {
    }
}

/// A compute pass.
#[derive(Debug)]
struct Pass {
    device: Arc<Shared>,
    shelf: Shelf,
    pipeline: Option<Pipeline>,
    groups: BTreeMap<u32, Group>,
    immediates: Vec<u8>,
}

impl Pass {
    fn refuse(&self, what: &str) {
        open(&self.shelf).fail(format!("{what} is not implemented by the interpreter"));
    }
}

impl Drop for Pass {
    fn drop(&mut self) {}
}

impl ComputePassInterface for Pass {
    fn set_pipeline(&mut self, pipeline: &DispatchComputePipeline) {
        self.pipeline = pipeline.as_custom::<Pipeline>().cloned();
    }

    fn set_bind_group(&mut self, index: u32, group: Option<&DispatchBindGroup>, offsets: &[u32]) {
        if !offsets.is_empty() {
            self.refuse("a dynamic offset");
        }
        match group.and_then(|group| group.as_custom::<Group>()) {
            Some(group) => self.groups.insert(index, group.clone()),
            None => self.groups.remove(&index),
        };
    }

    fn set_immediates(&mut self, offset: u32, data: &[u8]) {
        let end = offset as usize + data.len();
        if !offset.is_multiple_of(4) || !data.len().is_multiple_of(4) {
            open(&self.shelf).fail("immediates that are not aligned to 4".into());
            return;
        }
        if end > self.device.limits.max_immediate_size as usize {
            open(&self.shelf).fail(format!("{end} bytes exceed max_immediate_size"));
            return;
        }
        if self.immediates.len() < end {
            self.immediates.resize(end, 0);
        }
        self.immediates[offset as usize..end].copy_from_slice(data);
    }

    fn insert_debug_marker(&mut self, _: &str) {}

    fn push_debug_group(&mut self, _: &str) {}

    fn pop_debug_group(&mut self) {}

    fn write_timestamp(&mut self, _: &DispatchQuerySet, _: u32) {
        self.refuse("a timestamp");
    }

    fn begin_pipeline_statistics_query(&mut self, _: &DispatchQuerySet, _: u32) {
        self.refuse("a query");
    }

    fn end_pipeline_statistics_query(&mut self) {
        self.refuse("a query");
    }

    fn dispatch_workgroups(&mut self, x: u32, y: u32, z: u32) {
        let most = self.device.limits.max_compute_workgroups_per_dimension;
        let mut recording = open(&self.shelf);
        let Some(pipeline) = self.pipeline.clone() else {
            recording.fail("a dispatch without a pipeline".into());
            return;
        };
        if [x, y, z].into_iter().any(|count| count > most) {
            recording.fail(format!("a dispatch of {x} x {y} x {z} workgroups; a dimension may have {most}"));
            return;
        }
        recording.commands.push(Command::Dispatch(Dispatch {
            pipeline,
            groups: self.groups.clone(),
            immediates: self.immediates.clone(),
            grid: [x, y, z],
        }));
    }

    fn dispatch_workgroups_indirect(&mut self, _: &DispatchBuffer, _: u64) {
        self.refuse("an indirect dispatch");
    }
}
