//! One case: a small program, what is fed to it, and how exact its answers must be.

use super::weights::name_seed;
use crate::random::Stream;
use crate::{
    Arrangement, Caps, Format, Kind, KvShape, LinearShape, Norm, NormKind, NormShape, Place, Purpose, Reg,
    RopeShape, SampleParams, Segment, Step, Stretch, Want, WantId,
};

/// What a path in f32 may differ from the reference: the order of summation, fused multiplications and a
/// device's own `exp`, `tanh` and division.
pub const TOLERANCE: f64 = 2e-5;

/// How a register of [`Stretch::inputs`] is filled before each submission.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fill {
    /// Normal with this standard deviation.
    Normal(f32),
    /// Normal, and a thousand times larger in this column of every row: LLM activations have such
    /// channels (Dettmers et al. 2022, arXiv:2208.07339).
    Outlier(usize),
    /// Normal around this mean: a variance formed as `E[x²] - E[x]²` loses its digits here.
    Shifted(f32),
    /// NaN: the steps must overwrite every element that the outputs show.
    Poison,
}

/// What one submission of a case feeds.
#[derive(Debug, Clone, PartialEq)]
pub enum Feed {
    /// Token ids.
    Tokens(Vec<u32>),
    /// What the last greedy choice was.
    Chosen,
    /// The input registers by their [`Fill`]s, normal ones times this factor.
    Hidden(f32),
}

/// What one submission of a case asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Take {
    /// Nothing.
    Nothing,
    /// The output registers.
    Hidden,
    /// Logits of these rows.
    Logits(Vec<u32>),
    /// Greedy choices of these rows.
    Greedy(Vec<u32>),
    /// Draws of these rows: how, and what their sequences have seen, where they begin anew.
    Sample(Vec<(u32, SampleParams, Option<Vec<u32>>)>),
}

/// One submission of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    /// What goes in.
    pub feed: Feed,
    /// Where each row belongs, `[rows]`.
    pub places: Vec<Place>,
    /// What comes out.
    pub take: Take,
}

/// One case of the table. Weights and inputs follow from its seed alone.
#[derive(Debug, Clone)]
pub struct Case {
    /// The row of the table: `embed`, `norm_linear`, `attend`, `merge_linear`, `norm_gate_up`,
    /// `linear_residual`, `pre`, `head` or `sample`.
    pub step: &'static str,
    /// What is particular about it.
    pub name: String,
    /// Seed of weights and inputs, by the name.
    pub seed: u64,
    /// The program.
    pub stretch: Stretch,
    /// What the program is compiled for.
    pub caps: Caps,
    /// How each register of `stretch.inputs` is filled.
    pub fills: Vec<Fill>,
    /// What is submitted, in order.
    pub submissions: Vec<Submission>,
    /// Submissions that must be refused as [`Fault::Invalid`](crate::Fault::Invalid), before any other.
    pub refusals: Vec<Submission>,
    /// Whether everything is submitted before the first answer is awaited.
    pub pipelined: bool,
    /// Largest relative error that passes.
    pub tolerance: f64,
    /// Whether it takes more than a tenth of a second on a slow device.
    pub heavy: bool,
    /// Columns of the first input register that change places, `(first, second, how many)`: mutants
    /// exchange heads by it.
    pub(super) exchanged: Option<(usize, usize, usize)>,
}

impl Case {
    /// An empty case, to be filled by the methods below.
    pub(super) fn new(step: &'static str, name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            step,
            seed: name_seed(0, &format!("{step}: {name}")),
            name,
            stretch: Stretch::default(),
            caps: Caps { rows: 1, outputs: 1 },
            fills: Vec::new(),
            submissions: Vec::new(),
            refusals: Vec::new(),
            pipelined: false,
            tolerance: TOLERANCE,
            heavy: false,
            exchanged: None,
        }
    }

    /// A register that nothing outside sees.
    pub(super) fn reg(&mut self, width: usize) -> Reg {
        self.stretch.widths.push(width);
        Reg((self.stretch.widths.len() - 1) as u16)
    }

    /// A register that submissions fill.
    pub(super) fn input(&mut self, width: usize, fill: Fill) -> Reg {
        let reg = self.reg(width);
        self.stretch.inputs.push(reg);
        self.fills.push(fill);
        reg
    }

    /// A register that submissions fill and read.
    pub(super) fn output(&mut self, width: usize, fill: Fill) -> Reg {
        let reg = self.input(width, fill);
        self.stretch.outputs.push(reg);
        reg
    }

    /// Adds a want.
    pub(super) fn want(&mut self, name: &str, purpose: Purpose, kind: Kind) -> WantId {
        self.stretch.wants.push(Want { name: name.to_owned(), purpose, kind });
        WantId((self.stretch.wants.len() - 1) as u32)
    }

    /// A layer of one tensor.
    pub(super) fn linear(&mut self, rows: usize, cols: usize, format: Format, bias: bool) -> WantId {
        self.stack(&[(rows, bias)], cols, format, Arrangement::Stacked)
    }

    /// A layer of segments, each `(rows, whether it has a bias)`.
    pub(super) fn stack(
        &mut self,
        segments: &[(usize, bool)],
        cols: usize,
        format: Format,
        arrangement: Arrangement,
    ) -> WantId {
        let layer = format!("linear{}", self.stretch.wants.len());
        let segments = segments.iter().enumerate().map(|(index, &(rows, bias))| Segment {
            tensor: format!("{layer}.{index}.weight"),
            rows,
            cols,
            format,
            bias: bias.then(|| format!("{layer}.{index}.bias")),
            transposed: false,
        });
        let shape = LinearShape::new(segments.collect(), arrangement);
        self.want(&layer, Purpose::Weights, Kind::Linear(shape))
    }

    /// A norm over `len` features; a layer norm has a bias.
    pub(super) fn norm(&mut self, kind: NormKind, len: usize, eps: f32, offset: f32) -> Norm {
        let name = format!("norm{}", self.stretch.wants.len());
        let bias = (kind == NormKind::Layer).then(|| format!("{name}.bias"));
        let shape = NormShape { len, weight: format!("{name}.norm.weight"), bias };
        Norm { kind, weight: self.want(&name, Purpose::Weights, Kind::Norm(shape)), eps, offset }
    }

    /// The usual norm.
    pub(super) fn rms(&mut self, len: usize) -> Norm {
        self.norm(NormKind::Rms, len, 1e-5, 0.0)
    }

    /// A KV cache.
    pub(super) fn cache(&mut self, shape: KvShape) -> WantId {
        self.want("cache", Purpose::KvCache, Kind::Kv(shape))
    }

    /// The same with a slot for each position.
    pub(super) fn without_rings(&self) -> Self {
        let mut case = self.clone();
        for want in &mut case.stretch.wants {
            if let Kind::Kv(shape) = &mut want.kind {
                shape.ring = None;
            }
        }
        case
    }

    /// A rope table.
    pub(super) fn rope(&mut self, shape: RopeShape) -> WantId {
        self.want("rope", Purpose::RopeTable, Kind::Rope(shape))
    }

    /// Adds a step.
    pub(super) fn step(&mut self, step: Step) {
        self.stretch.steps.push(step);
    }

    /// Submits hidden states and reads hidden states.
    pub(super) fn hidden(&mut self, rows: usize) {
        self.submit(Feed::Hidden(1.0), &[(0, 0, rows)], Take::Hidden);
    }

    /// Adds a submission of runs `(sequence, first position, rows)`, and room for it in the caps.
    pub(super) fn submit(&mut self, feed: Feed, runs: &[(u32, u32, usize)], take: Take) {
        let places = places(runs);
        self.caps.rows = self.caps.rows.max(places.len());
        let outputs = match &take {
            Take::Logits(rows) | Take::Greedy(rows) => rows.len(),
            Take::Sample(draws) => draws.len(),
            Take::Nothing | Take::Hidden => 0,
        };
        self.caps.outputs = self.caps.outputs.max(outputs);
        self.submissions.push(Submission { feed, places, take });
    }

    /// Values of all input registers of a submission, one register after the other, each
    /// `[rows, width]`.
    pub(super) fn hidden_values(&self, submission: usize, rows: usize, gain: f32) -> Vec<f32> {
        let mut stream = Stream::new(name_seed(self.seed, &format!("submission {submission}")));
        let mut values = Vec::new();
        for (reg, fill) in self.stretch.inputs.iter().zip(&self.fills) {
            let width = self.stretch.widths.get(usize::from(reg.0)).copied().unwrap_or(0);
            for column in (0..rows).flat_map(|_| 0..width) {
                values.push(match *fill {
                    Fill::Normal(scale) => stream.normal() * scale * gain,
                    Fill::Outlier(channel) if channel == column => stream.normal() * 1000.0 * gain,
                    Fill::Outlier(_) => stream.normal() * gain,
                    Fill::Shifted(mean) => (stream.normal() + mean) * gain,
                    Fill::Poison => f32::NAN,
                });
            }
        }
        self.exchange(&mut values, rows);
        values
    }

    fn exchange(&self, values: &mut [f32], rows: usize) {
        let (Some((first, second, len)), Some(reg)) = (self.exchanged, self.stretch.inputs.first()) else {
            return;
        };
        let width = self.stretch.widths.get(usize::from(reg.0)).copied().unwrap_or(0).max(1);
        for row in values.chunks_mut(width).take(rows).filter(|row| second + len <= row.len()) {
            (0..len).for_each(|column| row.swap(first + column, second + column));
        }
    }
}

/// The places of runs `(sequence, first position, rows)`.
pub(super) fn places(runs: &[(u32, u32, usize)]) -> Vec<Place> {
    let run = |&(sequence, first, rows): &(u32, u32, usize)| {
        (0..rows as u32).map(move |row| Place {
            sequence,
            position: first + row,
            token_type: (row / 2 + sequence) % 2,
        })
    };
    runs.iter().flat_map(run).collect()
}
