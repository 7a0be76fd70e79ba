//! Launches below CubeCL (feature `cuda`): the decode step as one CUDA graph.
//!
//! CubeCL 0.10 cannot capture graphs and keeps its streams to itself. But it compiles: the C++ that it makes of a
//! kernel goes through NVRTC here, the kernel is launched on a stream of our own in the device's primary context,
//! over the very buffers that CubeCL allocated, and a stream can be captured.
//!
//! # The arithmetic
//! A token of Llama-2-7B reads 3.60 GB: 3.34 of codes and scales, 0.26 of the head in 16 bits. At their nominal rates an
//! H100 takes 1.08 ms for that (3.35 TB/s), an H200 0.75 (4.8 TB/s); kernels that reach 85 % of it take 1.27 and 0.88.
//! A token is 163 launches (five a layer, `embed`, head, the choice). What a launch costs the host, and what it leaves
//! idle between two kernels on the device, decides the rest:
//!
//! | way | host, a launch | idle, a launch | H100, a token | H200, a token | of the bandwidth |
//! |---|---|---|---|---|---|
//! | through CubeCL | 18 to 45 µs | | 2.9 to 7.3 ms | 2.9 to 7.3 ms | 15 to 37 %, 10 to 26 % |
//! | `cuLaunchKernel` | 2 to 4 µs, hidden | 3 µs | 1.75 ms | 1.37 ms | 61 %, 55 % |
//! | a graph | 10 µs for all | 1 to 1.5 µs | 1.43 to 1.51 ms | 1.04 to 1.12 ms | 71 to 75 %, 67 to 72 % |
//! | one persistent kernel | 5 µs for all | 1 to 2 µs, a grid barrier | 1.43 to 1.59 ms | 1.04 to 1.20 ms | 68 to 75 %, 62 to 72 % |
//!
//! A graph and a persistent kernel leave the same gaps between steps. The graph runs the kernels that the
//! conformance table runs, one by one; a persistent kernel would be a second copy of all of them in one, with its
//! registers and shared memory those of the worst step. So the graph is the choice.
//!
//! All of this is arithmetic from published costs: none of it was measured on a GPU yet. So the graph is on trial: the
//! first step of each kind runs through CubeCL and as a graph, and the graph is kept if it says the same sooner (module
//! `trial`). `HALFBYTE_CUDA_LAUNCH` decides without a trial: `cubecl`, `stream` (one `cuLaunchKernel` each) or `graph`.
//!
//! # What capture asks for
//! - Between begin and end only launches go to the stream, from this thread: nothing is allocated, copied or waited for,
//!   so the thread-local mode refuses nothing that other threads do. Buffers are CubeCL's and stay where they are.
//! - Kernels are loaded before: the driver may load a function when it is first launched, so the first replay launches
//!   one by one, and the second captures.
//! - The driver copies a launch's parameters into the graph; only buffers' contents change, the row metadata among them.
//! - Metadata goes up and answers come down through page-locked memory: with other memory the driver may wait for the
//!   stream before it copies.
//! - CubeCL's allocations are stream-ordered on its own stream. Ours starts after CubeCL was waited for, and CubeCL goes
//!   on after ours has ended (`Recorder::finish`), so neither meets the other's work.

use crate::guard::caught;
use crate::launch::{Arg, Counts, Element, Kernel, Launch, Visitor};
use crate::recording::{Recorder, Recording};
use cubecl::cuda::{CudaCompiler, CudaRuntime, install};
use cubecl::prelude::*;
use cubecl::server::Handle;
use cubecl::{Compiler, CubeTask, InfoBuilder};
use cudarc::driver::sys;
use cudarc::driver::{DriverError, result as driver};
use halfbyte_backend::{Fault, Fut};
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_void};
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

/// Compiled C++ of a kernel, before NVRTC.
pub(crate) struct Source {
    pub text: String,
    pub entry: String,
    /// Bytes.
    pub shared_memory: u32,
}

/// Compiles kernels to C++ that takes its scalars as a constant of the grid, as CubeCL does from sm_70 on.
pub(crate) struct ToSource;

impl Visitor for ToSource {
    type Out = Result<Source, String>;

    fn visit<K: CubeKernel>(self, kernel: K) -> Self::Out {
        let task = KernelTask::<CudaCompiler, K>::new(kernel);
        let mut options = <CudaCompiler as Compiler>::CompilationOptions::default();
        options.supports_features.grid_constants = true;
        let address = task.address_type();
        let compiled = task
            .compile(&mut CudaCompiler::default(), &options, ExecutionMode::Unchecked, address)
            .map_err(|error| error.to_string())?;
        let shared = compiled.repr.as_ref().map_or(0, |repr| repr.shared_memory_size());
        let (text, entry) = (compiled.source, compiled.entrypoint_name);
        Ok(Source { text, entry, shared_memory: shared as u32 })
    }
}

/// PTX of `source` for `architecture`, as in `sm_90a`, with the headers in `include`.
pub(crate) fn compile(source: &str, architecture: &str, include: &str) -> Result<Vec<u8>, String> {
    use cudarc::nvrtc::result as nvrtc;
    let text = CString::new(source).map_err(|error| error.to_string())?;
    let options = [format!("--gpu-architecture={architecture}"), format!("--include-path={include}")];
    let program = nvrtc::create_program(&text, None).map_err(|error| error.to_string())?;
    // SAFETY: the program was just created, is used by nobody else, and is destroyed once, at the end.
    unsafe {
        let compiled = nvrtc::compile_program(program, &options);
        let out = match compiled {
            Ok(()) => nvrtc::get_ptx(program).map_err(|error| error.to_string()),
            Err(error) => {
                let log = nvrtc::get_program_log(program).unwrap_or_default();
                let log: Vec<u8> = log.iter().map(|&letter| letter as u8).collect();
                let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
                Err(format!("{error}: {log}"))
            }
        };
        let _ = nvrtc::destroy_program(program);
        out.map(|ptx| ptx.iter().map(|&letter| letter as u8).collect())
    }
}

/// The scalars of a launch, laid out as CubeCL's kernels take them.
fn scalars(launch: &Launch, sizes: &[u64], counts: Counts) -> Vec<u64> {
    let mut info = InfoBuilder::default();
    let address = launch.kernel.settings().address_type;
    for &size in sizes {
        info.metadata.register_array(size, size, address);
    }
    for arg in &launch.args {
        match *arg {
            Arg::U32(value) => info.scalars.push(value),
            Arg::F32(value) => info.scalars.push(value),
            Arg::Rows => info.scalars.push(counts.rows),
            Arg::Outputs => info.scalars.push(counts.outputs),
            Arg::Array(..) | Arg::Places => {}
        }
    }
    info.finish(address).data
}

/// A loaded kernel. Modules stay for the life of the process, as CubeCL's do.
#[derive(Debug, Clone, Copy)]
struct Function {
    function: sys::CUfunction,
    shared_memory: u32,
}

/// A launch with everything that the driver wants of it.
struct Prepared {
    function: Function,
    grid: [u32; 3],
    units: u32,
    pointers: Vec<u64>,
    scalars: Vec<u64>,
}

/// The device's own stream, destroyed with the last who uses it.
struct Stream {
    device: String,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Page-locked memory that is free.
    pages: RefCell<Vec<Pages>>,
}

/// Page-locked host memory for a step, its metadata and behind it its answer, and the event that says that the answer
/// is there.
struct Pages {
    bytes: *mut u8,
    len: usize,
    event: sys::CUevent,
}

impl Stream {
    fn fault(&self, what: &str, error: DriverError) -> Fault {
        Fault::Lost { device: self.device.clone(), reason: format!("{what}: {error}") }
    }

    /// Calls the driver in the device's context.
    fn call<T>(&self, what: &str, call: impl FnOnce() -> Result<T, DriverError>) -> Result<T, Fault> {
        // SAFETY: the primary context is retained as long as `self` lives.
        let current = unsafe { driver::ctx::set_current(self.context) };
        current.and_then(|()| call()).map_err(|error| self.fault(what, error))
    }

    fn finish(&self) -> Result<(), Fault> {
        // SAFETY: the stream is ours and lives as long as `self`.
        self.call("waiting for the device", || unsafe { driver::stream::synchronize(self.stream) })
    }

    /// `len` bytes that nobody uses.
    fn pages(&self, len: usize) -> Result<Pages, Fault> {
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

impl Prepared {
    fn launch(&self, stream: sys::CUstream) -> Result<(), DriverError> {
        let [x, y, z] = self.grid;
        let pointers =
            self.pointers.iter().map(|pointer| std::ptr::from_ref(pointer).cast_mut().cast::<c_void>());
        let mut params: Vec<*mut c_void> = pointers.collect();
        params.push(self.scalars.as_ptr().cast_mut().cast());
        // SAFETY: the function is loaded; its parameters are its buffers in order and the constant with its scalars,
        // which the driver copies before this returns; the buffers live as long as the program that is recorded.
        unsafe {
            let shared = self.function.shared_memory;
            let function = self.function.function;
            driver::launch_kernel(function, (x, y, z), (self.units, 1, 1), shared, stream, &mut params)
        }
    }
}

/// A recorded list, as a graph if that was asked for.
struct Recorded {
    stream: Rc<Stream>,
    launches: Vec<Prepared>,
    graph: Cell<Graph>,
    places: u64,
    places_bytes: usize,
    answer: u64,
    answer_bytes: usize,
}

/// What becomes of a list.
#[derive(Clone, Copy)]
enum Graph {
    /// It is launched one by one.
    Not,
    /// It is captured once it has been launched, which loads its kernels.
    Next {
        launched: bool,
    },
    Is(sys::CUgraphExec),
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let _ = self.stream.finish();
        if let Graph::Is(graph) = self.graph.get() {
            // SAFETY: the graph is ours and does not run any more.
            let _ = self.stream.call("a graph", || unsafe { driver::graph::exec_destroy(graph) });
        }
    }
}

impl Recorded {
    /// The launches as a graph.
    fn capture(&self) -> Result<sys::CUgraphExec, Fault> {
        let stream = self.stream.stream;
        self.stream.call("capturing a graph", || {
            // SAFETY: the stream is ours; only launches go to it between begin and end, and the graph that they become
            // is destroyed once it is instantiated.
            unsafe {
                let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
                driver::stream::begin_capture(stream, mode)?;
                let launched = self.launches.iter().try_for_each(|launch| launch.launch(stream));
                // Also where a launch failed: a capture that does not end would break the stream.
                let graph = driver::stream::end_capture(stream);
                launched?;
                let graph = graph?;
                let exec = driver::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
                driver::graph::destroy(graph)?;
                exec
            }
        })
    }

    /// How this replay is launched. A graph that cannot be captured is done without.
    fn graph(&self) -> Option<sys::CUgraphExec> {
        let (next, now) = match self.graph.get() {
            Graph::Not => (Graph::Not, None),
            Graph::Is(graph) => (Graph::Is(graph), Some(graph)),
            Graph::Next { launched: false } => (Graph::Next { launched: true }, None),
            Graph::Next { launched: true } => match self.capture() {
                Ok(graph) => (Graph::Is(graph), Some(graph)),
                Err(fault) => {
                    tracing::warn!("{fault}: kernels are launched one by one");
                    (Graph::Not, None)
                }
            },
        };
        self.graph.set(next);
        now
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

impl Recording for Recorded {
    fn replay(&self, words: &[u32]) -> Result<Fut<'static, Vec<u8>>, Fault> {
        let sent: &[u8] = bytemuck::cast_slice(words);
        if sent.len() > self.places_bytes {
            return Err(Fault::Internal(format!("{} words of metadata", words.len())));
        }
        let len = self.answer_bytes;
        let pages = self.stream.pages(self.places_bytes + len)?;
        // SAFETY: `sent` fits before `places_bytes`, where the answer begins; nobody else has these pages.
        let (up, down) = unsafe {
            std::ptr::copy_nonoverlapping(sent.as_ptr(), pages.bytes, sent.len());
            let down = std::slice::from_raw_parts_mut(pages.bytes.add(self.places_bytes), len);
            (std::slice::from_raw_parts(pages.bytes, sent.len()), down)
        };
        let stream = self.stream.stream;
        let graph = self.graph();
        let started = self.stream.call("replaying a step", || {
            // SAFETY: `places` holds as many bytes as `up` (checked above), `answer` holds `len`; the pages stay until
            // their event has come.
            unsafe {
                driver::memcpy_htod_async(self.places, up, stream)?;
                match graph {
                    Some(graph) => driver::graph::launch(graph, stream)?,
                    None => self.launches.iter().try_for_each(|launch| launch.launch(stream))?,
                }
                driver::memcpy_dtoh_async(down, self.answer, stream)?;
                driver::event::record(pages.event, stream)
            }
        });
        let stream = Rc::clone(&self.stream);
        let pending = Pending { stream, pages: Some(pages), at: self.places_bytes, len };
        started?;
        Ok(Box::pin(async move { pending.bytes() }))
    }
}

/// An answer on its way. Whether it is awaited or not, its memory goes back when it has come.
struct Pending {
    stream: Rc<Stream>,
    pages: Option<Pages>,
    /// Where the answer begins, and its bytes.
    at: usize,
    len: usize,
}

impl Pending {
    fn bytes(&self) -> Result<Vec<u8>, Fault> {
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

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::kernels::cuda_source::kernels;
    use crate::{CubeBackend, WgpuRuntime};

    #[test]
    fn the_way_is_asked_for() {
        assert_eq!(Way::wanted(None), Way::Trial);
        assert_eq!(Way::wanted(Some("cubecl")), Way::Cubecl);
        assert_eq!(Way::wanted(Some("stream")), Way::Stream);
        assert_eq!(Way::wanted(Some("graph")), Way::Graph);
    }

    #[test]
    #[ignore = "needs NVRTC and CUDA's headers, from NVIDIA's wheels: see CONTRIBUTING"]
    fn nvrtc_takes_every_kernel() {
        let backend = CubeBackend::<WgpuRuntime>::open().unwrap();
        let include = install::include_path();
        for architecture in ["sm_75", "sm_80", "sm_90a"] {
            for (name, kernel) in kernels() {
                let source = kernel.visit(backend.client(), ToSource).unwrap();
                let ptx = compile(&source.text, architecture, &include.to_string_lossy());
                let ptx = ptx.unwrap_or_else(|error| panic!("{name} for {architecture}: {error}"));
                if let Some(to) = std::env::var_os("HALFBYTE_PTX") {
                    let file = format!("{name}-{units}-{architecture}.ptx", units = kernel.units());
                    std::fs::write(
                        std::path::Path::new(&to).join(file),
                        ptx.strip_suffix(&[0]).unwrap_or(&ptx),
                    )
                    .unwrap();
                }
                let ptx = String::from_utf8_lossy(&ptx);
                assert!(ptx.contains(&format!(".entry {}", source.entry)), "{name}");
                // One parameter a buffer, and one with all scalars: as `Prepared::launch` passes them.
                let parameters =
                    ptx.split(".entry").nth(1).and_then(|entry| entry.split(')').next()).unwrap();
                let arrays = kernel.visit(backend.client(), Arrays);
                assert_eq!(parameters.matches(".param").count(), arrays + 1, "{name}: {parameters}");
                println!("{name} for {architecture}: {} bytes of shared memory", source.shared_memory);
            }
        }
    }

    /// How many buffers a kernel has.
    struct Arrays;

    impl Visitor for Arrays {
        type Out = usize;

        fn visit<K: CubeKernel>(self, kernel: K) -> usize {
            kernel.define().buffers.len()
        }
    }
}
