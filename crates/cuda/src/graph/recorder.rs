//! Who records: it loads kernels, and finds out where CubeCL's buffers lie.

use super::compile::{ToSource, compile};
use super::prepared::{Function, Prepared, scalars};
use super::stream::Stream;
use super::{Graph, Recorded};
use crate::guard::caught;
use crate::launch::{Arg, Counts, Element, Kernel, Launch};
use crate::recording::{Recorder, Recording};
use cubecl::cuda::{CudaRuntime, install};
use cubecl::prelude::*;
use cubecl::server::Handle;
use cudarc::driver::{DriverError, result as driver, sys};
use halfbyte_backend::Fault;
use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::rc::Rc;

/// How submissions that repeat are launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through CubeCL, as all others.
    Cubecl,
    /// One `cuLaunchKernel` each.
    Stream,
    /// As one graph.
    Graph,
    /// As one graph, if that says the same as CubeCL's launches, sooner.
    Trial,
}

impl Way {
    /// What `HALFBYTE_CUDA_LAUNCH` asks for.
    pub(crate) fn wanted(wanted: Option<&str>) -> Self {
        match wanted {
            Some("cubecl") => Way::Cubecl,
            Some("stream") => Way::Stream,
            Some("graph") => Way::Graph,
            _ => Way::Trial,
        }
    }
}

/// Records launches for one CUDA device.
pub(crate) struct CudaRecorder {
    client: &'static ComputeClient<CudaRuntime>,
    stream: Rc<Stream>,
    architecture: String,
    functions: RefCell<Vec<(Kernel, Function)>>,
    way: Way,
}

impl CudaRecorder {
    /// A recorder for the CUDA device `index`, which CubeCL drives as `client`.
    pub(crate) fn open(
        device: &str,
        index: usize,
        client: &'static ComputeClient<CudaRuntime>,
        way: Way,
    ) -> Result<Self, Fault> {
        let lost = |error: DriverError| Fault::Lost { device: device.to_owned(), reason: error.to_string() };
        let ordinal = driver::device::get(i32::try_from(index).unwrap_or(i32::MAX)).map_err(lost)?;
        // SAFETY: `ordinal` comes from the driver. The context is retained for good, as CubeCL's is; the stream is
        // destroyed by `Stream`.
        let (context, stream, version) = unsafe {
            let attribute = |attribute| driver::device::get_attribute(ordinal, attribute);
            use sys::CUdevice_attribute as Attribute;
            let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR).map_err(lost)?;
            let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR).map_err(lost)?;
            let context = driver::primary_ctx::retain(ordinal).map_err(lost)?;
            driver::ctx::set_current(context).map_err(lost)?;
            let stream = driver::stream::create(driver::stream::StreamKind::NonBlocking).map_err(lost)?;
            (context, stream, major * 10 + minor)
        };
        let stream = Stream { device: device.to_owned(), context, stream, pages: RefCell::default() };
        let architecture = format!("sm_{version}{}", if version >= 90 { "a" } else { "" });
        Ok(Self { client, stream: Rc::new(stream), architecture, functions: RefCell::default(), way })
    }

    fn function(&self, kernel: Kernel) -> Result<Function, Fault> {
        if let Some((_, function)) = self.functions.borrow().iter().find(|(known, _)| *known == kernel) {
            return Ok(*function);
        }
        let device = &self.stream.device;
        let broken = |error: String| Fault::Internal(format!("{device}: a kernel did not compile: {error}"));
        let source = caught(device, || kernel.visit(self.client, ToSource))?.map_err(broken)?;
        let include = caught(device, install::include_path)?;
        let ptx = compile(&source.text, &self.architecture, &include.to_string_lossy()).map_err(broken)?;
        let entry = CString::new(source.entry).map_err(|error| broken(error.to_string()))?;
        let function = self.stream.call("loading a kernel", || {
            // SAFETY: the PTX ends in a zero and has this entry; the module is never unloaded.
            unsafe {
                let module = driver::module::load_data(ptx.as_ptr().cast())?;
                let function = driver::module::get_function(module, entry)?;
                let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                driver::function::set_function_attribute(function, most, source.shared_memory as i32)?;
                Ok(Function { function, shared_memory: source.shared_memory })
            }
        })?;
        self.functions.borrow_mut().push((kernel, function));
        Ok(function)
    }

    /// The address of a buffer, which stays where it is as long as its handle lives.
    fn pointer(&self, handle: &Handle) -> Result<u64, Fault> {
        let device = &self.stream.device;
        let resource = caught(device, || self.client.get_resource(handle.clone()))?;
        let resource =
            resource.map_err(|error| crate::guard::fault(device, "the address of a buffer", &error))?;
        Ok(resource.resource().ptr)
    }

    fn prepare(&self, launch: &Launch, places: &Handle, counts: Counts) -> Result<Prepared, Fault> {
        let (mut pointers, mut sizes) = (Vec::new(), Vec::new());
        for arg in &launch.args {
            let (handle, element) = match arg {
                Arg::Array(handle, element) => (handle, *element),
                Arg::Places => (places, Element::U32),
                _ => continue,
            };
            pointers.push(self.pointer(handle)?);
            sizes.push(handle.size_in_used() / element.bytes());
        }
        Ok(Prepared {
            function: self.function(launch.kernel)?,
            grid: launch.grid.map(|extent| extent.of(counts)),
            units: launch.kernel.units() as u32,
            pointers,
            scalars: scalars(launch, &sizes, counts),
        })
    }
}

impl Recorder for CudaRecorder {
    fn record(
        &self,
        launches: Vec<Launch>,
        places: &Handle,
        answer: &Handle,
        counts: Counts,
    ) -> Result<Box<dyn Recording>, Fault> {
        let prepare = |launch| self.prepare(launch, places, counts);
        let launches = launches.iter().map(prepare).collect::<Result<Vec<_>, _>>()?;
        let graph = match self.way {
            Way::Graph | Way::Trial => Graph::Next { launched: false },
            Way::Stream | Way::Cubecl => Graph::Not,
        };
        Ok(Box::new(Recorded {
            stream: Rc::clone(&self.stream),
            launches,
            graph: Cell::new(graph),
            places: self.pointer(places)?,
            places_bytes: places.size_in_used() as usize,
            answer: self.pointer(answer)?,
            answer_bytes: answer.size_in_used() as usize,
        }))
    }

    fn on_trial(&self) -> bool {
        self.way == Way::Trial
    }

    fn finish(&self) -> Result<(), Fault> {
        self.stream.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_is_asked_for() {
        assert_eq!(Way::wanted(None), Way::Trial);
        assert_eq!(Way::wanted(Some("cubecl")), Way::Cubecl);
        assert_eq!(Way::wanted(Some("stream")), Way::Stream);
        assert_eq!(Way::wanted(Some("graph")), Way::Graph);
    }
}
