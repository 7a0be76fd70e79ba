//! What a program needs beside its wants: buffers and fixed sizes, from shapes alone.

use crate::attend_plan::LIMITS;
use crate::gpu::BufferPlan;
use crate::kernels::route::share_stride;
use crate::kernels::sample::{THREADS, seen_words};
use crate::kv_plan::Planes;
use crate::layout::{Bounds, stride};
use crate::linear_plan::LinearPlan;
use halfbyte_backend::gpu::{AttendSizes, SPLIT_KEYS};
use halfbyte_backend::{Caps, Fault, Kind, Pre, Purpose, Reg, Step, Stretch};
use std::collections::BTreeMap;

/// More rows than this go through the tiled product.
pub(crate) const MAX_COLUMNS: usize = 8;
/// Answers of each size that may be on their way at once without waiting.
pub(crate) const RING: usize = 4;

/// The role of a program's buffer; its place in [`ProgramPlan::buffers`] is in [`ProgramPlan::roles`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Activations `[rows, stride]`.
    Register(u16),
    /// Normed inputs `[rows, width]` between a norm and a product of their own.
    Normed(usize),
    /// Scores of experts `[rows, stride]`.
    Scores,
    /// How much each expert counts, `[experts, rows]`, each expert's part from a multiple of 256 bytes.
    Shares,
    /// Between an expert's two products, `[rows, width]`.
    Gated(usize),
    /// An attention output in splits.
    Parts(u16),
    /// Keys of rows that attend without a cache.
    Keys,
    /// Their values.
    Values,
    /// Row metadata.
    Places,
    /// Tokens of the last output that chose some.
    Chosen,
    /// A bit for each token that a sequence has seen, `[sequences, words]`.
    Seen,
    /// Tokens that may still be drawn, `[outputs, stride]`.
    Candidates,
    /// `[outputs, vocabulary]`
    Logits,
    /// Mapped buffers for chosen tokens.
    SmallAnswer(usize),
    /// Mapped buffers for logits and hidden states.
    LargeAnswer(usize),
}

/// The buffers and sizes of a program.
#[derive(Debug, Clone)]
pub(crate) struct ProgramPlan {
    pub(crate) buffers: Vec<BufferPlan>,
    pub(crate) roles: BTreeMap<Role, usize>,
    /// For each step that is an [`Attend`](halfbyte_backend::Attend): its sizes.
    pub(crate) attends: BTreeMap<usize, AttendSizes>,
    /// Rows of a tile in prompts.
    pub(crate) tile_rows: usize,
    /// Keys below which a context is not split further.
    pub(crate) split_keys: usize,
    /// Whether rows of different sequences can be decoded without storing keys first.
    pub(crate) fresh: bool,
    /// Logits of a row; 0 without a head.
    pub(crate) vocabulary: usize,
    /// Sequences whose seen tokens are remembered; 0 where no token is drawn: without a head or without an
    /// embedding, which knows what goes in.
    pub(crate) drawn: usize,
}

/// Whether a pre needs a dispatch of its own even where products can norm their input.
pub(crate) fn needs_dispatch(pre: &Pre) -> bool {
    pre.residual.is_some() || pre.post.is_some() || pre.emit.is_some()
}

impl ProgramPlan {
    /// The plan of `stretch` for `caps`.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] if a buffer exceeds a binding or a head does not fit workgroup memory.
    pub(crate) fn new(stretch: &Stretch, caps: &Caps, bounds: &Bounds) -> Result<Self, Fault> {
        stretch.check()?;
        if caps.rows == 0 || caps.rows > 65535 || caps.outputs > 65535 {
            return Err(Fault::Invalid(format!(
                "a program for {} rows and {} outputs; 1 to 65535 rows are possible",
                caps.rows, caps.outputs
            )));
        }
        let mut plan = Self {
            buffers: Vec::new(),
            roles: BTreeMap::new(),
            attends: BTreeMap::new(),
            tile_rows: 16,
            split_keys: if bounds.splits.is_some() { 1 } else { SPLIT_KEYS },
            fresh: true,
            vocabulary: 0,
            drawn: 0,
        };
        let outputs = caps.outputs.max(1);
        for (index, &width) in stretch.widths.iter().enumerate() {
            plan.float(
                bounds,
                Role::Register(index as u16),
                Purpose::Activations,
                caps.rows * stride(width),
            )?;
        }
        for (index, step) in stretch.steps.iter().enumerate() {
            match step {
                Step::Embed(embed) => {
                    if embed.norm.is_some() {
                        plan.normed(stretch, embed.out, caps, bounds)?;
                    }
                    for id in [Some(embed.table), embed.positions.map(|(id, _)| id), embed.types]
                        .into_iter()
                        .flatten()
                    {
                        plan.lookup(stretch, id, id == embed.table, bounds)?;
                    }
                }
                Step::Linear(linear) => {
                    let tiled = linear.pre.norm.is_some() && caps.rows > MAX_COLUMNS;
                    if tiled || needs_dispatch(&linear.pre) {
                        plan.normed(stretch, linear.input, caps, bounds)?;
                    }
                }
                Step::Head(head) => {
                    let tiled = head.pre.norm.is_some() && caps.outputs > MAX_COLUMNS;
                    if tiled || needs_dispatch(&head.pre) {
                        plan.normed(stretch, head.input, caps, bounds)?;
                    }
                    let Kind::Linear(shape) = &stretch.want(head.weight)?.kind else { continue };
                    plan.vocabulary = shape.rows();
                }
                Step::Moe(moe) => {
                    plan.normed(stretch, moe.input, caps, bounds)?;
                    let scores = caps.rows * stride(moe.experts);
                    plan.float(bounds, Role::Scores, Purpose::Scratch, scores)?;
                    let shares = moe.experts * share_stride(caps.rows);
                    plan.float(bounds, Role::Shares, Purpose::Scratch, shares)?;
                    for expert in 0..moe.experts {
                        let Kind::Linear(shape) = &stretch.want(moe.down_of(expert))?.kind else { continue };
                        let width = shape.cols();
                        let gated = caps.rows * stride(width);
                        plan.float(bounds, Role::Gated(width), Purpose::Scratch, gated)?;
                    }
                }
                Step::Attend(attend) => {
                    let mut sizes = LIMITS.sizes(&bounds.device, stretch, index, attend)?;
                    if let (Some(splits), true) = (bounds.splits, sizes.parts) {
                        sizes.splits = splits.max(1);
                    }
                    plan.tile_rows = plan.tile_rows.min(sizes.tile_rows);
                    plan.fresh &= attend.cache.is_some();
                    if attend.cache.is_none() {
                        let planes = Planes { record: sizes.record, slots: caps.rows };
                        let words = attend.kv_heads * planes.words();
                        plan.float(bounds, Role::Keys, Purpose::Scratch, words)?;
                        plan.float(bounds, Role::Values, Purpose::Scratch, words)?;
                    }
                    if sizes.parts {
                        let rows = caps.rows.min(MAX_COLUMNS);
                        let floats = rows * attend.heads * sizes.splits * (attend.head_dim + 2);
                        plan.float(bounds, Role::Parts(attend.out.0), Purpose::Scratch, floats)?;
                    }
                    plan.attends.insert(index, sizes);
                }
            }
        }
        plan.float(bounds, Role::Places, Purpose::Scratch, places_words(caps))?;
        plan.float(bounds, Role::Chosen, Purpose::Logits, outputs)?;
        if plan.vocabulary > 0 {
            plan.float(bounds, Role::Logits, Purpose::Logits, outputs * stride(plan.vocabulary))?;
        }
        if stretch.steps.iter().any(|step| matches!(step, Step::Embed(_))) && plan.vocabulary > 0 {
            plan.drawn = sequences(stretch, outputs);
        }
        if plan.drawn > 0 {
            let seen = plan.drawn * seen_words(plan.vocabulary);
            plan.float(bounds, Role::Seen, Purpose::Logits, seen)?;
            // Draws are of different sequences.
            let rows = outputs.min(plan.drawn);
            let words = rows * stride(plan.vocabulary).next_multiple_of(THREADS);
            plan.float(bounds, Role::Candidates, Purpose::Logits, words)?;
        }
        plan.answers(stretch, caps, bounds)?;
        Ok(plan)
    }

    fn answers(&mut self, stretch: &Stretch, caps: &Caps, bounds: &Bounds) -> Result<(), Fault> {
        let mut large = if self.vocabulary > 0 { caps.outputs * stride(self.vocabulary) } else { 0 };
        let mut hidden = 0;
        for &reg in &stretch.outputs {
            hidden += caps.rows * stride(stretch.width(reg)?);
        }
        large = large.max(hidden);
        for i in 0..RING {
            if self.vocabulary > 0 {
                self.float(bounds, Role::SmallAnswer(i), Purpose::Staging, caps.outputs.max(1))?;
            }
            // Two: one is read while the next is computed.
            if i < 2 && large > 0 {
                self.float(bounds, Role::LargeAnswer(i), Purpose::Staging, large)?;
            }
        }
        Ok(())
    }

    /// A table that embeddings read must be dense; all but the token table are bound whole.
    fn lookup(
        &self,
        stretch: &Stretch,
        id: halfbyte_backend::WantId,
        sharded: bool,
        bounds: &Bounds,
    ) -> Result<(), Fault> {
        let want = stretch.want(id)?;
        let Kind::Linear(shape) = &want.kind else { return Ok(()) };
        let plan = LinearPlan::new(shape, bounds)?;
        if plan.scales.is_some() {
            return Err(Fault::Unsupported {
                device: bounds.device.clone(),
                what: format!("{} is in 4 bits; keep embeddings in 16", want.name),
            });
        }
        if !sharded && plan.shards.len() > 1 {
            let what = format!("{}: learned positions and token types in one piece", want.name);
            return Err(bounds.unsupported(&what, plan.rows as u64 * plan.row_bytes, bounds.shard));
        }
        Ok(())
    }

    fn normed(&mut self, stretch: &Stretch, reg: Reg, caps: &Caps, bounds: &Bounds) -> Result<(), Fault> {
        let width = stretch.width(reg)?;
        self.float(bounds, Role::Normed(width), Purpose::Scratch, caps.rows * stride(width))
    }

    /// Adds a buffer of `floats` 4-byte words for `role`; the larger wins if there is one.
    fn float(&mut self, bounds: &Bounds, role: Role, purpose: Purpose, floats: usize) -> Result<(), Fault> {
        let bytes = (floats as u64 * 4).next_multiple_of(16).max(16);
        let name = role.name();
        let usage = match role {
            Role::SmallAnswer(_) | Role::LargeAnswer(_) => {
                wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST
            }
            _ => {
                bounds.bindable(&name, bytes)?;
                wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC
            }
        };
        if let Some(&index) = self.roles.get(&role) {
            let buffer = &mut self.buffers[index];
            buffer.bytes = buffer.bytes.max(bytes);
            return Ok(());
        }
        self.roles.insert(role, self.buffers.len());
        self.buffers.push(BufferPlan { name, purpose, bytes, usage });
        Ok(())
    }
}

impl Role {
    fn name(self) -> String {
        match self {
            Role::Register(index) => format!("register {index}"),
            Role::Normed(width) => format!("normed inputs of {width}"),
            Role::Scores => "scores of experts".into(),
            Role::Shares => "shares of experts".into(),
            Role::Gated(width) => format!("an expert's {width} features"),
            Role::Parts(index) => format!("splits of register {index}"),
            Role::Keys => "keys of the submission".into(),
            Role::Values => "values of the submission".into(),
            Role::Places => "row metadata".into(),
            Role::Chosen => "chosen tokens".into(),
            Role::Seen => "seen tokens".into(),
            Role::Candidates => "candidates of a draw".into(),
            Role::Logits => "logits".into(),
            Role::SmallAnswer(index) => format!("answer of tokens {index}"),
            Role::LargeAnswer(index) => format!("answer of values {index}"),
        }
    }
}

/// The most sequences of a cache; without one, as many as outputs.
fn sequences(stretch: &Stretch, outputs: usize) -> usize {
    let of = |want: &halfbyte_backend::Want| match &want.kind {
        Kind::Kv(shape) => Some(shape.sequences),
        _ => None,
    };
    stretch.wants.iter().filter_map(of).max().unwrap_or(outputs)
}

/// Words of the row metadata: as `places.wgsl` lays it out.
pub(crate) fn places_words(caps: &Caps) -> usize {
    draws_at(caps) + 8 * caps.outputs.max(1)
}

/// Where the draws' parameters begin in the row metadata, in words.
pub(crate) fn draws_at(caps: &Caps) -> usize {
    16 + 4 * caps.rows + caps.outputs.max(1) + 8 * caps.rows
}
