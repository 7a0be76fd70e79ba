//! The way of weights to the device: two fixed buffers that were there from the start.
//!
//! `queue.write_buffer` would allocate while it stages, and a failure there loses the device; these
//! two are mapped, filled and copied from in turn, so that one is filled while the other is read.

use crate::gpu::{Allocation, Allocator, BufferPlan, Gpu};
use crate::wait::{Signal, lost};
use halfbyte_backend::{Fault, Purpose};
use std::cell::RefCell;

/// Bytes of one staging buffer.
pub(crate) const STAGING_BYTES: u64 = 4 << 20;
/// How many there are.
pub(crate) const STAGING_BUFFERS: u64 = 2;

/// The staging buffers, mapped for writing or on their way to it.
pub(crate) struct Staging {
    buffers: Vec<(Allocation, RefCell<Signal>)>,
    next: RefCell<usize>,
}

impl Staging {
    /// What [`Staging::new`] allocates.
    pub(crate) fn plan() -> Vec<BufferPlan> {
        (0..STAGING_BUFFERS)
            .map(|i| BufferPlan {
                name: format!("staging {i}"),
                purpose: Purpose::Staging,
                bytes: STAGING_BYTES,
                usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
            })
            .collect()
    }

    /// Allocates and maps the buffers.
    pub(crate) async fn new(allocator: &Allocator<'_>) -> Result<Self, Fault> {
        let made = allocator.allocate(&Self::plan()).await?;
        let buffers = made.into_iter().map(|allocation| {
            let signal = Signal::default();
            signal.map(&allocation.buffer, wgpu::MapMode::Write);
            (allocation, RefCell::new(signal))
        });
        Ok(Self { buffers: buffers.collect(), next: RefCell::new(0) })
    }
}

/// Gathers writes to device buffers and sends them through the staging buffers.
pub(crate) struct Writer<'a> {
    gpu: &'a Gpu,
    bytes: Vec<u8>,
    copies: Vec<Copy>,
}

struct Copy {
    to: wgpu::Buffer,
    offset: u64,
    from: u64,
    len: u64,
}

impl<'a> Writer<'a> {
    /// A writer with nothing to write.
    pub(crate) fn new(gpu: &'a Gpu) -> Self {
        Self { gpu, bytes: Vec::with_capacity(STAGING_BYTES as usize), copies: Vec::new() }
    }

    /// Writes `data` at `offset` of `to`; both lengths are multiples of 4.
    pub(crate) async fn write(&mut self, to: &wgpu::Buffer, offset: u64, data: &[u8]) -> Result<(), Fault> {
        let (mut offset, mut data) = (offset, data);
        while !data.is_empty() {
            let room = STAGING_BYTES as usize - self.bytes.len();
            let (now, later) = data.split_at(room.min(data.len()));
            let (from, len) = (self.bytes.len() as u64, now.len() as u64);
            self.bytes.extend_from_slice(now);
            match self.copies.last_mut() {
                Some(last) if last.to == *to && last.offset + last.len == offset => last.len += len,
                _ => self.copies.push(Copy { to: to.clone(), offset, from, len }),
            }
            (offset, data) = (offset + len, later);
            if self.bytes.len() == STAGING_BYTES as usize {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Sends what is left. Without it, writes that are still gathered are dropped.
    pub(crate) async fn flush(&mut self) -> Result<(), Fault> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let Gpu { device, queue, info, staging, .. } = self.gpu;
        let index = *staging.next.borrow();
        *staging.next.borrow_mut() = (index + 1) % staging.buffers.len();
        let (allocation, signal) = &staging.buffers[index];
        let mapped = signal.borrow().wait(self.gpu);
        mapped.await.map_err(|reason| lost(&info.name, reason))?;

        let buffer = &allocation.buffer;
        buffer.slice(..self.bytes.len() as u64).get_mapped_range_mut().copy_from_slice(&self.bytes);
        buffer.unmap();
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for copy in self.copies.drain(..) {
            encoder.copy_buffer_to_buffer(buffer, copy.from, &copy.to, copy.offset, copy.len);
        }
        self.bytes.clear();
        queue.submit([encoder.finish()]);
        let again = Signal::default();
        again.map(buffer, wgpu::MapMode::Write);
        *signal.borrow_mut() = again;
        self.gpu.check()
    }
}
