//! What a program needs beside its wants: buffers and fixed sizes, from shapes alone.

use crate::attend_plan::LIMITS;
use crate::kernels::GROUP;
use crate::kernels::places::{DRAW, HEADER, ROW, TILE};
use crate::kernels::variant::Elements;
use crate::weight::{WeightLayout, aligned, unsupported};
use halfbyte_backend::gpu::AttendSizes;
use halfbyte_backend::{Caps, Fault, Footprint, Kind, Pre, Purpose, Reg, Step, Stretch, WantId};
use std::collections::BTreeMap;

/// More rows than this go through the tiled product.
pub(crate) const MAX_FEW: usize = 8;

/// Units of a cube that draws, at most.
pub(crate) const MAX_DRAW_UNITS: usize = 512;

/// The role of a program's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Activations `[rows, stride]`.
    Register(u16),
    /// Normed inputs `[rows, width]` between a norm and a product of their own.
    Normed(usize),
    /// Scores of experts `[rows, stride]`.
    Scores,
    /// How much each expert counts, `[experts, rows]`.
    Shares,
    /// Between an expert's two products, `[rows, width]`.
    Gated(usize),
    /// An attention output in splits.
    Parts(u16),
    /// Its largest scores and sums.
    Statistics(u16),
    /// Keys of rows that attend without a cache.
    Keys,
    /// Their values.
    Values,
    /// Row metadata of submissions that are recorded.
    Places,
    /// Tokens of the last output that chose some.
    Chosen,
    /// A bit for each token that a sequence has seen, `[sequences, words]`.
    Seen,
    /// Tokens that may still be drawn, `[outputs, stride]`.
    Candidates,
    /// `[outputs, vocabulary]`
    Logits,
}

/// One buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BufferPlan {
    pub purpose: Purpose,
    pub bytes: u64,
    /// Whether rows are padded: the columns beyond are read, times code 0, and must not be NaN. No kernel writes
    /// them.
    pub padded: bool,
}

/// The buffers and sizes of a program.
#[derive(Debug, Clone)]
pub(crate) struct ProgramPlan {
    pub buffers: BTreeMap<Role, BufferPlan>,
    /// For each step that is an attention: its sizes.
    pub attends: BTreeMap<usize, AttendSizes>,
    /// Rows of a tile in prompts.
    pub tile_rows: usize,
    /// Whether rows of different sequences can be decoded without storing keys first.
    pub fresh: bool,
    /// Logits of a row; 0 without a head.
    pub vocabulary: usize,
    /// Sequences whose seen tokens are remembered; 0 where no token is drawn: without a head or without an
    /// embedding, which knows what goes in.
    pub drawn: usize,
}

/// Elements of a row of `width` columns.
pub(crate) fn stride(width: usize) -> usize {
    width.next_multiple_of(GROUP)
}

/// Words of a sequence's set of seen tokens, in whole quads.
pub(crate) fn seen_words(vocabulary: usize) -> usize {
    vocabulary.div_ceil(32).next_multiple_of(4)
}

/// The most sequences of a cache, if there is one.
fn sequences(stretch: &Stretch) -> Option<usize> {
    let of = |want: &halfbyte_backend::Want| match &want.kind {
        Kind::Kv(shape) => Some(shape.sequences),
        _ => None,
    };
    stretch.wants.iter().filter_map(of).max()
}

/// Whether a pre needs a launch of its own even where products can norm their input.
pub(crate) fn needs_launch(pre: &Pre) -> bool {
    pre.residual.is_some() || pre.post.is_some() || pre.emit.is_some()
}

impl ProgramPlan {
    /// The plan of `stretch` for `caps`.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] if a head does not fit shared memory or an embedding is in 4 bits.
    pub(crate) fn new(device: &str, stretch: &Stretch, caps: &Caps) -> Result<Self, Fault> {
        stretch.check()?;
        if caps.rows == 0 || caps.rows > 65535 || caps.outputs > 65535 {
            return Err(Fault::Invalid(format!(
                "a program for {} rows and {} outputs; 1 to 65535 rows are possible",
                caps.rows, caps.outputs
            )));
        }
        let (buffers, attends) = (BTreeMap::new(), BTreeMap::new());
        let mut plan = Self { buffers, attends, tile_rows: 16, fresh: true, vocabulary: 0, drawn: 0 };
        for (index, &width) in stretch.widths.iter().enumerate() {
            plan.rows(Role::Register(index as u16), Purpose::Activations, caps.rows, width);
        }
        for (index, step) in stretch.steps.iter().enumerate() {
            plan.step(device, stretch, caps, index, step)?;
        }
        let outputs = caps.outputs.max(1);
        plan.words(Role::Places, Purpose::Scratch, HEADER + MAX_FEW * (ROW + 1 + TILE + DRAW));
        plan.words(Role::Chosen, Purpose::Logits, outputs);
        if plan.vocabulary > 0 {
            plan.rows(Role::Logits, Purpose::Logits, outputs, plan.vocabulary);
        }
        if stretch.steps.iter().any(|step| matches!(step, Step::Embed(_))) && plan.vocabulary > 0 {
            plan.drawn = sequences(stretch).unwrap_or(outputs);
        }
        if plan.drawn > 0 {
            plan.words(Role::Seen, Purpose::Logits, plan.drawn * seen_words(plan.vocabulary));
            // Draws are of different sequences; whole cubes of either size.
            let row = stride(plan.vocabulary).next_multiple_of(MAX_DRAW_UNITS);
            plan.words(Role::Candidates, Purpose::Logits, outputs.min(plan.drawn) * row);
        }
        Ok(plan)
    }

    /// All buffers, by purpose.
    pub(crate) fn footprint(&self) -> Footprint {
        let mut footprint = Footprint::new();
        self.buffers.values().for_each(|buffer| footprint.add(buffer.purpose, buffer.bytes));
        footprint
    }

    fn step(
        &mut self,
        device: &str,
        stretch: &Stretch,
        caps: &Caps,
        index: usize,
        step: &Step,
    ) -> Result<(), Fault> {
        let layout = |id: WantId| match &stretch.want(id)?.kind {
            Kind::Linear(shape) => WeightLayout::of(device, shape),
            _ => Err(Fault::Internal(format!("{} is no matrix", stretch.want(id)?.name))),
        };
        match step {
            Step::Embed(embed) => {
                let tables = [Some(embed.table), embed.positions.map(|(id, _)| id), embed.types];
                for id in tables.into_iter().flatten() {
                    if let Elements::Codes { .. } = layout(id)?.elements {
                        let name = &stretch.want(id)?.name;
                        return Err(unsupported(
                            device,
                            format!("{name} is in 4 bits; keep embeddings in 16"),
                        ));
                    }
                }
            }
            Step::Linear(linear) => {
                layout(linear.weight)?;
                let tiled = linear.pre.norm.is_some() && caps.rows > MAX_FEW;
                if tiled || needs_launch(&linear.pre) {
                    self.normed(stretch, linear.input, caps)?;
                }
            }
            Step::Head(head) => {
                self.vocabulary = layout(head.weight)?.rows;
                let tiled = head.pre.norm.is_some() && caps.outputs > MAX_FEW;
                if tiled || needs_launch(&head.pre) {
                    self.normed(stretch, head.input, caps)?;
                }
            }
            Step::Moe(moe) => {
                layout(moe.router)?;
                self.normed(stretch, moe.input, caps)?;
                self.rows(Role::Scores, Purpose::Scratch, caps.rows, moe.experts);
                self.words(Role::Shares, Purpose::Scratch, moe.experts * caps.rows);
                for expert in 0..moe.experts {
                    layout(moe.gate_up_of(expert))?;
                    let width = layout(moe.down_of(expert))?.cols;
                    self.rows(Role::Gated(width), Purpose::Scratch, caps.rows, width);
                }
            }
            Step::Attend(attend) => {
                let sizes = LIMITS.sizes(device, stretch, index, attend)?;
                self.tile_rows = self.tile_rows.min(sizes.tile_rows);
                self.fresh &= attend.cache.is_some();
                if attend.cache.is_none() {
                    let words = caps.rows * attend.kv_heads * sizes.record.words();
                    self.words(Role::Keys, Purpose::Scratch, words);
                    self.words(Role::Values, Purpose::Scratch, words);
                }
                if sizes.parts {
                    let parts = caps.rows.min(MAX_FEW) * attend.heads * sizes.splits;
                    self.words(Role::Parts(attend.out.0), Purpose::Scratch, parts * attend.head_dim);
                    self.words(Role::Statistics(attend.out.0), Purpose::Scratch, parts * 2);
                }
                self.attends.insert(index, sizes);
            }
        }
        Ok(())
    }

    fn normed(&mut self, stretch: &Stretch, reg: Reg, caps: &Caps) -> Result<(), Fault> {
        let width = stretch.width(reg)?;
        self.rows(Role::Normed(width), Purpose::Scratch, caps.rows, width);
        Ok(())
    }

    /// Adds `count` rows of `width` columns for `role`.
    fn rows(&mut self, role: Role, purpose: Purpose, count: usize, width: usize) {
        self.buffer(role, purpose, count * stride(width), stride(width) != width);
    }

    /// Adds `count` words for `role`.
    fn words(&mut self, role: Role, purpose: Purpose, count: usize) {
        self.buffer(role, purpose, count, false);
    }

    /// Adds a buffer for `role`; the larger wins if there is one.
    fn buffer(&mut self, role: Role, purpose: Purpose, words: usize, padded: bool) {
        let bytes = aligned(words as u64 * 4);
        let buffer = self.buffers.entry(role).or_insert(BufferPlan { purpose, bytes, padded });
        buffer.bytes = buffer.bytes.max(bytes);
    }
}
