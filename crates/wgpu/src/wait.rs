//! Waiting for the device. The only file that blocks.
//!
//! Natively wgpu runs callbacks only while somebody polls the device, so the future that waits for a
//! callback polls it itself, in short waits: several may be outstanding and awaited in any order. In
//! the browser callbacks come from the event loop and waiting is impossible.

use crate::gpu::{Gpu, Trouble};
use crate::meter::Meter;
use halfbyte_backend::Fault;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

/// One event that a wgpu callback reports: that a buffer is mapped, or that it could not be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signal(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    outcome: Option<Result<(), String>>,
    waker: Option<Waker>,
}

impl Signal {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Reports the event.
    pub(crate) fn set(&self, outcome: Result<(), String>) {
        let mut state = self.state();
        state.outcome = Some(outcome);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// What was reported, if anything was.
    pub(crate) fn outcome(&self) -> Option<Result<(), String>> {
        self.state().outcome.clone()
    }

    /// Maps all of `buffer` and signals the end of it.
    pub(crate) fn map(&self, buffer: &wgpu::Buffer, mode: wgpu::MapMode) {
        let signal = self.clone();
        buffer.slice(..).map_async(mode, move |result| signal.set(result.map_err(|error| error.to_string())));
    }

    /// Awaits the event, or the device's loss.
    pub(crate) fn wait(&self, gpu: &Gpu) -> impl Future<Output = Result<(), String>> + use<> {
        Wait {
            signal: self.clone(),
            device: gpu.device.clone(),
            trouble: gpu.trouble.clone(),
            meter: gpu.meter.clone(),
        }
    }

    /// Blocks until the event.
    ///
    /// # Errors
    /// What the event reported; in the browser, that blocking is impossible.
    pub(crate) fn block(&self, gpu: &Gpu) -> Result<(), String> {
        loop {
            if let Some(outcome) = self.outcome() {
                return outcome;
            }
            if let Some(reason) = gpu.trouble.lost() {
                return Err(reason);
            }
            if cfg!(target_arch = "wasm32") {
                return Err("too many answers are awaited at once".into());
            }
            gpu.meter.driver(|| poll(&gpu.device));
        }
    }
}

/// Lets the device report what has ended, waiting a few milliseconds for it.
#[cfg(not(target_arch = "wasm32"))]
fn poll(device: &wgpu::Device) {
    let timeout = Some(std::time::Duration::from_millis(5));
    // A timeout is no failure: the caller looks again. A lost device signals an error by itself.
    let _ = device.poll(wgpu::PollType::Wait { submission_index: None, timeout });
}

#[cfg(target_arch = "wasm32")]
fn poll(_device: &wgpu::Device) {}

struct Wait {
    signal: Signal,
    device: wgpu::Device,
    trouble: Trouble,
    meter: Meter,
}

impl Future for Wait {
    type Output = Result<(), String>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.signal.outcome().is_none() {
            self.meter.driver(|| poll(&self.device));
        }
        let mut state = self.signal.state();
        if let Some(outcome) = state.outcome.clone() {
            return Poll::Ready(outcome);
        }
        if let Some(reason) = self.trouble.lost() {
            return Poll::Ready(Err(reason));
        }
        state.waker = Some(context.waker().clone());
        if !cfg!(target_arch = "wasm32") {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

/// Lets the driver take back what was freed.
pub(crate) fn reclaim(device: &wgpu::Device) {
    let _ = device.poll(wgpu::PollType::Poll);
}

/// A mapping that failed means that the device is gone.
pub(crate) fn lost(device: &str, reason: String) -> Fault {
    Fault::Lost { device: device.to_owned(), reason }
}
