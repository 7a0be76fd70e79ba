//! Long prompts through layers that a GPU has no room for: their weights stream to it, a whole layer at a time.
//!
//! Layers that live in the host's memory, or on the disk, are computed by the CPU when a token is decoded: it reads
//! them once, as the link to the GPU would. For many tokens at once the GPU computes faster than weights cross the
//! link, so there each layer is brought to the GPU, all rows of the prompt pass through it, and its keys and values
//! go back to where decoding reads them. While one layer computes, the next is brought to another place.

use super::lanes::{Lanes, front, hidden_bytes, host_footprint, lane_caps};
use super::name;
use super::parked::is_uploaded;
use super::stage::Stage;
use crate::{Blueprint, ModelError};
use halfbyte_backend::{
    Answer, Backend, Caps, Fault, Footprint, Input, Kind, KvShape, KvSpan, Layout, Output, Place, Program,
    Purpose, Rows, Slot, Want,
};
use std::ops::Range;
use std::rc::Rc;

/// Rows for which weights cross the link once, at most: more hide the crossing no better, and their hidden states
/// take memory.
pub const STREAMED_ROWS: usize = 2048;

/// Which layers stream to which device, and when.
#[derive(Clone)]
pub struct Stream {
    /// The device that they stream to.
    pub to: Rc<dyn Backend>,
    /// The layers: neither the first block, nor beyond the stages before `to`'s own.
    pub blocks: Range<usize>,
    /// The fewest rows of a text at once for which they do.
    pub from_rows: usize,
}

/// What streaming takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamFootprints {
    /// On the device of the first stage.
    pub host: Footprint,
    /// On the device that the layers stream to.
    pub to: Footprint,
}

impl StreamFootprints {
    /// What it takes to stream `blocks` of a model whose first stage is `first`. Pure: needs no device.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] if a device cannot run its part.
    pub fn of(
        blueprint: &Blueprint,
        first: Range<usize>,
        blocks: Range<usize>,
        host: &dyn Layout,
        to: &dyn Layout,
        caps: &Caps,
    ) -> Result<Self, Fault> {
        let rows = rows_at_once(blueprint, caps);
        Ok(Self {
            host: host_footprint(blueprint, first, &blocks, host, caps, rows)?,
            to: Lanes::new(blueprint, blocks).footprint(to, caps)?,
        })
    }
}

/// Rows whose hidden states are kept between layers.
fn rows_at_once(blueprint: &Blueprint, caps: &Caps) -> usize {
    STREAMED_ROWS.min(blueprint.context).max(caps.rows)
}

/// The parts of a prompt that pass through the layers together, and what of them is known.
#[derive(Clone, Copy)]
pub(crate) struct Chunk<'a> {
    pub(crate) input: Input<'a>,
    pub(crate) places: &'a [Place],
}

/// Everything that streaming holds.
pub(crate) struct Streaming {
    stream: Stream,
    lanes: Lanes,
    /// One for each of the lanes' wants.
    slots: Vec<Slot>,
    programs: Vec<Box<dyn Program>>,
    /// The layer whose weights each lane holds.
    holds: Vec<Option<usize>>,
    /// The steps before the layers, where no stage's program is just that.
    front: Option<Box<dyn Program>>,
    /// Rows that pass through the layers at once.
    rows: usize,
    hidden: Vec<f32>,
    host: Rc<dyn Backend>,
    /// The hidden states in the host's ledger.
    ticket: u64,
    /// Layers brought to the device so far.
    brought: u64,
}

impl Drop for Streaming {
    fn drop(&mut self) {
        // Programs may refer to the slots.
        (self.programs, self.front) = (Vec::new(), None);
        self.stream.to.release(&self.slots);
        self.host.ledger().strike(self.ticket);
    }
}

impl Streaming {
    /// Reserves and compiles; `stages` are those of the engine.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] if the layers are none of the first stages'; what the devices say, after which
    /// nothing remains reserved.
    pub(crate) async fn new(
        blueprint: &Blueprint,
        stages: &[Stage],
        stream: Stream,
        caps: Caps,
    ) -> Result<Self, ModelError> {
        let blocks = stream.blocks.clone();
        check(blueprint, stages, &stream)?;
        let rows = rows_at_once(blueprint, &caps);
        let host = Rc::clone(&stages[0].backend);
        let bytes = hidden_bytes(blueprint, &blocks, rows);
        let hidden = hidden_states(&*host, bytes)?;
        let ticket = host.ledger().enter("hidden states of streamed layers", Purpose::Activations, bytes);
        let lanes = Lanes::new(blueprint, blocks);
        let holds = vec![None; lanes.lanes.len()];
        let mut streaming = Self {
            stream,
            lanes,
            slots: Vec::new(),
            programs: Vec::new(),
            holds,
            front: None,
            rows,
            hidden,
            host,
            ticket,
            brought: 0,
        };
        streaming.slots = streaming.stream.to.reserve(&streaming.lanes.wants).await?;
        streaming.compile(blueprint, stages, caps).await?;
        Ok(streaming)
    }

    async fn compile(&mut self, blueprint: &Blueprint, stages: &[Stage], caps: Caps) -> Result<(), Fault> {
        if let Some(stretch) = front(blueprint, stages[0].blocks.clone(), &self.stream.blocks) {
            let slots = stretch.wants.iter().map(|want| stages[0].slot_of(want));
            let slots = slots.collect::<Result<Vec<_>, _>>()?;
            self.front = Some(self.host.compile(&stretch, &slots, lane_caps(&caps)).await?);
        }
        for lane in &self.lanes.lanes {
            let slots: Vec<Slot> = lane.slots.iter().map(|&slot| self.slots[slot]).collect();
            let program = self.stream.to.compile(&lane.stretch, &slots, lane_caps(&caps)).await?;
            self.programs.push(program);
        }
        Ok(())
    }

    /// Waits for what is running.
    pub(crate) async fn drain(&mut self) -> Result<(), Fault> {
        for program in self.programs.iter_mut().chain(&mut self.front) {
            program.drain().await?;
        }
        Ok(())
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Layers brought to the device so far.
    pub(crate) fn brought(&self) -> u64 {
        self.brought
    }

    /// Dispatches and submissions so far.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let programs = self.programs.iter().chain(&self.front).map(|program| program.counts());
        programs.fold((0, 0), |(a, b), (dispatches, submissions)| (a + dispatches, b + submissions))
    }

    /// Whether this many rows are worth it.
    pub(crate) fn takes(&self, rows: usize) -> bool {
        rows >= self.stream.from_rows
    }

    /// Rows that may pass through the layers at once.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Runs chunks of at most [`rows`](Self::rows) rows together through the first stages: what they leave of each
    /// chunk for the stage after the streamed layers. Chunks of one sequence follow on each other.
    ///
    /// # Errors
    /// What a device says.
    pub(crate) async fn run(
        &mut self,
        stages: &mut [Stage],
        chunks: &[Chunk<'_>],
    ) -> Result<Vec<Vec<f32>>, Fault> {
        let spans = spans(chunks);
        let mut sizes = Vec::with_capacity(chunks.len());
        self.hidden.clear();
        for chunk in chunks {
            let states = self.before(stages, chunk).await?;
            sizes.push(states.len());
            self.keep(&states)?;
        }
        let blocks = self.stream.blocks.clone();
        self.bring(stages, blocks.start).await?;
        for block in blocks.clone() {
            let lane = self.lanes.of[block - blocks.start];
            let cache = self.cache(stages, block)?;
            if let Some((shape, host, from, to)) = cache {
                for span in spans.iter().filter(|span| span.positions.start > 0) {
                    let positions = shape.kept(0..span.positions.start);
                    let earlier = KvSpan { sequence: span.sequence, positions };
                    let rows = stages[host].backend.read_kv(from, earlier.clone()).await?;
                    self.stream.to.write_kv(to, earlier, &rows).await?;
                }
            }
            let mut passed = Vec::with_capacity(chunks.len());
            let (mut running, mut at) = (None, 0);
            for (index, chunk) in chunks.iter().enumerate() {
                let input = Input::Hidden(&self.hidden[at..at + sizes[index]]);
                at += sizes[index];
                let rows = Rows { input, places: chunk.places, output: Output::Hidden };
                let ticket = self.programs[lane].submit(&rows)?;
                // The device has work: the next layer comes meanwhile.
                if index == 0 && block + 1 < blocks.end {
                    self.bring(stages, block + 1).await?;
                }
                if let Some(earlier) = running.replace(ticket) {
                    passed.push(hidden(earlier.await?)?);
                }
            }
            if let Some(last) = running {
                passed.push(hidden(last.await?)?);
            }
            if let Some((shape, host, to, from)) = cache {
                for KvSpan { sequence, positions } in spans.iter().cloned() {
                    let span = KvSpan { sequence, positions: shape.kept(positions) };
                    let rows = self.stream.to.read_kv(from, span.clone()).await?;
                    stages[host].backend.write_kv(to, span, &rows).await?;
                }
            }
            if block + 1 == blocks.end {
                return Ok(passed);
            }
            self.hidden.clear();
            for (size, states) in sizes.iter_mut().zip(&passed) {
                *size = states.len();
                self.keep(states)?;
            }
        }
        Err(Fault::Internal("no layer streams".into()))
    }

    /// The hidden states of a chunk before the first layer that streams.
    async fn before(&mut self, stages: &mut [Stage], chunk: &Chunk<'_>) -> Result<Vec<f32>, Fault> {
        let rows = Rows { input: chunk.input, places: chunk.places, output: Output::Hidden };
        let program = match &mut self.front {
            Some(program) => program,
            None => stages[0].program()?,
        };
        hidden(program.submit(&rows)?.await?)
    }

    fn keep(&mut self, states: &[f32]) -> Result<(), Fault> {
        if self.hidden.len() + states.len() > self.hidden.capacity() {
            return Err(Fault::Internal("hidden states of more rows than were planned".into()));
        }
        self.hidden.extend_from_slice(states);
        Ok(())
    }

    /// Fills the lane of `block` with its weights, from the slots where they live.
    async fn bring(&mut self, stages: &[Stage], block: usize) -> Result<(), Fault> {
        let index = block - self.stream.blocks.start;
        let lane = self.lanes.of[index];
        if self.holds[lane] == Some(block) {
            return Ok(());
        }
        self.holds[lane] = None;
        let stage = stage_of(stages, block)?;
        let wants = &self.lanes.block_wants[index];
        for (want, &slot) in wants.iter().zip(&self.lanes.lanes[lane].slots) {
            if is_uploaded(&want.kind) {
                let contents = stage.backend.contents(stage.slot_of(want)?, want)?;
                self.stream.to.upload(self.slots[slot], want, &*contents).await?;
            }
        }
        self.holds[lane] = Some(block);
        self.brought += 1;
        Ok(())
    }

    /// The cache of a layer, where it lives, and where it streams: the stage, its slot, and the lane's.
    fn cache(&self, stages: &[Stage], block: usize) -> Result<Option<(KvShape, usize, Slot, Slot)>, Fault> {
        let index = block - self.stream.blocks.start;
        let lane = &self.lanes.lanes[self.lanes.of[index]];
        let host = stages.iter().position(|stage| stage.blocks.contains(&block));
        let host = host.ok_or_else(|| Fault::Internal(format!("block {block} is nowhere")))?;
        let wants = &self.lanes.block_wants[index];
        let cache = wants.iter().zip(&lane.slots).find_map(|(want, &slot)| match want.kind {
            Kind::Kv(shape) => Some((want, shape, slot)),
            _ => None,
        });
        let Some((want, shape, slot)) = cache else { return Ok(None) };
        Ok(Some((shape, host, stages[host].slot_of(want)?, self.slots[slot])))
    }
}

fn stage_of(stages: &[Stage], block: usize) -> Result<&Stage, Fault> {
    let found = stages.iter().find(|stage| stage.blocks.contains(&block));
    found.ok_or_else(|| Fault::Internal(format!("block {block} is nowhere")))
}

/// Whether a stream is one of these stages.
fn check(blueprint: &Blueprint, stages: &[Stage], stream: &Stream) -> Result<(), ModelError> {
    let Range { start, end } = stream.blocks;
    let ends: Vec<usize> = stages.iter().map(|stage| stage.blocks.end).collect();
    let inside = start >= 1 && start < end && end < blueprint.blocks.len();
    // Whole stages before it, but for the first.
    let from_first = ends.first().is_some_and(|&first| start <= first);
    let own = |stage: &Stage| stage.blocks.start < end && Rc::ptr_eq(&stage.backend, &stream.to);
    if inside && from_first && ends.contains(&end) && !stages.iter().any(own) {
        return Ok(());
    }
    Err(ModelError::Invalid(format!("blocks {start}..{end} cannot stream over stages that end at {ends:?}")))
}

/// Memory for hidden states, on a host that has it.
fn hidden_states(host: &dyn Backend, bytes: u64) -> Result<Vec<f32>, Fault> {
    let free = host.memory().free;
    let mut hidden = Vec::new();
    let granted = free.is_none_or(|free| bytes <= free)
        && hidden.try_reserve_exact(usize::try_from(bytes / 4).unwrap_or(usize::MAX)).is_ok();
    if granted {
        return Ok(hidden);
    }
    Err(Fault::OutOfMemory {
        device: host.info().name.clone(),
        name: "the hidden states of streamed layers".into(),
        wanted: bytes,
        free,
        what: Purpose::Activations,
    })
}

/// The positions of each sequence in chunks.
fn spans(chunks: &[Chunk<'_>]) -> Vec<KvSpan> {
    let mut spans: Vec<KvSpan> = Vec::new();
    for place in chunks.iter().flat_map(|chunk| chunk.places) {
        let (sequence, position) = (place.sequence as usize, place.position as usize);
        match spans.iter_mut().find(|span| span.sequence == sequence) {
            Some(span) => {
                let Range { start, end } = span.positions;
                span.positions = start.min(position)..end.max(position + 1);
            }
            None => spans.push(KvSpan { sequence, positions: position..position + 1 }),
        }
    }
    spans
}

/// Rows that are not the only ones of their sequence: those of prompts.
pub(crate) fn prompt_rows(places: &[Place]) -> usize {
    places.chunk_by(|a, b| a.sequence == b.sequence).map(<[Place]>::len).filter(|&rows| rows > 1).sum()
}

/// Hidden states, which were asked for.
pub(crate) fn hidden(answer: Answer) -> Result<Vec<f32>, Fault> {
    match answer {
        Answer::Hidden(values) => Ok(values),
        other => Err(Fault::Internal(format!("hidden states expected, not {}", name(&other)))),
    }
}

impl Stage {
    /// Where a want of this stage is held.
    pub(crate) fn slot_of(&self, want: &Want) -> Result<Slot, Fault> {
        let at = self.stretch.wants.iter().position(|held| held == want);
        let held = at.and_then(|at| self.slots[at].as_ref());
        held.map(|held| held.slot).ok_or_else(|| Fault::Internal(format!("{} is not held", want.name)))
    }
}
