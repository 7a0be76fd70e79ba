//! Steps bound to the contents of their slots, and the plain views of them that kernels take.

use crate::cache::Cache;
use crate::matrix::Matrix;
use crate::request::Span;
use crate::slots::{NormParams, Shared, Stored};
use halfbyte_backend::{
    Act, Attend, Embed, EmitKind, Fault, Head, LinearStep, Moe, Norm, NormKind, Pairing, Place, Pre,
    RopeTable, Step, WantId,
};
use std::sync::RwLockReadGuard;

/// A norm and its parameters.
#[derive(Debug)]
pub(crate) struct BoundNorm {
    norm: Norm,
    params: Shared<NormParams>,
}

/// A [`Pre`] with its norms.
#[derive(Debug)]
pub(crate) struct BoundPre {
    /// The step as the model states it.
    pub pre: Pre,
    post: Option<BoundNorm>,
    norm: Option<BoundNorm>,
}

/// A step with the contents of its slots.
#[derive(Debug)]
pub(crate) enum BoundStep {
    /// See [`Embed`].
    Embed {
        /// As the model states it.
        step: Embed,
        /// `[vocabulary, hidden]`
        table: Shared<Matrix>,
        /// `[positions, hidden]`
        positions: Option<Shared<Matrix>>,
        /// `[types, hidden]`
        types: Option<Shared<Matrix>>,
        /// Applied to the sum.
        norm: Option<BoundNorm>,
    },
    /// See [`LinearStep`].
    Linear {
        /// As the model states it.
        step: LinearStep,
        /// Before the product.
        pre: BoundPre,
        /// `[rows, cols]`
        weight: Shared<Matrix>,
    },
    /// See [`Attend`].
    Attend {
        /// As the model states it.
        step: Attend,
        /// Keys and values of earlier submissions.
        cache: Option<Shared<Cache>>,
        /// Cosines and sines.
        rope: Option<Shared<RopeTable>>,
        /// Of query heads.
        q_norm: Option<BoundNorm>,
        /// Of key heads.
        k_norm: Option<BoundNorm>,
    },
    /// See [`Moe`].
    Moe {
        /// As the model states it.
        step: Moe,
        /// Before the router and the experts.
        pre: BoundPre,
        /// `[experts, hidden]`
        router: Shared<Matrix>,
        /// Of each expert: gate and up, `[2 * inner, hidden]`, and down, `[hidden, inner]`.
        experts: Vec<(Shared<Matrix>, Shared<Matrix>)>,
    },
    /// See [`Head`].
    Head {
        /// As the model states it.
        step: Head,
        /// Before the product.
        pre: BoundPre,
        /// `[vocabulary, hidden]`
        weight: Shared<Matrix>,
    },
}

impl BoundStep {
    /// How many experts it has.
    pub fn experts(&self) -> usize {
        match self {
            BoundStep::Moe { experts, .. } => experts.len(),
            _ => 0,
        }
    }

    /// The matrix that the step reads as a whole.
    pub fn matrix(&self) -> Option<&Shared<Matrix>> {
        match self {
            BoundStep::Linear { weight, .. } | BoundStep::Head { weight, .. } => Some(weight),
            BoundStep::Moe { router, .. } => Some(router),
            BoundStep::Embed { .. } | BoundStep::Attend { .. } => None,
        }
    }
}

/// A norm as kernels see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormView<'a> {
    /// Which.
    pub kind: NormKind,
    /// Added to the mean square or variance.
    pub eps: f32,
    /// Added to the weight.
    pub offset: f32,
    /// `[len]`
    pub weight: &'a [f32],
    /// `[len]`, or empty.
    pub bias: &'a [f32],
}

/// What [`Pre`] does to `[rows, width]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PreView<'a> {
    /// Features.
    pub width: usize,
    /// `[rows, width]`
    pub input: &'a [f32],
    /// `[rows, width]`
    pub residual: Option<&'a [f32]>,
    /// Applied to the input.
    pub post: Option<NormView<'a>>,
    /// Applied to the sum.
    pub norm: Option<NormView<'a>>,
    /// What is kept.
    pub emit: Option<EmitKind>,
}

/// The tables of an embedding.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EmbedView<'a> {
    /// `[vocabulary, hidden]`
    pub table: &'a Matrix,
    /// Factor on the looked-up row.
    pub scale: f32,
    /// `[positions, hidden]` and the first position's row.
    pub positions: Option<(&'a Matrix, u32)>,
    /// `[types, hidden]`
    pub types: Option<&'a Matrix>,
    /// Applied to the sum.
    pub norm: Option<NormView<'a>>,
    /// `[rows]`
    pub tokens: &'a [u32],
    /// `[rows]`
    pub places: &'a [Place],
}

/// What happens to the results of a product: `v = W x + b`, then
/// `act(v)` or `act(v[2j]) * v[2j+1]`, then `softcap(scale * v)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epilogue {
    /// The activation.
    pub act: Act,
    /// Whether rows are pairs of gate and up.
    pub gated: bool,
    /// Factor on the result.
    pub scale: f32,
    /// `cap * tanh(v / cap)`
    pub softcap: Option<f32>,
}

/// A product as kernels see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product<'a> {
    /// `[layer rows, cols]`
    pub weight: &'a Matrix,
    /// The matrix that will be read after it, where that is known. Threads may read it until the program's run ends.
    pub next: Option<&'a Matrix>,
    /// What happens to its results.
    pub epilogue: Epilogue,
    /// Rows of activations.
    pub rows: usize,
}

/// A product of one row of activations, whose results are put where they are wanted.
#[derive(Debug)]
pub(crate) struct OneRow<'a> {
    /// `[layer rows, cols]`
    pub weight: &'a Matrix,
    /// See [`Product::next`].
    pub next: Option<&'a Matrix>,
    /// What happens to its results.
    pub epilogue: Epilogue,
    /// `[cols]` and more
    pub x: &'a [f32],
    /// What they are added to, as in [`Kernels::place`](crate::program::Kernels::place): `[results]`.
    pub residual: Option<&'a [f32]>,
    /// `[results]`: a result for each layer row, or for each gated pair.
    pub out: &'a mut [f32],
}

/// Attention as kernels see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttendView<'a> {
    /// Numbers of heads and the mask, as the model states them.
    pub step: &'a Attend,
    /// Table, rotated features, and which go together.
    pub rope: Option<(&'a RopeTable, usize, Pairing)>,
    /// Of query heads.
    pub q_norm: Option<NormView<'a>>,
    /// Of key heads.
    pub k_norm: Option<NormView<'a>>,
    /// `[rows]`
    pub places: &'a [Place],
    /// `[rows]`
    pub spans: &'a [Span],
}

impl AttendView<'_> {
    /// Features of one row of q|k|v.
    pub fn width(&self) -> usize {
        (self.step.heads + 2 * self.step.kv_heads) * self.step.head_dim
    }

    /// The keys that row `row` sees, as positions of its sequence in the cache: a half-open range.
    pub fn cached_positions(&self, row: usize) -> (usize, usize) {
        let own = self.places[row].position as usize;
        let last = self.places[self.spans[row].end as usize - 1].position as usize;
        let end = if self.step.causal { own + 1 } else { last + 1 };
        (self.step.window.map_or(0, |window| (own + 1).saturating_sub(window)).min(end), end)
    }

    /// The keys that row `row` sees, as rows of this submission: a half-open range.
    pub fn submitted_rows(&self, row: usize) -> (usize, usize) {
        let span = self.spans[row];
        let end = if self.step.causal { row + 1 } else { span.end as usize };
        let first = self.step.window.map_or(0, |window| (row + 1).saturating_sub(window));
        (first.max(span.start as usize).min(end), end)
    }
}

impl BoundNorm {
    /// Locks the parameters.
    pub fn read(&self) -> (Norm, RwLockReadGuard<'_, NormParams>) {
        (self.norm, self.params.read())
    }
}

/// The locked parameters of a norm that may be absent.
pub(crate) type NormGuard<'a> = Option<(Norm, RwLockReadGuard<'a, NormParams>)>;

/// Locks the parameters of a norm, if there is one.
pub(crate) fn lock(norm: &Option<BoundNorm>) -> NormGuard<'_> {
    norm.as_ref().map(BoundNorm::read)
}

/// The kernels' view of locked parameters.
pub(crate) fn view<'a>(guard: &'a NormGuard<'_>) -> Option<NormView<'a>> {
    guard.as_ref().map(|(norm, params)| NormView {
        kind: norm.kind,
        eps: norm.eps,
        offset: norm.offset,
        weight: &params.weight,
        bias: &params.bias,
    })
}

impl BoundPre {
    /// Whether it leaves its input as it is, and keeps nothing of it.
    pub fn is_plain(&self) -> bool {
        self.post.is_none() && self.norm.is_none() && self.pre.residual.is_none() && self.pre.emit.is_none()
    }

    /// Locks both norms: `(post, norm)`.
    pub fn lock(&self) -> (NormGuard<'_>, NormGuard<'_>) {
        (lock(&self.post), lock(&self.norm))
    }
}

/// Finds the contents of wants.
pub(crate) struct Binder<'a> {
    /// `stored[i]` is the content of want `i`.
    pub stored: Vec<&'a Stored>,
}

impl Binder<'_> {
    /// Binds one step.
    pub fn step(&self, step: &Step) -> Result<BoundStep, Fault> {
        Ok(match *step {
            Step::Embed(step) => BoundStep::Embed {
                table: self.matrix(step.table)?,
                positions: step.positions.map(|(id, _)| self.matrix(id)).transpose()?,
                types: step.types.map(|id| self.matrix(id)).transpose()?,
                norm: self.norm(step.norm)?,
                step,
            },
            Step::Linear(step) => {
                BoundStep::Linear { pre: self.pre(&step.pre)?, weight: self.matrix(step.weight)?, step }
            }
            Step::Attend(step) => BoundStep::Attend {
                cache: step.cache.map(|id| self.cache(id)).transpose()?,
                rope: step.rope.map(|rope| self.rope(rope.table)).transpose()?,
                q_norm: self.norm(step.q_norm)?,
                k_norm: self.norm(step.k_norm)?,
                step,
            },
            Step::Moe(step) => BoundStep::Moe {
                pre: self.pre(&step.pre)?,
                router: self.matrix(step.router)?,
                experts: (0..step.experts)
                    .map(|expert| {
                        Ok((self.matrix(step.gate_up_of(expert))?, self.matrix(step.down_of(expert))?))
                    })
                    .collect::<Result<_, Fault>>()?,
                step,
            },
            Step::Head(step) => {
                BoundStep::Head { pre: self.pre(&step.pre)?, weight: self.matrix(step.weight)?, step }
            }
        })
    }

    fn pre(&self, pre: &Pre) -> Result<BoundPre, Fault> {
        Ok(BoundPre { pre: *pre, post: self.norm(pre.post)?, norm: self.norm(pre.norm)? })
    }

    fn norm(&self, norm: Option<Norm>) -> Result<Option<BoundNorm>, Fault> {
        let Some(norm) = norm else { return Ok(None) };
        match self.get(norm.weight)? {
            Stored::Norm(params) => Ok(Some(BoundNorm { norm, params: params.clone() })),
            _ => Err(mismatch(norm.weight, "norm")),
        }
    }

    fn matrix(&self, id: WantId) -> Result<Shared<Matrix>, Fault> {
        match self.get(id)? {
            Stored::Linear(matrix) => Ok(matrix.clone()),
            _ => Err(mismatch(id, "matrix")),
        }
    }

    fn rope(&self, id: WantId) -> Result<Shared<RopeTable>, Fault> {
        match self.get(id)? {
            Stored::Rope(table) => Ok(table.clone()),
            _ => Err(mismatch(id, "rope table")),
        }
    }

    fn cache(&self, id: WantId) -> Result<Shared<Cache>, Fault> {
        match self.get(id)? {
            Stored::Kv(cache) => Ok(cache.clone()),
            _ => Err(mismatch(id, "KV cache")),
        }
    }

    fn get(&self, id: WantId) -> Result<&Stored, Fault> {
        let stored = self.stored.get(id.0 as usize).copied();
        stored.ok_or_else(|| Fault::Internal(format!("no slot was given for want {}", id.0)))
    }
}

fn mismatch(id: WantId, kind: &str) -> Fault {
    Fault::Internal(format!("the slot of want {} holds no {kind}", id.0))
}
