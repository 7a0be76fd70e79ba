//! An open device with everything that lives as long as it.

use crate::meter::Meter;
use crate::pipeline::Pipelines;
use crate::staging::Staging;
use crate::tuning::Tuning;
use halfbyte_backend::{DeviceInfo, Fault, Ledger, Purpose};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

/// An open device. Shared by the backend, its programs and their tickets.
pub(crate) struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: DeviceInfo,
    pub(crate) ledger: Rc<Ledger>,
    pub(crate) pipelines: Pipelines,
    pub(crate) staging: Staging,
    /// Shapes of kernels that are compiled from now on.
    pub(crate) tuning: Cell<Tuning>,
    /// The most bytes that the ledger may hold.
    pub(crate) budget: Option<u64>,
    pub(crate) trouble: Trouble,
    pub(crate) meter: Meter,
}

/// What the device reported outside of any call: kept until the next call asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trouble(Arc<Mutex<Reported>>);

#[derive(Debug, Default)]
struct Reported {
    lost: Option<String>,
    error: Option<String>,
}

impl Trouble {
    /// Routes the device's own reports here instead of into a panic.
    pub(crate) fn listen(&self, device: &wgpu::Device) {
        let (on_lost, on_error) = (self.clone(), self.clone());
        device.set_device_lost_callback(move |reason, message| {
            // The backend's own end is no loss.
            if reason != wgpu::DeviceLostReason::Destroyed {
                on_lost.with(|reported| reported.lost = Some(message));
            }
        });
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            on_error.with(|reported| {
                reported.error.get_or_insert_with(|| error.to_string());
            });
        }));
    }

    fn with<T>(&self, look: impl FnOnce(&mut Reported) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Why the device was lost, if it was.
    pub(crate) fn lost(&self) -> Option<String> {
        self.with(|reported| reported.lost.clone())
    }

    /// What was reported since the last call; a loss is for ever.
    pub(crate) fn check(&self, device: &str) -> Result<(), Fault> {
        self.with(|reported| {
            if let Some(reason) = &reported.lost {
                return Err(Fault::Lost { device: device.to_owned(), reason: reason.clone() });
            }
            match reported.error.take() {
                Some(error) => Err(Fault::Internal(format!("{device}: {error}"))),
                None => Ok(()),
            }
        })
    }
}

impl Gpu {
    /// Whether the device still stands and nothing went wrong unseen.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        self.trouble.check(&self.info.name)
    }
}

/// A buffer to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BufferPlan {
    pub(crate) name: String,
    pub(crate) purpose: Purpose,
    pub(crate) bytes: u64,
    pub(crate) usage: wgpu::BufferUsages,
}

/// A buffer in the ledger; struck from it when dropped.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) buffer: wgpu::Buffer,
    ledger: Rc<Ledger>,
    entry: u64,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.ledger.strike(self.entry);
    }
}

/// Where allocations are made.
pub(crate) struct Allocator<'a> {
    pub(crate) device: &'a wgpu::Device,
    pub(crate) name: &'a str,
    pub(crate) ledger: &'a Rc<Ledger>,
    pub(crate) budget: Option<u64>,
}

impl Allocator<'_> {
    /// Makes all buffers or none. Each is created inside an error scope: a failure leaves the device as
    /// it was.
    ///
    /// # Errors
    /// [`Fault::OutOfMemory`] naming the buffer that did not fit.
    pub(crate) async fn allocate(&self, plans: &[BufferPlan]) -> Result<Vec<Allocation>, Fault> {
        let mut made = Vec::with_capacity(plans.len());
        for plan in plans {
            let refused = |free| Fault::OutOfMemory {
                device: self.name.to_owned(),
                name: plan.name.clone(),
                wanted: plan.bytes,
                free,
                what: plan.purpose,
            };
            if let Some(budget) = self.budget {
                let free = budget.saturating_sub(self.ledger.footprint().total());
                if plan.bytes > free {
                    return Err(refused(Some(free)));
                }
            }
            let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
            let validity = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
            let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(&plan.name),
                size: plan.bytes,
                usage: plan.usage,
                mapped_at_creation: false,
            });
            let (validity, memory) = (validity.pop(), memory.pop());
            if memory.await.is_some() {
                return Err(refused(None));
            }
            if let Some(error) = validity.await {
                return Err(Fault::Internal(format!("{}: {}: {error}", self.name, plan.name)));
            }
            let entry = self.ledger.enter(&plan.name, plan.purpose, plan.bytes);
            made.push(Allocation { buffer, ledger: self.ledger.clone(), entry });
        }
        Ok(made)
    }
}

impl Gpu {
    /// The allocator of this device.
    pub(crate) fn allocator(&self) -> Allocator<'_> {
        Allocator { device: &self.device, name: &self.info.name, ledger: &self.ledger, budget: self.budget }
    }
}
