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

mod compile;
mod prepared;
mod recorder;
mod stream;

pub(crate) use recorder::{CudaRecorder, Way};

use crate::recording::Recording;
use cudarc::driver::{result as driver, sys};
use halfbyte_backend::{Fault, Fut};
use prepared::Prepared;
use std::cell::Cell;
use std::rc::Rc;
use stream::{Pending, Stream};

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
