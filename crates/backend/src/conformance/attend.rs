//! Rows `attend` and `merge_linear`: attention, and what reads it.

use super::case::places;
use super::linear::{NF4, product};
use super::{Case, Feed, Fill, Submission, Take};
use crate::rope::inverse_frequencies;
use crate::{
    Act, Arrangement, Attend, KvShape, KvType, LinearStep, NormKind, Pairing, Pre, Reg, RopeShape, RopeUse,
    Step,
};

/// Rotary embedding of a case.
#[derive(Debug, Clone, Copy)]
struct Rotary {
    dim: usize,
    pairing: Pairing,
    magnitude: f64,
}

/// An attention without its registers.
#[derive(Debug, Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    kv: Option<KvType>,
    sequences: usize,
    capacity: usize,
    ring: Option<usize>,
    rope: Option<Rotary>,
    norm: Option<(NormKind, f32)>,
    softcap: Option<f32>,
    window: Option<usize>,
    causal: bool,
}

/// Grouped heads with a cache in f32 and the usual rotary embedding.
const GROUPED: Shape = Shape {
    heads: 6,
    kv_heads: 2,
    head_dim: 32,
    kv: Some(KvType::F32),
    sequences: 1,
    capacity: 64,
    ring: None,
    rope: Some(Rotary { dim: 32, pairing: Pairing::Half, magnitude: 1.0 }),
    norm: None,
    softcap: None,
    window: None,
    causal: true,
};

/// An encoder's: each row sees all rows of its sequence in the submission.
const ENCODER: Shape = Shape { kv: None, rope: None, causal: false, kv_heads: 6, ..GROUPED };

/// What attention may differ by.
///
/// Rounding to a cache's element type happens on values that differ in their last bit, and now and
/// then falls the other way. One code of one feature that does is, relative to the output of a single
/// decoded row, below 5e-5 in f16, 1e-3 in q8 and 5e-3 in q4; a wrong scale or level is far above.
fn tolerance(kv: Option<KvType>) -> f64 {
    match kv {
        None | Some(KvType::F32) => super::TOLERANCE,
        Some(KvType::F16) => 5e-5,
        Some(KvType::Q8) => 1e-3,
        Some(KvType::Q4) => 5e-3,
    }
}

/// Adds the step and what it holds.
fn attend(case: &mut Case, shape: &Shape, qkv: Reg, out: Reg) {
    let cache = shape.kv.map(|dtype| {
        case.cache(KvShape {
            sequences: shape.sequences,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            capacity: shape.capacity,
            ring: shape.ring,
            dtype,
        })
    });
    let rope = shape.rope.map(|Rotary { dim, pairing, magnitude }| {
        let inv_freq = inverse_frequencies(10_000.0, dim);
        let table = case.rope(RopeShape { positions: shape.capacity, inv_freq, magnitude });
        RopeUse { table, dim, pairing }
    });
    let q_norm = shape.norm.map(|(kind, offset)| case.norm(kind, shape.head_dim, 1e-6, offset));
    let k_norm = shape.norm.map(|(kind, offset)| case.norm(kind, shape.head_dim, 1e-6, offset));
    case.tolerance = tolerance(shape.kv);
    case.step(Step::Attend(Attend {
        qkv,
        cache,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        rope,
        q_norm,
        k_norm,
        scale: 1.0 / (shape.head_dim as f32).sqrt(),
        softcap: shape.softcap,
        window: shape.window,
        causal: shape.causal,
        out,
    }));
}

impl Shape {
    fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// A case of this attention alone, nothing submitted yet.
    fn alone(&self, name: impl Into<String>, fill: Fill) -> Case {
        let mut case = Case::new("attend", name);
        let qkv = case.input(self.qkv(), fill);
        let out = case.output(self.heads * self.head_dim, Fill::Poison);
        attend(&mut case, self, qkv, out);
        case
    }

    /// Alone, and a context that grows: 37 rows, three times one, a chunk of five, one.
    fn growing(&self, name: impl Into<String>) -> Case {
        let mut case = self.alone(name, Fill::Normal(1.5));
        grow(&mut case);
        case
    }
}

fn grow(case: &mut Case) {
    for (position, rows) in [(0, 37), (37, 1), (38, 1), (39, 1), (40, 5), (45, 1)] {
        case.submit(Feed::Hidden(1.0), &[(0, position, rows)], Take::Hidden);
    }
}

/// Both rows.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = heads();
    cases.extend(variants());
    cases.extend(caches());
    cases.extend(encoders());
    cases.extend(merge_linear());
    cases
}

fn heads() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, heads, kv_heads) in [("multi-head", 4, 4), ("grouped", 6, 2), ("multi-query", 5, 1)] {
        cases.push(Shape { heads, kv_heads, ..GROUPED }.growing(format!("{name}, {heads} over {kv_heads}")));
    }
    for head_dim in [16, 64, 80, 96, 128, 256] {
        let rope = Some(Rotary { dim: head_dim, pairing: Pairing::Half, magnitude: 1.0 });
        let shape = Shape { heads: 2, kv_heads: 1, head_dim, rope, ..GROUPED };
        cases.push(shape.growing(format!("heads of {head_dim}")));
        let shape = Shape { kv: Some(KvType::F16), ..shape };
        cases.push(shape.growing(format!("heads of {head_dim}, cache in f16")));
    }
    cases
}

fn variants() -> Vec<Case> {
    let rotary = |dim, pairing, magnitude| Some(Rotary { dim, pairing, magnitude });
    let mut cases = vec![
        Shape { rope: None, ..GROUPED }.growing("no rotation"),
        Shape { rope: rotary(32, Pairing::Adjacent, 1.0), ..GROUPED }.growing("adjacent pairs"),
        Shape { rope: rotary(16, Pairing::Half, 1.0), ..GROUPED }.growing("half of the features rotate"),
        Shape { rope: rotary(10, Pairing::Half, 1.0), ..GROUPED }.growing("10 of 32 features rotate"),
        Shape { rope: rotary(12, Pairing::Adjacent, 1.0), ..GROUPED }.growing("12 of 32, adjacent pairs"),
        Shape { rope: rotary(32, Pairing::Half, 1.19), ..GROUPED }.growing("rotation of magnitude 1.19"),
        Shape { norm: Some((NormKind::Rms, 0.0)), ..GROUPED }.growing("norms of q and k"),
        Shape { norm: Some((NormKind::Rms, 1.0)), ..GROUPED }.growing("norms of q and k, offset 1"),
        Shape { norm: Some((NormKind::Layer, 0.0)), ..GROUPED }.growing("layer norms of q and k"),
        Shape { softcap: Some(2.0), ..GROUPED }.growing("soft cap"),
        Shape { causal: false, ..GROUPED }.growing("not causal, with a cache"),
    ];
    for window in [1, 8, 39, 1000] {
        cases.push(Shape { window: Some(window), ..GROUPED }.growing(format!("window of {window}")));
    }
    let all = Shape {
        norm: Some((NormKind::Rms, 0.0)),
        softcap: Some(5.0),
        window: Some(20),
        kv: Some(KvType::F16),
        ..GROUPED
    };
    cases.push(all.growing("norms, soft cap and window, cache in f16"));

    let mut tiny = Shape { norm: Some((NormKind::Rms, 0.0)), ..GROUPED }
        .alone("norms of tiny q and k", Fill::Normal(1e-3));
    grow(&mut tiny);
    cases.push(tiny);

    // One norm without the other: kernels that form both at once must not wait for what is not there.
    for (name, without_q) in [("norm of k alone", true), ("norm of q alone", false)] {
        let mut case = Shape { norm: Some((NormKind::Rms, 0.0)), ..GROUPED }.growing(name);
        for step in &mut case.stretch.steps {
            match step {
                Step::Attend(attend) if without_q => attend.q_norm = None,
                Step::Attend(attend) => attend.k_norm = None,
                _ => {}
            }
        }
        cases.push(case);
    }

    // Values are the last kv_heads * head_dim columns of q|k|v.
    let mut outlier = GROUPED.alone("an outlier channel in the values", Fill::Outlier(GROUPED.qkv() - 5));
    grow(&mut outlier);
    cases.push(outlier);
    // After its norm the outlier is the only large feature of the first head.
    let mut outlier = Shape { norm: Some((NormKind::Rms, 0.0)), ..GROUPED }
        .alone("an outlier channel in a normed query", Fill::Outlier(3));
    grow(&mut outlier);
    cases.push(outlier);
    cases
}

fn caches() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [KvType::F32, KvType::F16, KvType::Q8, KvType::Q4] {
        let shape = Shape { kv: Some(dtype), ..GROUPED };
        cases.push(shape.growing(format!("cache in {dtype:?}").to_lowercase()));
        let rope = Some(Rotary { dim: 80, pairing: Pairing::Half, magnitude: 1.0 });
        let wide = Shape { head_dim: 80, heads: 4, rope, ..shape };
        cases.push(wide.growing(format!("cache in {dtype:?}, heads of 80").to_lowercase()));

        let name = format!("cache in {dtype:?} after a longer sequence of huge values").to_lowercase();
        let mut stale = shape.alone(name, Fill::Normal(1.5));
        stale.submit(Feed::Hidden(1e3), &[(0, 0, 60)], Take::Nothing);
        grow(&mut stale);
        stale.submit(Feed::Hidden(1.0), &[(0, 0, 1)], Take::Hidden);
        cases.push(stale);

        let name = format!("two sequences in one submission, cache in {dtype:?}").to_lowercase();
        let mut two = Shape { sequences: 2, ..shape }.alone(name, Fill::Normal(1.5));
        two.submit(Feed::Hidden(1.0), &[(0, 0, 7), (1, 0, 20)], Take::Hidden);
        two.submit(Feed::Hidden(1.0), &[(1, 20, 1), (0, 7, 1)], Take::Hidden);
        two.submit(Feed::Hidden(1.0), &[(0, 8, 3), (1, 21, 1)], Take::Hidden);
        two.submit(Feed::Hidden(1.0), &[(1, 22, 9)], Take::Hidden);
        two.pipelined = true;
        cases.push(two);
    }
    // Records whose codes end with 16 bytes and whose scales do not; of the last so many heads share a key that several
    // workgroups take them.
    for (dtype, head_dim, heads, kv_heads) in
        [(KvType::Q8, 64, 4, 2), (KvType::Q4, 64, 2, 2), (KvType::Q4, 128, 2, 1), (KvType::Q8, 128, 20, 1)]
    {
        let rope = Some(Rotary { dim: head_dim, pairing: Pairing::Half, magnitude: 1.0 });
        let kv = Some(dtype);
        let shape = Shape { sequences: 2, capacity: 41, kv, head_dim, heads, kv_heads, rope, ..GROUPED };
        let name = format!("{heads} heads of {head_dim}, two sequences, cache in {dtype:?}").to_lowercase();
        let mut case = shape.alone(name, Fill::Normal(1.5));
        case.submit(Feed::Hidden(1.0), &[(1, 0, 35), (0, 0, 2)], Take::Hidden);
        case.submit(Feed::Hidden(1.0), &[(0, 2, 1), (1, 35, 1)], Take::Hidden);
        case.submit(Feed::Hidden(1.0), &[(0, 3, 1), (1, 36, 1)], Take::Hidden);
        cases.push(case);
    }
    for (kv, window) in [
        (KvType::F32, None),
        (KvType::F16, None),
        (KvType::Q8, None),
        (KvType::Q4, None),
        (KvType::F16, Some(300)),
    ] {
        let rope = Some(Rotary { dim: 16, pairing: Pairing::Half, magnitude: 1.0 });
        let shape = Shape {
            heads: 2,
            kv_heads: 1,
            head_dim: 16,
            kv: Some(kv),
            capacity: 2100,
            rope,
            window,
            ..GROUPED
        };
        let name = match window {
            None => format!("decode at position 2048, cache in {kv:?}"),
            Some(window) => format!("decode at position 2048, window of {window}, cache in {kv:?}"),
        };
        let mut long = shape.alone(name.to_lowercase(), Fill::Normal(1.5));
        for chunk in 0..8 {
            long.submit(Feed::Hidden(1.0), &[(0, chunk * 256, 256)], Take::Nothing);
        }
        for position in 2048..2051 {
            long.submit(Feed::Hidden(1.0), &[(0, position, 1)], Take::Hidden);
        }
        long.submit(Feed::Hidden(1.0), &[(0, 2051, 9)], Take::Hidden);
        long.heavy = true;
        cases.push(long);
    }

    // Caches of as many slots as the window and the longest submission take; the reference has a slot for each position.
    for (kv, head_dim, window, ring) in [
        (KvType::F32, 32, 8, 44),
        (KvType::F16, 64, 3, 39),
        (KvType::Q8, 64, 1, 37),
        (KvType::Q4, 80, 20, 56),
    ] {
        let rope = Some(Rotary { dim: head_dim, pairing: Pairing::Half, magnitude: 1.0 });
        let shape = Shape { kv: Some(kv), head_dim, rope, capacity: 200, sequences: 2, ..GROUPED };
        let shape = Shape { heads: 4, window: Some(window), ring: Some(ring), ..shape };
        let name = format!("window of {window} in a ring of {ring}, cache in {kv:?}").to_lowercase();
        let mut case = shape.alone(name, Fill::Normal(1.5));
        let runs = [(0, 37), (37, 1), (38, 37), (75, 2), (77, 1), (78, 37), (115, 1), (116, 1)];
        for (beside, (position, rows)) in runs.into_iter().enumerate() {
            case.submit(Feed::Hidden(1.0), &[(1, position, rows), (0, beside as u32, 1)], Take::Hidden);
        }
        cases.push(case);
    }
    let mut long = Shape { heads: 2, kv_heads: 1, head_dim: 16, capacity: 2100, ..GROUPED };
    (long.kv, long.window, long.ring) = (Some(KvType::F16), Some(700), Some(955));
    long.rope = Some(Rotary { dim: 16, pairing: Pairing::Half, magnitude: 1.0 });
    let mut long = long.alone("decode at position 2048, window of 700 in a ring of 955", Fill::Normal(1.5));
    for chunk in 0..8 {
        long.submit(Feed::Hidden(1.0), &[(0, chunk * 256, 256)], Take::Nothing);
    }
    for position in 2048..2050 {
        long.submit(Feed::Hidden(1.0), &[(0, position, 1)], Take::Hidden);
    }
    long.heavy = true;
    cases.push(long);

    let mut refused = GROUPED.growing("positions past the cache are refused");
    let past = |runs: &[(u32, u32, usize)]| Submission {
        feed: Feed::Hidden(1.0),
        places: places(runs),
        take: Take::Nothing,
    };
    refused.refusals = vec![past(&[(0, 60, 5)]), past(&[(1, 0, 1)]), past(&[(0, 3, 1), (0, 5, 1)])];
    cases.push(refused);
    cases
}

fn encoders() -> Vec<Case> {
    let mut cases = Vec::new();
    let rope = GROUPED.rope;
    for (name, shape) in [
        ("encoder", ENCODER),
        ("encoder, rotated", Shape { rope, ..ENCODER }),
        ("encoder, grouped heads", Shape { kv_heads: 2, ..ENCODER }),
        ("causal without a cache", Shape { causal: true, rope, ..ENCODER }),
        ("encoder with a window", Shape { window: Some(4), ..ENCODER }),
        ("encoder, heads of 64", Shape { heads: 2, kv_heads: 2, head_dim: 64, ..ENCODER }),
    ] {
        let mut case = shape.alone(name, Fill::Normal(1.5));
        case.submit(Feed::Hidden(1.0), &[(0, 0, 1)], Take::Hidden);
        case.submit(Feed::Hidden(1.0), &[(0, 0, 9), (1, 0, 33), (2, 0, 1)], Take::Hidden);
        case.submit(Feed::Hidden(1.0), &[(0, 0, 7)], Take::Hidden);
        cases.push(case);
    }
    cases
}

fn merge_linear() -> Vec<Case> {
    let mut cases = Vec::new();
    for kv in [KvType::F32, KvType::F16] {
        for in_place in [true, false] {
            let place = if in_place { "in place" } else { "separate" };
            let shape = Shape { kv: Some(kv), ..GROUPED };
            let mut case =
                Case::new("merge_linear", format!("residual {place}, cache in {kv:?}").to_lowercase());
            merged(&mut case, &shape, 66, in_place);
            grow(&mut case);
            cases.push(case);
        }
    }
    let mut encoder = Case::new("merge_linear", "encoder");
    merged(&mut encoder, &ENCODER, 33, false);
    encoder.submit(Feed::Hidden(1.0), &[(0, 0, 9), (1, 0, 33), (2, 0, 1)], Take::Hidden);
    encoder.submit(Feed::Hidden(1.0), &[(0, 0, 2)], Take::Hidden);
    cases.push(encoder);

    let mut long = Case::new("merge_linear", "decode at position 1000");
    let shape = Shape { heads: 4, kv_heads: 2, capacity: 1024, ..GROUPED };
    merged(&mut long, &shape, 128, true);
    for chunk in 0..4 {
        long.submit(Feed::Hidden(1.0), &[(0, chunk * 250, 250)], Take::Nothing);
    }
    for position in 1000..1003 {
        long.submit(Feed::Hidden(1.0), &[(0, position, 1)], Take::Hidden);
    }
    long.heavy = true;
    cases.push(long);

    cases.push(layers());
    cases
}

/// Attention and the o-projection, with a residual.
fn merged(case: &mut Case, shape: &Shape, hidden: usize, in_place: bool) {
    let qkv = case.input(shape.qkv(), Fill::Normal(1.5));
    let attended = case.reg(shape.heads * shape.head_dim);
    let stream = case.input(hidden, Fill::Normal(1.0));
    let out = if in_place { stream } else { case.input(hidden, Fill::Poison) };
    case.stretch.outputs.push(out);
    attend(case, shape, qkv, attended);
    let weight = case.linear(hidden, shape.heads * shape.head_dim, NF4, false);
    case.step(Step::Linear(LinearStep { residual: Some(stream), ..product(attended, weight, out) }));
}

/// Two whole layers of a Llama in one program: each step must see what the one before it wrote.
fn layers() -> Case {
    let (hidden, wide) = (96, 172);
    let mut case = Case::new("merge_linear", "two layers of a decoder");
    let stream = case.output(hidden, Fill::Normal(1.0));
    let shape = Shape { heads: 6, kv_heads: 2, head_dim: 16, ..GROUPED };
    let rope = Some(Rotary { dim: 16, pairing: Pairing::Half, magnitude: 1.0 });
    let shape = Shape { rope, ..shape };
    let (qkv, attended, gated) =
        (case.reg(shape.qkv()), case.reg(shape.heads * shape.head_dim), case.reg(wide));
    for _ in 0..2 {
        let norm = case.rms(hidden);
        let segments =
            [(shape.heads * 16, false), (shape.kv_heads * 16, false), (shape.kv_heads * 16, false)];
        let weight = case.stack(&segments, hidden, NF4, Arrangement::Stacked);
        case.step(Step::Linear(LinearStep { pre: Pre::norm(norm), ..product(stream, weight, qkv) }));
        attend(&mut case, &shape, qkv, attended);
        let weight = case.linear(hidden, shape.heads * shape.head_dim, NF4, false);
        case.step(Step::Linear(LinearStep { residual: Some(stream), ..product(attended, weight, stream) }));

        let norm = case.rms(hidden);
        let weight = case.stack(&[(wide, false), (wide, false)], hidden, NF4, Arrangement::Interleaved);
        let step = product(stream, weight, gated);
        case.step(Step::Linear(LinearStep { pre: Pre::norm(norm), act: Act::Silu, gated: true, ..step }));
        let weight = case.linear(hidden, wide, NF4, false);
        case.step(Step::Linear(LinearStep { residual: Some(stream), ..product(gated, weight, stream) }));
    }
    grow(&mut case);
    case.pipelined = true;
    case
}
