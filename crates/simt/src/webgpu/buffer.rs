//! Buffers, and mapping them.

use super::device::Shared;
use super::errors::validation;
use crate::run::Store;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wgpu::custom::{BufferInterface, BufferMappedRangeInterface, DispatchBufferMappedRange};
use wgpu::{BufferAsyncError, BufferUsages, MapMode};

/// Called when a mapping has succeeded or failed.
pub(super) type Callback = Box<dyn FnOnce(Result<(), BufferAsyncError>) + Send + 'static>;

/// A buffer.
#[derive(Debug, Clone)]
pub(super) struct Buffer(pub(super) Arc<Inner>);

/// What is in it.
pub(super) struct Inner {
    pub(super) device: Arc<Shared>,
    pub(super) label: String,
    pub(super) size: u64,
    pub(super) usage: BufferUsages,
    /// Whether creating it failed.
    pub(super) invalid: bool,
    store: Mutex<Store>,
    mapping: Mutex<Mapping>,
}

/// Whether a buffer is the host's.
#[derive(Default)]
enum Mapping {
    #[default]
    None,
    /// Until the device is polled.
    Pending(Callback),
    Mapped,
    Destroyed,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { label, size, usage, .. } = self;
        f.debug_struct("Buffer")
            .field("label", label)
            .field("size", size)
            .field("usage", usage)
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.invalid {
            self.device.free(self.size);
        }
    }
}

impl Buffer {
    /// A buffer of zeros; an invalid one if the device says so.
    pub(super) fn new(device: Arc<Shared>, desc: &wgpu::BufferDescriptor<'_>) -> Self {
        let label = desc.label.unwrap_or("").to_owned();
        let error = refused(&device, desc).map(|why| validation(format!("buffer `{label}`: {why}")));
        let error = error.or_else(|| device.allocate(desc.size, &label));
        let invalid = error.is_some();
        if let Some(error) = error {
            device.report(error);
        }
        let words = if invalid { 0 } else { desc.size.div_ceil(4) as usize };
        let store = Store { words: vec![0; words], shadow: Vec::new(), name: label.clone() };
        let mapping = if desc.mapped_at_creation { Mapping::Mapped } else { Mapping::None };
        let (store, mapping) = (Mutex::new(store), Mutex::new(mapping));
        Self(Arc::new(Inner { device, label, size: desc.size, usage: desc.usage, invalid, store, mapping }))
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.0.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mapping(&self) -> MutexGuard<'_, Mapping> {
        self.0.mapping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the device may not use it now.
    pub(super) fn busy(&self) -> Option<String> {
        let state = match *self.mapping() {
            Mapping::None if self.0.invalid => "invalid",
            Mapping::None => return None,
            Mapping::Pending(_) | Mapping::Mapped => "mapped",
            Mapping::Destroyed => "destroyed",
        };
        Some(format!("buffer `{}` is {state}", self.0.label))
    }

    /// Ends a pending mapping well.
    pub(super) fn arrive(&self) {
        let mut mapping = self.mapping();
        if let Mapping::Pending(callback) = std::mem::replace(&mut *mapping, Mapping::Mapped) {
            drop(mapping);
            callback(Ok(()));
        }
    }

    pub(super) fn read(&self, range: Range<u64>) -> Vec<u8> {
        let store = self.store();
        let bytes: &[u8] = bytemuck::cast_slice(&store.words);
        bytes[range.start as usize..range.end as usize].to_vec()
    }

    pub(super) fn write(&self, at: u64, data: &[u8]) {
        let mut store = self.store();
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut store.words);
        bytes[at as usize..at as usize + data.len()].copy_from_slice(data);
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Why `size` bytes from `at` on cannot be copied to or from here.
    pub(super) fn refuses(&self, at: u64, size: u64, usage: BufferUsages) -> Option<String> {
        let Inner { label, size: own, usage: offered, .. } = &*self.0;
        if self.0.invalid {
            Some(format!("buffer `{label}` is invalid"))
        } else if !offered.contains(usage) {
            Some(format!("buffer `{label}` is {offered:?}, not {usage:?}"))
        } else if !at.is_multiple_of(4) || !size.is_multiple_of(4) {
            Some(format!("buffer `{label}`: {size} bytes at {at} are not aligned to 4"))
        } else if at.checked_add(size).is_none_or(|end| end > *own) {
            Some(format!("buffer `{label}`: {size} bytes at {at} exceed its {own}"))
        } else {
            None
        }
    }
}

/// A copy between buffers that was checked.
pub(super) fn copy(from: &Buffer, from_at: u64, to: &Buffer, to_at: u64, size: u64) -> Option<String> {
    if let Some(why) = from.refuses(from_at, size, BufferUsages::COPY_SRC) {
        return Some(why);
    }
    if from.same(to) {
        return Some(format!("buffer `{}` is copied to itself", from.0.label));
    }
    to.refuses(to_at, size, BufferUsages::COPY_DST)
}

fn refused(device: &Shared, desc: &wgpu::BufferDescriptor<'_>) -> Option<String> {
    let usage = desc.usage;
    let most = device.limits.max_buffer_size;
    if desc.size > most {
        return Some(format!("{} bytes exceed max_buffer_size, {most}", desc.size));
    }
    if usage.is_empty() {
        return Some("it has no usage".into());
    }
    for (map, copy) in
        [(BufferUsages::MAP_READ, BufferUsages::COPY_DST), (BufferUsages::MAP_WRITE, BufferUsages::COPY_SRC)]
    {
        if usage.contains(map) && !(map | copy).contains(usage) {
            return Some(format!("{map:?} goes with {copy:?} only, not with {usage:?}"));
        }
    }
    (desc.mapped_at_creation && !desc.size.is_multiple_of(4)).then(|| "its mapped size is not aligned".into())
}

impl BufferInterface for Buffer {
    fn map_async(&self, mode: MapMode, range: Range<u64>, callback: Callback) {
        let usage = match mode {
            MapMode::Read => BufferUsages::MAP_READ,
            MapMode::Write => BufferUsages::MAP_WRITE,
        };
        let wrong = if let Some(why) = self.busy() {
            Some(why)
        } else if !self.0.usage.contains(usage) {
            Some(format!("buffer `{}` is {:?}, not {usage:?}", self.0.label, self.0.usage))
        } else if range.end > self.0.size || !range.start.is_multiple_of(8) || !range.end.is_multiple_of(4) {
            Some(format!("buffer `{}`: bytes {range:?} cannot be mapped", self.0.label))
        } else {
            None
        };
        match wrong {
            Some(why) => {
                self.0.device.report(validation(why));
                callback(Err(BufferAsyncError));
            }
            None => {
                *self.mapping() = Mapping::Pending(callback);
                self.0.device.awaits(self.clone());
            }
        }
    }

    fn get_mapped_range(&self, range: Range<u64>) -> DispatchBufferMappedRange {
        assert!(matches!(*self.mapping(), Mapping::Mapped), "buffer `{}` is not mapped", self.0.label);
        let bytes = self.read(range.clone());
        let view = MappedRange { buffer: self.clone(), at: range.start, bytes, written: false };
        DispatchBufferMappedRange::custom(view)
    }

    fn unmap(&self) {
        if let Mapping::Pending(callback) = std::mem::take(&mut *self.mapping()) {
            callback(Err(BufferAsyncError));
        }
    }

    fn destroy(&self) {
        *self.mapping() = Mapping::Destroyed;
    }
}

/// A view of a mapped buffer: a copy, that is written back if it was written to.
#[derive(Debug)]
struct MappedRange {
    buffer: Buffer,
    at: u64,
    bytes: Vec<u8>,
    written: bool,
}

impl Drop for MappedRange {
    fn drop(&mut self) {
        if self.written {
            self.buffer.write(self.at, &self.bytes);
        }
    }
}

#[allow(unsafe_code, reason = "the interface's methods are unsafe; nothing here is")]
impl BufferMappedRangeInterface for MappedRange {
    fn len(&self) -> usize {
        self.bytes.len()
    }

    unsafe fn read_slice(&self) -> &[u8] {
        &self.bytes
    }

    unsafe fn write_slice(&mut self) -> wgpu::WriteOnly<'_, [u8]> {
        self.written = true;
        wgpu::WriteOnly::from_mut(&mut self.bytes)
    }
}
