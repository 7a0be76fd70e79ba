//! The way of results back: rings of mapped buffers, so that several answers may be on their way.

use crate::gpu::Gpu;
use crate::wait::{Signal, lost};
use halfbyte_backend::Fault;
use std::cell::RefCell;
use std::rc::Rc;

/// One answer that was asked for.
#[derive(Debug)]
pub(crate) struct Pending {
    buffer: wgpu::Buffer,
    len: u64,
    /// What copies the bytes.
    submission: wgpu::SubmissionIndex,
    signal: Signal,
    state: RefCell<State>,
}

/// Where an answer's bytes are.
#[derive(Debug, Default)]
enum State {
    /// In the buffer, now or soon.
    #[default]
    Mapped,
    /// Here; the buffer is free again.
    Fetched(Vec<u8>),
    /// With the caller.
    Taken,
}

/// Buffers that take answers in turn.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    slots: Vec<(wgpu::Buffer, Option<Rc<Pending>>)>,
    next: usize,
}

impl Ring {
    /// A ring of `buffers`.
    pub(crate) fn new(buffers: Vec<wgpu::Buffer>) -> Self {
        Self { slots: buffers.into_iter().map(|buffer| (buffer, None)).collect(), next: 0 }
    }

    /// The next buffer, free to be copied to. If its last answer was not awaited yet, this waits until
    /// that has arrived and keeps its bytes for it.
    pub(crate) fn next(&mut self, gpu: &Gpu) -> Result<wgpu::Buffer, Fault> {
        let index = self.next;
        let Some((buffer, pending)) = self.slots.get_mut(index) else {
            return Err(Fault::Invalid("an answer that the program was not compiled for".into()));
        };
        if let Some(pending) = pending.take() {
            pending.signal.block(gpu, &pending.submission).map_err(|reason| lost(&gpu.info.name, reason))?;
            gpu.meter.driver(|| pending.fetch());
        }
        Ok(buffer.clone())
    }

    /// Maps the buffer of [`Ring::next`], now that the copy of `len` bytes to it is submitted with `submission`.
    pub(crate) fn map(&mut self, len: u64, submission: wgpu::SubmissionIndex) -> Option<Rc<Pending>> {
        let index = self.next;
        self.next = (self.next + 1) % self.slots.len().max(1);
        let (buffer, slot) = self.slots.get_mut(index)?;
        let signal = Signal::default();
        signal.map(buffer, wgpu::MapMode::Read);
        let pending =
            Rc::new(Pending { buffer: buffer.clone(), len, submission, signal, state: RefCell::default() });
        *slot = Some(pending.clone());
        Some(pending)
    }
}

impl Pending {
    /// Takes the bytes out of the mapped buffer, if that was not done.
    fn fetch(&self) {
        let mut state = self.state.borrow_mut();
        if let State::Mapped = *state {
            *state = State::Fetched(self.buffer.slice(..self.len).get_mapped_range().to_vec());
            self.buffer.unmap();
        }
    }

    /// Awaits the bytes.
    pub(crate) async fn bytes(&self, gpu: &Gpu) -> Result<Vec<u8>, Fault> {
        let mapped = self.signal.wait_for(gpu, Some(self.submission.clone())).await;
        gpu.check()?;
        mapped.map_err(|reason| lost(&gpu.info.name, reason))?;
        gpu.meter.driver(|| self.fetch());
        match self.state.replace(State::Taken) {
            State::Fetched(bytes) => Ok(bytes),
            State::Mapped | State::Taken => Err(Fault::Internal("an answer was taken twice".into())),
        }
    }
}
