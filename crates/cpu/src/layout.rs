//! The CPU's account of bytes: what wants and programs take, without touching memory.

use crate::matrix::Form;
use crate::scratch::panel_bytes;
use crate::{in_file, matrix, quants, threads};
use halfbyte_backend::{Caps, Fault, Footprint, Kind, Layout, Purpose, Step, Stretch, Want, WantId};
use halfbyte_quant::QuantSpec;

/// Rows of activations that one pass over the weights serves. More would read weights less often and
/// push the rows out of the cache.
pub(crate) const PASS_ROWS: usize = 64;

/// Columns are padded to this in scratch, so that kernels have no tails.
pub(crate) const COLUMN_STEP: usize = 32;

/// Floats of decoded weights that a thread keeps: about the second-level cache's share.
const TILE_FLOATS: usize = 1 << 16;

/// The sizes of a [`CpuBackend`](crate::CpuBackend)'s allocations, as functions of shapes and of the
/// number of threads alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuLayout {
    threads: usize,
    in_bytes: bool,
    device: String,
    /// Whether matrices stay in their files.
    in_files: bool,
}

impl CpuLayout {
    /// The layout of a backend with a thread for each physical core: that of
    /// [`CpuBackend::new`](crate::CpuBackend::new).
    pub fn new() -> Self {
        Self::with_threads(threads::physical())
    }

    /// The layout of a backend with `threads` threads.
    pub fn with_threads(threads: usize) -> Self {
        Self {
            threads: threads.clamp(1, threads::MOST),
            in_bytes: false,
            device: "cpu".into(),
            in_files: false,
        }
    }

    /// Worker threads. Each keeps a tile of decoded weights.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The same layout, for kernels that multiply in bytes or do not. 4-bit weights take as much either way; dense
    /// heads and programs do not.
    pub(crate) fn in_bytes(self, in_bytes: bool) -> Self {
        Self { in_bytes, ..self }
    }

    /// Lengths of the buffers of a program.
    pub(crate) fn sizes(&self, stretch: &Stretch, caps: &Caps) -> Result<Sizes, Fault> {
        Sizes::of(stretch, caps, self.in_bytes)
    }

    /// The same layout, with `device` for a name in errors.
    pub(crate) fn named(self, device: &str) -> Self {
        Self { device: device.into(), ..self }
    }

    /// The same layout for matrices that stay in their files.
    pub fn in_files(self) -> Self {
        Self { in_files: true, ..self }
    }

    fn unsupported(&self, what: impl Into<String>) -> Fault {
        Fault::Unsupported { device: self.device.clone(), what: what.into() }
    }

    /// Refuses sizes whose byte counts would wrap.
    fn countable(&self, what: &str, factors: &[usize]) -> Result<(), Fault> {
        let product = factors.iter().try_fold(1u64, |product, &factor| product.checked_mul(factor as u64));
        match product {
            Some(count) if count < 1 << 48 => Ok(()),
            _ => Err(self.unsupported(format!("{what} of {factors:?} elements"))),
        }
    }
}

impl Default for CpuLayout {
    fn default() -> Self {
        Self::new()
    }
}

impl Layout for CpuLayout {
    fn want(&self, kind: &Kind) -> Result<u64, Fault> {
        match kind {
            Kind::Linear(shape) => {
                shape.check()?;
                for segment in &shape.segments {
                    self.countable(&segment.tensor, &[segment.rows, segment.cols])?;
                    if let halfbyte_backend::Format::Quant(format) = segment.format {
                        let spec: QuantSpec = format.into();
                        spec.validate().map_err(|fault| self.unsupported(fault.to_string()))?;
                    }
                }
                Ok(if self.in_files {
                    in_file::footprint(shape, Purpose::Weights).total()
                } else {
                    matrix::bytes(shape, self.in_bytes)
                })
            }
            Kind::Norm(shape) => {
                self.countable(&shape.weight, &[shape.len])?;
                Ok(shape.len as u64 * if shape.bias.is_some() { 8 } else { 4 })
            }
            Kind::Rope(shape) => {
                self.countable("a rope table", &[shape.positions, shape.inv_freq.len(), 2])?;
                Ok(shape.bytes())
            }
            Kind::Kv(shape) => {
                let factors = [2, shape.sequences, shape.kv_heads, shape.slots(), shape.head_dim];
                self.countable("a KV cache", &factors)?;
                Ok(shape.bytes())
            }
        }
    }

    fn want_footprint(&self, want: &Want) -> Result<Footprint, Fault> {
        let bytes = self.want(&want.kind)?;
        Ok(match &want.kind {
            Kind::Linear(shape) if self.in_files => in_file::footprint(shape, want.purpose),
            _ => Footprint::of(want.purpose, bytes),
        })
    }

    fn program(&self, stretch: &Stretch, caps: &Caps) -> Result<Footprint, Fault> {
        stretch.check()?;
        let width = stretch.widths.iter().fold(0usize, |sum, &width| sum.saturating_add(width));
        self.countable("registers", &[width, caps.rows])?;
        self.countable("rows", &[caps.rows, ROW_BYTES])?;
        for want in &stretch.wants {
            self.want(&want.kind)?;
            if let Kind::Linear(shape) = &want.kind {
                self.countable("logits", &[shape.rows(), caps.outputs])?;
            }
        }
        Ok(self.sizes(stretch, caps)?.footprint(self.threads))
    }

    fn resident(&self) -> Footprint {
        Footprint::new()
    }
}

/// Lengths of a program's buffers, in elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// f32 of each register: `[caps.rows, width]`.
    pub registers: Vec<usize>,
    /// f32 of the inputs of a product: `[pass rows, padded columns]`.
    pub inputs: usize,
    /// f32 of the results of a product: `[layer rows, pass rows]`.
    pub results: usize,
    /// f32 of the decoded weights of one thread: `[tile rows, padded columns]`.
    pub tile: usize,
    /// Whether matrices are held in the form for products in bytes.
    pub in_bytes: bool,
    /// Columns of the panel of one thread, for products in bytes.
    pub panel: usize,
    /// Bytes of the inputs of a product in bytes: `[pass rows, columns]`.
    pub quants: usize,
    /// f32 of a mixture of experts: normed rows `[pass rows, padded hidden]`, products of gate and up
    /// `[pass rows, padded inner]`, and how much each expert counts, `[pass rows, experts]`.
    pub experts: usize,
    /// f32 of the logits: `[caps.outputs, vocabulary]`.
    pub logits: usize,
    /// Tokens chosen last: `[caps.outputs]` u32.
    pub chosen: usize,
    /// Candidates of a draw: `[vocabulary]` u32.
    pub candidates: usize,
    /// Rows whose tokens and spans are kept: `caps.rows`.
    pub rows: usize,
}

/// Bytes of what is kept for each row of a submission: its token and its span.
const ROW_BYTES: usize = size_of::<u32>() + size_of::<crate::request::Span>();

impl Sizes {
    /// The buffers of `stretch`.
    pub fn of(stretch: &Stretch, caps: &Caps, in_bytes: bool) -> Result<Self, Fault> {
        let mut sizes = Self {
            in_bytes,
            panel: 0,
            quants: 0,
            registers: stretch.widths.iter().map(|width| width * caps.rows).collect(),
            inputs: 0,
            results: 0,
            tile: 0,
            experts: 0,
            logits: 0,
            chosen: 0,
            candidates: 0,
            rows: caps.rows,
        };
        for step in &stretch.steps {
            match step {
                Step::Linear(step) => {
                    sizes.product(stretch, step.weight, caps.rows.min(PASS_ROWS))?;
                }
                Step::Head(step) => {
                    let rows = sizes.product(stretch, step.weight, caps.outputs.min(PASS_ROWS))?;
                    sizes.logits = sizes.logits.max(caps.outputs * rows);
                    sizes.chosen = caps.outputs;
                    sizes.candidates = sizes.candidates.max(rows);
                }
                Step::Moe(step) => {
                    let rows = caps.rows.min(PASS_ROWS);
                    sizes.product(stretch, step.router, rows)?;
                    let mut inner = 0;
                    for expert in 0..step.experts {
                        inner = inner.max(sizes.product(stretch, step.gate_up_of(expert), rows)? / 2);
                        sizes.product(stretch, step.down_of(expert), rows)?;
                    }
                    let hidden = padded(stretch.width(step.input)?);
                    sizes.experts = sizes.experts.max(rows * (hidden + padded(inner) + step.experts));
                }
                Step::Embed(_) | Step::Attend(_) => {}
            }
        }
        Ok(sizes)
    }

    /// Makes room for the product of `rows` rows with the matrix `weight`; returns the matrix's own rows.
    fn product(&mut self, stretch: &Stretch, weight: WantId, rows: usize) -> Result<usize, Fault> {
        let want = stretch.want(weight)?;
        let Kind::Linear(shape) = &want.kind else {
            return Err(Fault::Internal(format!("{} is no matrix", want.name)));
        };
        let columns = padded(shape.cols());
        self.inputs = self.inputs.max(rows * columns);
        self.results = self.results.max(rows * shape.rows());
        if Form::of(shape, self.in_bytes) != Form::Canonical {
            self.quants = self.quants.max(rows * columns);
            if rows > 1 {
                self.panel = self.panel.max(columns);
            }
        } else {
            self.tile = self.tile.max(tile_rows(columns) * columns);
        }
        Ok(shape.rows())
    }

    /// Bytes by purpose, with a tile for each of `threads`.
    pub fn footprint(&self, threads: usize) -> Footprint {
        let floats = |count: usize| count as u64 * 4;
        let mut footprint = Footprint::new();
        footprint.add(Purpose::Activations, floats(self.registers.iter().sum()));
        footprint
            .add(Purpose::Scratch, floats(self.inputs + self.results + self.experts + threads * self.tile));
        let bytes = self.rows * ROW_BYTES + quants::bytes(self.quants) + threads * panel_bytes(self.panel);
        footprint.add(Purpose::Scratch, bytes as u64);
        footprint.add(Purpose::Logits, floats(self.logits + self.chosen + self.candidates));
        footprint
    }
}

/// Columns with their padding in scratch.
pub(crate) fn padded(cols: usize) -> usize {
    cols.next_multiple_of(COLUMN_STEP)
}

/// Rows of weights that a thread decodes at once: a multiple of 4.
pub(crate) fn tile_rows(padded_cols: usize) -> usize {
    (TILE_FLOATS / padded_cols.max(1)).clamp(4, 32) / 4 * 4
}
