//! The way of weights to the device, and of keys and values from it: fixed buffers that were there from the start.
//!
//! `queue.write_buffer` would allocate while it stages, and a failure there loses the device; two of these
//! are mapped, filled and copied from in turn, so that one is filled while the other is read. A third is copied to
//! and read.

use crate::gpu::{Allocation, Allocator, BufferPlan, Gpu};
use crate::wait::{Signal, lost};
use halfbyte_backend::{Fault, Purpose};
use std::cell::{Cell, RefCell};

/// Bytes of one staging buffer.
pub(crate) const STAGING_BYTES: u64 = 4 << 20;
/// How many there are.
pub(crate) const STAGING_BUFFERS: u64 = 2;

/// Bytes of the buffer that is read.
pub(crate) const READ_BYTES: u64 = 2 << 20;

/// The staging buffers, mapped for writing or on their way to it, and the one that is read.
pub(crate) struct Staging {
    buffers: Vec<(Allocation, RefCell<Signal>)>,
    next: RefCell<usize>,
    read: Allocation,
    /// Whether somebody waits for what was copied to `read`, and nobody else may.
    reading: Cell<bool>,
}

impl Staging {
    /// What [`Staging::new`] allocates.
    pub(crate) fn plan() -> Vec<BufferPlan> {
        let plan = |name, bytes, usage| BufferPlan { name, purpose: Purpose::Staging, bytes, usage };
        let write = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        let read = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let written = (0..STAGING_BUFFERS).map(|i| plan(format!("staging {i}"), STAGING_BYTES, write));
        written.chain([plan("staging to read".into(), READ_BYTES, read)]).collect()
    }

    /// Allocates and maps the buffers.
    pub(crate) async fn new(allocator: &Allocator<'_>) -> Result<Self, Fault> {
        let mut made = allocator.allocate(&Self::plan()).await?;
        let read = made.pop().ok_or_else(|| Fault::Internal("no staging".into()))?;
        let buffers = made.into_iter().map(|allocation| {
            let signal = Signal::default();
            signal.map(&allocation.buffer, wgpu::MapMode::Write);
            (allocation, RefCell::new(signal))
        });
        let (next, reading) = (RefCell::new(0), Cell::new(false));
        Ok(Self { buffers: buffers.collect(), next, read, reading })
    }
}

/// Gathers writes to device buffers and sends them through the staging buffers.
pub(crate) struct Writer<'a> {
    gpu: &'a Gpu,
    bytes: Vec<u8>,
    copies: Vec<Copy>,
}

/// Bytes of a device's buffer that are to be read.
pub(crate) struct Piece<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// Reads pieces of device buffers, one after the other, after all that was submitted before. Offsets and lengths
/// are multiples of 4.
///
/// # Errors
/// [`Fault::Lost`] if the device is gone; [`Fault::Internal`] if another read is on its way.
pub(crate) async fn read(gpu: &Gpu, pieces: impl Iterator<Item = Piece<'_>>) -> Result<Vec<u8>, Fault> {
    let staging = &gpu.staging;
    if staging.reading.replace(true) {
        return Err(Fault::Internal(format!("{}: two reads at once", gpu.info.name)));
    }
    let _done = Done(&staging.reading);
    let (mut bytes, mut filled) = (Vec::new(), 0);
    let begin = || gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut encoder = begin();
    for Piece { buffer, mut offset, mut len } in pieces {
        while len > 0 {
            let now = len.min(READ_BYTES - filled);
            encoder.copy_buffer_to_buffer(buffer, offset, &staging.read.buffer, filled, now);
            (offset, len, filled) = (offset + now, len - now, filled + now);
            if filled == READ_BYTES {
                fetch(gpu, std::mem::replace(&mut encoder, begin()), filled, &mut bytes).await?;
                filled = 0;
            }
        }
    }
    if filled > 0 {
        fetch(gpu, encoder, filled, &mut bytes).await?;
    }
    Ok(bytes)
}

/// Submits the copies and appends what they brought.
async fn fetch(gpu: &Gpu, encoder: wgpu::CommandEncoder, len: u64, bytes: &mut Vec<u8>) -> Result<(), Fault> {
    gpu.queue.submit([encoder.finish()]);
    gpu.check()?;
    let buffer = &gpu.staging.read.buffer;
    let signal = Signal::default();
    signal.map(buffer, wgpu::MapMode::Read);
    signal.wait(gpu).await.map_err(|reason| lost(&gpu.info.name, reason))?;
    bytes.extend_from_slice(&buffer.slice(..len).get_mapped_range());
    buffer.unmap();
    gpu.check()
}

/// Ends a read, whatever became of it.
struct Done<'a>(&'a Cell<bool>);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
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
