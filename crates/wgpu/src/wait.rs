//! Waiting for the device. The only file that blocks.
//!
//! Natively wgpu runs callbacks only while somebody polls the device, so the future that waits for a
//! callback polls it itself, up to the end of the submission that brings the callback: a later one may be on its way,
//! and the device is not to idle until its successor comes. In the browser callbacks come from the event loop and waiting
//! is impossible.

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

    /// Awaits the event, or the device's loss. It comes with the end of the last submission.
    pub(crate) fn wait(&self, gpu: &Gpu) -> impl Future<Output = Result<(), String>> + use<> {
        self.wait_for(gpu, None)
    }

    /// As [`wait`](Self::wait), where the event comes with the end of `submission`, if one is named.
    pub(crate) fn wait_for(
        &self,
        gpu: &Gpu,
        submission: Option<wgpu::SubmissionIndex>,
    ) -> impl Future<Output = Result<(), String>> + use<> {
        Wait {
            submission,
            signal: self.clone(),
            device: gpu.device.clone(),
            trouble: gpu.trouble.clone(),
            meter: gpu.meter.clone(),
        }
    }

    /// Blocks until the event, which comes with the end of `submission`.
    ///
    /// # Errors
    /// What the event reported; in the browser, that blocking is impossible.
    pub(crate) fn block(&self, gpu: &Gpu, submission: &wgpu::SubmissionIndex) -> Result<(), String> {
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
            gpu.meter.driver(|| poll(&gpu.device, Some(submission)));
        }
    }
}

/// Lets the device report what has ended, waiting a while for `submission` to end, or the last one.
#[cfg(not(target_arch = "wasm32"))]
fn poll(device: &wgpu::Device, submission: Option<&wgpu::SubmissionIndex>) {
    // Where it is not known what brings the callback, it may well come before the last submission ends.
    let timeout = Some(std::time::Duration::from_millis(if submission.is_some() { 50 } else { 5 }));
    // A timeout is no failure: the caller looks again. A lost device signals an error by itself.
    let _ = device.poll(wgpu::PollType::Wait { submission_index: submission.cloned(), timeout });
}

#[cfg(target_arch = "wasm32")]
fn poll(_device: &wgpu::Device, _submission: Option<&wgpu::SubmissionIndex>) {}

struct Wait {
    submission: Option<wgpu::SubmissionIndex>,
    signal: Signal,
    device: wgpu::Device,
    trouble: Trouble,
    meter: Meter,
}

impl Future for Wait {
    type Output = Result<(), String>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.signal.outcome().is_none() {
            self.meter.driver(|| poll(&self.device, self.submission.as_ref()));
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
