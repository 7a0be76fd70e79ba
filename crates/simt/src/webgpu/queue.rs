//! The queue: what is submitted runs at once.

use super::buffer::Buffer;
use super::commands::{Command, Commands};
use super::device::{Shared, absent};
use super::dispatch;
use super::errors::validation;
use std::sync::{Arc, PoisonError};
use wgpu::BufferUsages;
use wgpu::custom::{
    DispatchBlas, DispatchBuffer, DispatchCommandBuffer, DispatchQueueWriteBuffer, QueueInterface,
    QueueWriteBufferInterface,
};

/// The queue of a device.
#[derive(Debug)]
pub(super) struct Queue(pub(super) Arc<Shared>);

impl Queue {
    fn run(&self, command: &Command) -> Result<(), String> {
        match command {
            Command::Copy { from, from_at, to, to_at, size } => {
                if let Some(busy) = from.busy().or_else(|| to.busy()) {
                    return Err(busy);
                }
                to.write(*to_at, &from.read(*from_at..from_at + size));
            }
            Command::Clear { buffer, at, size } => {
                if let Some(busy) = buffer.busy() {
                    return Err(busy);
                }
                buffer.write(*at, &vec![0; *size as usize]);
            }
            Command::Dispatch(dispatch) => dispatch::run(&self.0, dispatch, self.0.next_dispatch())?,
        }
        Ok(())
    }
}

impl QueueInterface for Queue {
    fn write_buffer(&self, buffer: &DispatchBuffer, offset: u64, data: &[u8]) {
        let Some(buffer) = buffer.as_custom::<Buffer>() else {
            self.0.report(validation("a write to another backend's buffer".into()));
            return;
        };
        let refused = buffer.refuses(offset, data.len() as u64, BufferUsages::COPY_DST);
        match refused.or_else(|| buffer.busy()) {
            Some(why) => self.0.report(validation(why)),
            None => buffer.write(offset, data),
        }
    }

    fn create_staging_buffer(&self, size: wgpu::BufferSize) -> Option<DispatchQueueWriteBuffer> {
        Some(DispatchQueueWriteBuffer::custom(Staged(vec![0; size.get() as usize])))
    }

    fn validate_write_buffer(
        &self,
        buffer: &DispatchBuffer,
        offset: u64,
        size: wgpu::BufferSize,
    ) -> Option<()> {
        let refused = buffer.as_custom::<Buffer>()?.refuses(offset, size.get(), BufferUsages::COPY_DST);
        match refused {
            Some(why) => {
                self.0.report(validation(why));
                None
            }
            None => Some(()),
        }
    }

    fn write_staging_buffer(
        &self,
        buffer: &DispatchBuffer,
        offset: u64,
        staging_buffer: &DispatchQueueWriteBuffer,
    ) {
        if let Some(Staged(bytes)) = staging_buffer.as_custom::<Staged>() {
            self.write_buffer(buffer, offset, bytes);
        }
    }

    fn write_texture(
        &self,
        _: wgpu::TexelCopyTextureInfo<'_>,
        _: &[u8],
        _: wgpu::TexelCopyBufferLayout,
        _: wgpu::Extent3d,
    ) {
        self.0.refuse("a write to a texture");
    }

    fn submit(&self, command_buffers: &mut dyn Iterator<Item = DispatchCommandBuffer>) -> u64 {
        for buffer in command_buffers {
            let commands = buffer.as_custom::<Commands>();
            let recording = commands.and_then(|c| c.0.lock().unwrap_or_else(PoisonError::into_inner).take());
            let Some(recording) = recording.filter(|recording| recording.error.is_none()) else {
                self.0.report(validation("an invalid command buffer was submitted".into()));
                continue;
            };
            for command in &recording.commands {
                if let Err(why) = self.run(command) {
                    self.0.report(validation(why));
                    break;
                }
            }
        }
        self.0.next_submission()
    }

    fn get_timestamp_period(&self) -> f32 {
        1.0
    }

    fn on_submitted_work_done(&self, callback: Box<dyn FnOnce() + Send + 'static>) {
        self.0.done(callback);
    }

    fn compact_blas(&self, _: &DispatchBlas) -> (Option<u64>, DispatchBlas) {
        absent("ray tracing")
    }
}

/// Bytes on their way.
#[derive(Debug)]
struct Staged(Vec<u8>);

#[allow(unsafe_code, reason = "the interface's method is unsafe; nothing here is")]
impl QueueWriteBufferInterface for Staged {
    fn len(&self) -> usize {
        self.0.len()
    }

    unsafe fn write_slice(&mut self) -> wgpu::WriteOnly<'_, [u8]> {
        wgpu::WriteOnly::from_mut(&mut self.0)
    }
}
