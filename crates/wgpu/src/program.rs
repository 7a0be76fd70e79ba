//! A compiled stretch.

mod reply;
mod request;

use crate::answers::Ring;
use crate::gpu::{Allocation, Gpu};
use crate::held::{Held, Wants};
use crate::kernels::sample::seen_words;
use crate::layout::stride;
use crate::pipeline::{Counts, Dispatch, Dispatches};
use crate::profile;
use crate::program_plan::{ProgramPlan, RING, Role};
use crate::rows::Metadata;
use crate::sequence::{Columns, Manners, Sequence};
use crate::wait::{Signal, lost};
use halfbyte_backend::gpu::{Reach, all_apart, seen_bits};
use halfbyte_backend::{
    Answer, Caps, Draw, Fault, Fut, Input, Output, Place, Program, Rows, StepCost, Stretch, Ticket,
};
use reply::{Reply, answer};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

/// Hidden states go up in pieces of this many bytes, so that wgpu's own staging stays small.
const PIECE: usize = 1 << 20;

/// A compiled stretch: its buffers, and lists of dispatches for each manner of submission, made when
/// they are first needed.
pub(crate) struct WgpuProgram {
    gpu: Rc<Gpu>,
    stretch: Stretch,
    held: Vec<Rc<Held>>,
    plan: ProgramPlan,
    caps: Caps,
    reach: Reach,
    bodies: HashMap<Manners, Rc<Dispatches>>,
    heads: HashMap<Columns, Rc<Dispatches>>,
    argmax: Option<Rc<Dispatches>>,
    sample: Option<Rc<Dispatches>>,
    small: Ring,
    large: Ring,
    /// The row metadata of the last submission.
    metadata: Metadata,
    /// How many tokens the last output that chose some did.
    chosen: usize,
    dispatches: u64,
    submissions: u64,
    passes: u64,
    /// Last, so that what refers to the buffers goes first.
    buffers: Vec<Allocation>,
}

/// A submission, ready to be encoded.
struct Work {
    counts: Counts,
    body: Rc<Dispatches>,
    head: Option<Rc<Dispatches>>,
    choice: Option<Rc<Dispatches>>,
    reply: Reply,
}

impl Work {
    fn lists(&self) -> impl Iterator<Item = &Dispatches> {
        [Some(&self.body), self.head.as_ref(), self.choice.as_ref()].into_iter().flatten().map(Rc::as_ref)
    }

    fn dispatches(&self) -> impl Iterator<Item = (&Dispatch, [u32; 3])> {
        self.lists().flat_map(|list| list.of(&self.counts))
    }
}

impl WgpuProgram {
    /// Compiles `stretch` over `held`, with the pipelines of single rows and of full submissions.
    pub(crate) fn new(
        gpu: Rc<Gpu>,
        stretch: Stretch,
        held: Vec<Rc<Held>>,
        plan: ProgramPlan,
        buffers: Vec<Allocation>,
        caps: Caps,
    ) -> Result<Self, Fault> {
        let reach = Reach::new(&stretch)?;
        let ring = |role: fn(usize) -> Role| {
            let buffer = |i| plan.roles.get(&role(i)).map(|&index| buffers[index].buffer.clone());
            Ring::new((0..RING).filter_map(buffer).collect())
        };
        let (small, large) = (ring(Role::SmallAnswer), ring(Role::LargeAnswer));
        let metadata = Metadata::new(&caps);
        let mut program = Self {
            gpu,
            stretch,
            held,
            plan,
            caps,
            reach,
            bodies: HashMap::new(),
            heads: HashMap::new(),
            argmax: None,
            sample: None,
            small,
            large,
            metadata,
            chosen: 0,
            dispatches: 0,
            submissions: 0,
            passes: 0,
            buffers,
        };
        let fresh = program.plan.fresh;
        program.body(Manners { columns: Columns::Few(1), fresh })?;
        if caps.rows > 1 {
            program.body(Manners { columns: Columns::for_rows(caps.rows), fresh: false })?;
        }
        if program.plan.vocabulary > 0 {
            program.head(Columns::Few(1))?;
        }
        Ok(program)
    }

    fn sequence(&self) -> Sequence<'_> {
        Sequence {
            gpu: &self.gpu,
            wants: Wants { stretch: &self.stretch, held: &self.held },
            plan: &self.plan,
            buffers: &self.buffers,
            caps: self.caps,
        }
    }

    fn body(&mut self, manners: Manners) -> Result<Rc<Dispatches>, Fault> {
        if let Some(body) = self.bodies.get(&manners) {
            return Ok(body.clone());
        }
        let body = Rc::new(self.sequence().body(manners)?);
        self.bodies.insert(manners, body.clone());
        Ok(body)
    }

    fn head(&mut self, columns: Columns) -> Result<Rc<Dispatches>, Fault> {
        if let Some(head) = self.heads.get(&columns) {
            return Ok(head.clone());
        }
        let head = Rc::new(self.sequence().head(columns)?);
        self.heads.insert(columns, head.clone());
        Ok(head)
    }

    fn argmax(&mut self) -> Result<Rc<Dispatches>, Fault> {
        if let Some(argmax) = &self.argmax {
            return Ok(argmax.clone());
        }
        let argmax = Rc::new(self.sequence().argmax()?);
        self.argmax = Some(argmax.clone());
        Ok(argmax)
    }

    fn sample(&mut self) -> Result<Rc<Dispatches>, Fault> {
        if let Some(sample) = &self.sample {
            return Ok(sample.clone());
        }
        let sample = Rc::new(self.sequence().sample()?);
        self.sample = Some(sample.clone());
        Ok(sample)
    }

    /// Replaces what sequences have seen where a draw says so.
    fn write_seen(&self, places: &[Place], rows: &[u32], draws: &[Draw<'_>]) -> Result<(), Fault> {
        let words = seen_words(self.plan.vocabulary);
        for (&row, draw) in rows.iter().zip(draws) {
            let Some(seen) = draw.seen else { continue };
            let bits = seen_bits(seen, words);
            let sequence = places[row as usize].sequence as usize;
            let at = (sequence * words * 4) as u64;
            self.gpu.queue.write_buffer(self.buffer(Role::Seen)?, at, bytemuck::cast_slice(&bits));
        }
        Ok(())
    }

    fn buffer(&self, role: Role) -> Result<&wgpu::Buffer, Fault> {
        let allocation = self.plan.roles.get(&role).and_then(|&index| self.buffers.get(index));
        allocation
            .map(|allocation| &allocation.buffer)
            .ok_or_else(|| Fault::Internal(format!("a program without {role:?}")))
    }

    /// Fills the input registers, padded rows, in pieces.
    fn write_hidden(&self, values: &[f32], rows: usize) -> Result<(), Fault> {
        let mut from = values;
        for &reg in &self.stretch.inputs {
            let width = self.stretch.width(reg)?;
            let (now, later) = from.split_at(rows * width);
            from = later;
            let buffer = self.buffer(Role::Register(reg.0))?;
            let padded = stride(width);
            let rows_a_piece = (PIECE / (padded * 4)).max(1);
            for (piece, values) in now.chunks(rows_a_piece * width).enumerate() {
                let mut bytes = vec![0.0f32; values.len() / width * padded];
                for (to, from) in bytes.chunks_mut(padded).zip(values.chunks(width)) {
                    to[..width].copy_from_slice(from);
                }
                let at = (piece * rows_a_piece * padded * 4) as u64;
                self.gpu.queue.write_buffer(buffer, at, bytemuck::cast_slice(&bytes));
            }
        }
        Ok(())
    }
}

impl WgpuProgram {
    /// What a submission consists of. Pipelines that are needed for the first time are made here.
    fn work(&mut self, rows: &Rows<'_>) -> Result<Work, Fault> {
        self.gpu.check()?;
        self.check(rows)?;
        let count = rows.places.len();
        let columns = Columns::for_rows(count);
        let few = columns != Columns::Many;
        let fresh = few && self.plan.fresh && all_apart(rows.places);
        let tile_rows = if few { 1 } else { self.plan.tile_rows };
        let counts = self.metadata.encode(rows, &self.caps, tile_rows);

        let reply = match rows.output {
            Output::Nothing => Reply::Nothing,
            output if output.wants_head() && output.rows().is_empty() => Reply::Nothing,
            Output::Greedy(outputs) | Output::Sample { rows: outputs, .. } => Reply::Tokens(outputs.len()),
            Output::Logits(outputs) => Reply::Logits { rows: outputs.len(), width: self.plan.vocabulary },
            Output::Hidden => {
                let widths = self.stretch.outputs.iter().map(|&reg| self.stretch.width(reg));
                Reply::Hidden { rows: count, widths: widths.collect::<Result<_, _>>()? }
            }
        };
        let body = self.body(Manners { columns, fresh })?;
        let head = match reply {
            Reply::Logits { rows, .. } | Reply::Tokens(rows) => Some(self.head(Columns::for_rows(rows))?),
            Reply::Nothing | Reply::Hidden { .. } => None,
        };
        let choice = match (&reply, rows.output) {
            (Reply::Tokens(_), Output::Sample { .. }) => Some(self.sample()?),
            (Reply::Tokens(_), _) => Some(self.argmax()?),
            _ => None,
        };
        Ok(Work { counts, body, head, choice, reply })
    }

    /// Writes what the host says to a submission: ordered before the one that follows and after the one before.
    fn write(&self, rows: &Rows<'_>) -> Result<(), Fault> {
        let places = self.buffer(Role::Places)?;
        let words = bytemuck::cast_slice(self.metadata.words());
        self.gpu.meter.driver(|| self.gpu.queue.write_buffer(places, 0, words));
        if let Output::Sample { rows: wanted, draws } = rows.output {
            self.gpu.meter.driver(|| self.write_seen(rows.places, wanted, draws))?;
        }
        match rows.input {
            Input::Hidden(values) => self.write_hidden(values, rows.places.len()),
            Input::Tokens(_) | Input::Chosen => Ok(()),
        }
    }
}

impl Program for WgpuProgram {
    fn submit(&mut self, rows: &Rows<'_>) -> Result<Ticket, Fault> {
        let work = self.work(rows)?;
        let gpu = self.gpu.clone();
        let target = match work.reply {
            Reply::Nothing => None,
            Reply::Tokens(_) => Some(self.small.next(&gpu)?),
            Reply::Logits { .. } | Reply::Hidden { .. } => Some(self.large.next(&gpu)?),
        };
        self.write(rows)?;
        if gpu.meter.is_on() {
            // Between the driver's calls only this is done: once more, where it counts as ours.
            for grid in work.lists().flat_map(|list| list.grids(&work.counts)) {
                std::hint::black_box(grid);
            }
        }
        let (mut encoder, encoded) = gpu.meter.driver(|| {
            let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut encoded = 0;
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for (dispatch, grid) in work.dispatches() {
                dispatch.encode(&mut pass, grid);
                encoded += 1;
            }
            drop(pass);
            (encoder, encoded)
        });
        let len = match &target {
            Some(target) => gpu.meter.driver(|| self.copy_reply(&work.reply, target, &mut encoder))?,
            None => 0,
        };
        let submission = gpu.meter.driver(|| gpu.queue.submit([encoder.finish()]));
        self.dispatches += encoded;
        self.passes += 1;
        self.submissions += 1;
        if let Output::Greedy(outputs) | Output::Sample { rows: outputs, .. } = rows.output {
            self.chosen = outputs.len();
        }
        gpu.check()?;

        let pending = match work.reply {
            Reply::Nothing => {
                let empty = match rows.output {
                    Output::Greedy(_) | Output::Sample { .. } => Answer::Tokens(Vec::new()),
                    Output::Logits(_) => Answer::Logits(Vec::new()),
                    Output::Nothing | Output::Hidden => Answer::Nothing,
                };
                return Ok(Box::pin(async move {
                    finished(&gpu).await?;
                    Ok(empty)
                }));
            }
            Reply::Tokens(_) => gpu.meter.driver(|| self.small.map(len, submission)),
            Reply::Logits { .. } | Reply::Hidden { .. } => {
                gpu.meter.driver(|| self.large.map(len, submission))
            }
        };
        let pending = pending.ok_or_else(|| Fault::Internal("an answer without a buffer".into()))?;
        Ok(Box::pin(answer(gpu, pending, work.reply)))
    }

    fn samples(&self) -> bool {
        self.plan.drawn > 0
    }

    fn drain(&mut self) -> Fut<'_, ()> {
        let gpu = self.gpu.clone();
        Box::pin(async move { finished(&gpu).await })
    }

    fn counts(&self) -> (u64, u64) {
        (self.dispatches, self.submissions)
    }

    fn passes(&self) -> u64 {
        self.passes
    }

    fn profile<'a>(&'a mut self, rows: &'a Rows<'a>) -> Fut<'a, Vec<StepCost>> {
        Box::pin(async move {
            let work = self.work(rows)?;
            self.write(rows)?;
            let dispatches: Vec<_> = work.dispatches().collect();
            let position = rows.places.iter().map(|place| place.position).max().unwrap_or(0);
            let costs = profile::run(&self.gpu, &dispatches, u64::from(position)).await?;
            if let (Output::Greedy(outputs), false) = (rows.output, costs.is_empty()) {
                self.chosen = outputs.len();
            }
            Ok(costs)
        })
    }

    fn driver_time(&mut self) -> Option<Duration> {
        Some(self.gpu.meter.take())
    }
}

/// Awaits the end of everything submitted until now.
async fn finished(gpu: &Gpu) -> Result<(), Fault> {
    let signal = Signal::default();
    let done = signal.clone();
    gpu.queue.on_submitted_work_done(move || done.set(Ok(())));
    signal.wait(gpu).await.map_err(|reason| lost(&gpu.info.name, reason))?;
    gpu.check()
}
