//! The fused steps that models are made of.
//!
//! Activations are f32 registers of `[rows, width]`. All sums (dot products, softmax, norms) are
//! accumulated in at least f32, whatever the compute dtype.

use crate::{Reg, WantId};

/// Which normalization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps) * w` (Zhang & Sennrich 2019).
    Rms,
    /// `(x - mean(x)) / sqrt(var(x) + eps) * w + b`, biased variance (Ba et al. 2016).
    Layer,
}

/// A normalization over the features of a row (or of a head).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Which.
    pub kind: NormKind,
    /// Its parameters: a [`Kind::Norm`](crate::Kind::Norm).
    pub weight: WantId,
    /// Added to the mean square or variance.
    pub eps: f32,
    /// Added to the stored weight: 0, or 1 for Gemma's `1 + w`.
    pub offset: f32,
}

/// Which value a [`Pre`] leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EmitKind {
    /// The sum, before `norm`: the residual stream of pre-norm models.
    Sum,
    /// The normed value: the residual stream of post-norm models (BERT).
    Normed,
}

/// Where a [`Pre`] leaves a value for later steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Emit {
    /// Which value.
    pub kind: EmitKind,
    /// The register; never one that the same step reads.
    pub to: Reg,
}

/// What happens to a step's input `y` before its matrix product:
/// `x = residual + post(y)`, `h = norm(x)`; `h` goes into the product. Every part may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pre {
    /// Added to the input.
    pub residual: Option<Reg>,
    /// Applied to the input before the sum (Gemma's post-norms).
    pub post: Option<Norm>,
    /// Applied to the sum.
    pub norm: Option<Norm>,
    /// What is kept of it.
    pub emit: Option<Emit>,
}

impl Pre {
    /// Only a norm: the usual case of pre-norm decoders.
    pub fn norm(norm: Norm) -> Self {
        Self { norm: Some(norm), ..Self::default() }
    }
}

/// Activation functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    /// `x`
    Identity,
    /// `x * sigmoid(x)`
    Silu,
    /// `x * Phi(x)`, by the error function
    Gelu,
    /// GELU's tanh form (`gelu_new`, `gelu_pytorch_tanh`)
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `tanh(x)`
    Tanh,
}

/// `x[r] = norm(table[token[r]] * scale + positions[position[r] + offset] + types[type[r]])`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Embed {
    /// A dense [`Kind::Linear`](crate::Kind::Linear), `[vocabulary, hidden]`.
    pub table: WantId,
    /// Factor on the looked-up row (Gemma: `sqrt(hidden)` rounded as its dtype has it).
    pub scale: f32,
    /// Learned positions, a dense `[positions, hidden]`, and the first position's row (RoBERTa: 2).
    pub positions: Option<(WantId, u32)>,
    /// Token types, a dense `[types, hidden]`.
    pub types: Option<WantId>,
    /// Applied to the sum (BERT).
    pub norm: Option<Norm>,
    /// `[rows, hidden]`
    pub out: Reg,
}

/// `out[:, at..] = residual + act(W pre(input) + b)`; gated: `act(W[2j] h + b[2j]) * (W[2j+1] h + b[2j+1])`.
///
/// Its fused forms are `norm_linear` (norm and stacked q|k|v), `merge_linear` (an
/// [`Attend`]'s output and the o-projection), `norm_gate_up` and `linear_residual`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearStep {
    /// `[rows, cols]`
    pub input: Reg,
    /// Before the product.
    pub pre: Pre,
    /// A [`Kind::Linear`](crate::Kind::Linear).
    pub weight: WantId,
    /// After the product and bias.
    pub act: Act,
    /// Whether rows come in interleaved pairs gate, up, and halve in number.
    pub gated: bool,
    /// Added to the result, at the same columns; may be `out` itself, which then accumulates.
    pub residual: Option<Reg>,
    /// `[rows, width]`
    pub out: Reg,
    /// First column of `out` that is written.
    pub at: usize,
}

/// Which features of a head rotate together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// `i` and `i + dim/2` (Hugging Face's Llama and almost all others).
    Half,
    /// `2i` and `2i + 1` (GPT-J, the original Llama).
    Adjacent,
}

/// Rotary embedding of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RopeUse {
    /// A [`Kind::Rope`](crate::Kind::Rope).
    pub table: WantId,
    /// Features of each head that rotate, the first ones; even.
    pub dim: usize,
    /// Which of them rotate together.
    pub pairing: Pairing,
}

/// Attention of each row over its own sequence.
///
/// Queries and keys are normed per head (`q_norm`, `k_norm`), then rotated; the row's key and value go
/// into the cache; scores are `scale * q·k`, soft-capped (`cap * tanh(s / cap)`), masked to positions
/// `<= own` if `causal` and to `> own - window` if there is a window; softmax; weighted sum of values.
/// Query head `h` reads key-value head `h / (heads / kv_heads)`. A row that is not causal sees all
/// positions of its sequence up to the last one in the submission.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attend {
    /// `[rows, (heads + 2 kv_heads) * head_dim]`: q, then k, then v. Backends may overwrite it.
    pub qkv: Reg,
    /// A [`Kind::Kv`](crate::Kind::Kv). Without one, rows attend to the rows of their sequence in the
    /// same submission (encoders).
    pub cache: Option<WantId>,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides `heads`.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Rotary embedding.
    pub rope: Option<RopeUse>,
    /// Norm of each query head, over `head_dim`.
    pub q_norm: Option<Norm>,
    /// Norm of each key head, over `head_dim`.
    pub k_norm: Option<Norm>,
    /// Factor on scores.
    pub scale: f32,
    /// Soft cap on scores.
    pub softcap: Option<f32>,
    /// Sliding window: how many positions a row sees, its own included.
    pub window: Option<usize>,
    /// Whether a row sees only positions up to its own.
    pub causal: bool,
    /// `[rows, heads * head_dim]`. Only a [`LinearStep`] without `pre` reads it, so that a backend may
    /// keep it in parts and merge them there; where it is one of the stretch's outputs, it must be whole.
    pub out: Reg,
}

/// A mixture of experts (Shazeer et al. 2017, arXiv:1701.06538; Jiang et al. 2024, arXiv:2401.04088).
///
/// `h = pre(input)`; `p = softmax(router h)` over the experts, in f32; the `top_k` largest are chosen, the
/// lower expert among equals; `out = residual + sum over the chosen of p[e] * down[e] (act(gate) * up)`,
/// where gate and up are the interleaved rows of `gate_up[e] h`. With `renormalize` the chosen `p` are
/// divided by their sum. Only the chosen experts of a row are computed for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moe {
    /// `[rows, hidden]`
    pub input: Reg,
    /// Before the router and the experts.
    pub pre: Pre,
    /// A [`Kind::Linear`](crate::Kind::Linear), `[experts, hidden]`.
    pub router: WantId,
    /// How many experts there are.
    pub experts: usize,
    /// How many of them a row takes.
    pub top_k: usize,
    /// Whether the weights of the chosen are made to sum to 1.
    pub renormalize: bool,
    /// The first expert's gate and up, `[2 * inner, hidden]`, interleaved; the others' are the wants after
    /// it. No other step names any of them.
    pub gate_up: WantId,
    /// The first expert's down, `[hidden, inner]`; the others' are the wants after it. No other step names
    /// any of them.
    pub down: WantId,
    /// Of the gate.
    pub act: Act,
    /// Added to the result; may be `out` itself, which then accumulates.
    pub residual: Option<Reg>,
    /// `[rows, hidden]`; not `input`, unless it is `residual` too.
    pub out: Reg,
}

impl Moe {
    /// Gate and up of expert `expert`.
    pub fn gate_up_of(&self, expert: usize) -> WantId {
        WantId(self.gate_up.0 + expert as u32)
    }

    /// Down of expert `expert`.
    pub fn down_of(&self, expert: usize) -> WantId {
        WantId(self.down.0 + expert as u32)
    }

    /// Visits a run of experts in order: whoever renumbers by first sight leaves it a run.
    fn visit(first: &mut WantId, experts: usize, visit: &mut dyn FnMut(&mut WantId)) {
        let begin = *first;
        for expert in 0..experts {
            let mut id = WantId(begin.0 + expert as u32);
            visit(&mut id);
            if expert == 0 {
                *first = id;
            }
        }
    }
}

/// Logits: `softcap(scale * W pre(input))` for the rows that the request names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Head {
    /// `[rows, hidden]`
    pub input: Reg,
    /// Before the product: the final norm.
    pub pre: Pre,
    /// A [`Kind::Linear`](crate::Kind::Linear), `[vocabulary, hidden]`; a bias is added.
    pub weight: WantId,
    /// Factor on logits.
    pub scale: f32,
    /// `cap * tanh(logit / cap)` (Gemma 2).
    pub softcap: Option<f32>,
}

/// One fused step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// Token ids to vectors.
    Embed(Embed),
    /// A matrix product with all that surrounds it.
    Linear(LinearStep),
    /// Attention.
    Attend(Attend),
    /// A mixture of experts.
    Moe(Moe),
    /// Logits, and from them the greedy choice where a request asks for it. The last step of a model.
    Head(Head),
}

impl Step {
    /// Calls `visit` with every want that the step names, so that it can be renumbered.
    pub fn wants_mut(&mut self, visit: &mut dyn FnMut(&mut WantId)) {
        fn norm(norm: &mut Option<Norm>, visit: &mut dyn FnMut(&mut WantId)) {
            if let Some(norm) = norm {
                visit(&mut norm.weight);
            }
        }
        fn pre(pre: &mut Pre, visit: &mut dyn FnMut(&mut WantId)) {
            norm(&mut pre.post, visit);
            norm(&mut pre.norm, visit);
        }
        match self {
            Step::Embed(step) => {
                visit(&mut step.table);
                if let Some((positions, _)) = &mut step.positions {
                    visit(positions);
                }
                if let Some(types) = &mut step.types {
                    visit(types);
                }
                norm(&mut step.norm, visit);
            }
            Step::Linear(step) => {
                pre(&mut step.pre, visit);
                visit(&mut step.weight);
            }
            Step::Attend(step) => {
                if let Some(cache) = &mut step.cache {
                    visit(cache);
                }
                if let Some(rope) = &mut step.rope {
                    visit(&mut rope.table);
                }
                norm(&mut step.q_norm, visit);
                norm(&mut step.k_norm, visit);
            }
            Step::Moe(step) => {
                pre(&mut step.pre, visit);
                visit(&mut step.router);
                Moe::visit(&mut step.gate_up, step.experts, visit);
                Moe::visit(&mut step.down, step.experts, visit);
            }
            Step::Head(step) => {
                pre(&mut step.pre, visit);
                visit(&mut step.weight);
            }
        }
    }

    /// Calls `visit` with every register that the step names, so that they can be renumbered.
    pub fn regs_mut(&mut self, visit: &mut dyn FnMut(&mut Reg)) {
        fn pre(pre: &mut Pre, visit: &mut dyn FnMut(&mut Reg)) {
            pre.residual.iter_mut().for_each(&mut *visit);
            pre.emit.iter_mut().for_each(|emit| visit(&mut emit.to));
        }
        match self {
            Step::Embed(step) => visit(&mut step.out),
            Step::Linear(step) => {
                visit(&mut step.input);
                pre(&mut step.pre, visit);
                step.residual.iter_mut().for_each(&mut *visit);
                visit(&mut step.out);
            }
            Step::Attend(step) => {
                visit(&mut step.qkv);
                visit(&mut step.out);
            }
            Step::Moe(step) => {
                visit(&mut step.input);
                pre(&mut step.pre, visit);
                step.residual.iter_mut().for_each(&mut *visit);
                visit(&mut step.out);
            }
            Step::Head(step) => {
                visit(&mut step.input);
                pre(&mut step.pre, visit);
            }
        }
    }
}
