//! A stream of our own, and the page-locked memory through which metadata goes up and answers come down.

use cudarc::driver::{DriverError, result as driver, sys};
use halfbyte_backend::Fault;
use std::cell::RefCell;
use std::rc::Rc;

/// The device's own stream, destroyed with the last who uses it.
pub(super) struct Stream {
    pub device: String,
    pub context: sys::CUcontext,
    pub stream: sys::CUstream,
    /// Page-locked memory that is free.
    pub pages: RefCell<Vec<Pages>>,
}

/// Page-locked host memory for a step, its metadata and behind it its answer, and the event that says that the answer
/// is there.
pub(super) struct Pages {
    pub bytes: *mut u8,
    pub len: usize,
    pub event: sys::CUevent,
}

impl Stream {
    fn fault(&self, what: &str, error: DriverError) -> Fault {
        Fault::Lost { device: self.device.clone(), reason: format!("{what}: {error}") }
    }

    /// Calls the driver in the device's context.
    pub(super) fn call<T>(
        &self,
        what: &str,
        call: impl FnOnce() -> Result<T, DriverError>,
    ) -> Result<T, Fault> {
        // SAFETY: the primary context is retained as long as `self` lives.
        let current = unsafe { driver::ctx::set_current(self.context) };
        current.and_then(|()| call()).map_err(|error| self.fault(what, error))
    }

    pub(super) fn finish(&self) -> Result<(), Fault> {
        // SAFETY: the stream is ours and lives as long as `self`.
        self.call("waiting for the device", || unsafe { driver::stream::synchronize(self.stream) })
    }

    /// `len` bytes that nobody uses.
    pub(super) fn pages(&self, len: usize) -> Result<Pages, Fault> {
        let mut free = self.pages.borrow_mut();
        if let Some(index) = free.iter().position(|pages| pages.len >= len) {
            return Ok(free.swap_remove(index));
        }
        self.call("page-locked memory", || {
            let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
            let event = driver::event::create(flags)?;
            // SAFETY: plain bytes, read only after somebody has written them.
            match unsafe { driver::malloc_host(len, 0) } {
                Ok(bytes) => Ok(Pages { bytes: bytes.cast(), len, event }),
                Err(error) => {
                    // SAFETY: the event was just made and nobody waits for it.
                    let _ = unsafe { driver::event::destroy(event) };
                    Err(error)
                }
            }
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Errors of a device that is lost change nothing here.
        let _ = self.finish();
        for pages in self.pages.borrow_mut().drain(..) {
            // SAFETY: both were made by `pages`, and all work that used them has ended.
            unsafe {
                let _ = driver::free_host(pages.bytes.cast());
                let _ = driver::event::destroy(pages.event);
            }
        }
        // SAFETY: the stream is ours, and idle.
        let _ = unsafe { driver::stream::destroy(self.stream) };
    }
}

/// An answer on its way. Whether it is awaited or not, its memory goes back when it has come.
pub(super) struct Pending {
    pub stream: Rc<Stream>,
    pub pages: Option<Pages>,
    /// Where the answer begins, and its bytes.
    pub at: usize,
    pub len: usize,
}

impl Pending {
    pub(super) fn bytes(&self) -> Result<Vec<u8>, Fault> {
        let Some(pages) = &self.pages else { return Ok(Vec::new()) };
        // SAFETY: the event is ours; after it the device has written `len` bytes, and writes no more.
        unsafe {
            self.stream.call("reading an answer", || driver::event::synchronize(pages.event))?;
            Ok(std::slice::from_raw_parts(pages.bytes.add(self.at), self.len).to_vec())
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(pages) = self.pages.take() else { return };
        // SAFETY: as above; an event that was never recorded is there at once.
        let _ = self.stream.call("an answer", || unsafe { driver::event::synchronize(pages.event) });
        self.stream.pages.borrow_mut().push(pages);
    }
}
