//! Rows `norm_linear`, `norm_gate_up`, `linear_residual` and `pre`: matrix products.

use super::{Case, Fill};
use crate::{
    Act, Arrangement, DType, Emit, EmitKind, Format, LinearStep, NormKind, Pre, QuantFormat, Reg, Step,
    WantId,
};
use halfbyte_quant::QuantType;

/// Blocks of 64 with double quantization, as almost every model has them.
pub(super) const NF4: Format = quant(QuantType::Nf4, 64, true);

const F16: Format = Format::Dense(DType::F16);

/// All activation functions.
pub(super) const ACTS: [Act; 6] = [Act::Identity, Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu, Act::Tanh];

/// Row counts around the bounds at which kernels change.
const COUNTS: [usize; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 64, 65, 257];

/// `(rows, cols)` that divide by nothing; with 172 columns, blocks of 64 cross rows.
const SHAPES: [(usize, usize); 8] =
    [(1, 33), (3, 1), (33, 172), (172, 257), (257, 33), (66, 64), (3, 4100), (130, 96)];

const fn quant(quant_type: QuantType, blocksize: usize, double_quant: bool) -> Format {
    Format::Quant(QuantFormat { quant_type, blocksize, double_quant })
}

/// Every way to hold a matrix.
pub(super) fn formats() -> Vec<Format> {
    let mut formats = [DType::F32, DType::F16, DType::Bf16].map(Format::Dense).to_vec();
    for quant_type in [QuantType::Nf4, QuantType::Fp4] {
        for blocksize in [32, 64, 256, 4096] {
            formats.extend([true, false].map(|double| quant(quant_type, blocksize, double)));
        }
    }
    formats
}

/// A format as case names have it.
pub(super) fn named(format: Format) -> String {
    match format {
        Format::Dense(dtype) => format!("{dtype:?}").to_lowercase(),
        Format::Quant(quant) => {
            let nested = if quant.double_quant { "double" } else { "plain" };
            format!("{} in blocks of {}, {nested}", quant.quant_type, quant.blocksize)
        }
    }
}

/// A plain product of `input` into `out`, to be changed with struct update.
pub(super) fn product(input: Reg, weight: WantId, out: Reg) -> LinearStep {
    LinearStep {
        input,
        pre: Pre::default(),
        weight,
        act: Act::Identity,
        gated: false,
        residual: None,
        out,
        at: 0,
    }
}

/// All four rows.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = norm_linear();
    cases.extend(norm_gate_up());
    cases.extend(linear_residual());
    cases.extend(pre());
    cases
}

/// One tensor after the usual norm, tokens as `counts` say.
fn normed(name: String, (rows, cols): (usize, usize), format: Format, counts: &[usize]) -> Case {
    let mut case = Case::new("norm_linear", name);
    let input = case.input(cols, Fill::Normal(1.0));
    let out = case.output(rows, Fill::Poison);
    let norm = case.rms(cols);
    let weight = case.linear(rows, cols, format, false);
    case.step(Step::Linear(LinearStep { pre: Pre::norm(norm), ..product(input, weight, out) }));
    counts.iter().for_each(|&count| case.hidden(count));
    case
}

fn norm_linear() -> Vec<Case> {
    let mut cases = Vec::new();
    for format in formats() {
        cases.push(normed(format!("{}, [33, 172]", named(format)), (33, 172), format, &[1, 8]));
    }
    for shape in SHAPES {
        cases.push(normed(format!("[{}, {}]", shape.0, shape.1), shape, NF4, &[1, 7, 9]));
    }
    for (name, shape, format) in [
        ("1 to 257 tokens", (66, 172), NF4),
        ("1 to 257 tokens, even shape", (128, 256), NF4),
        ("1 to 257 tokens, f16", (128, 256), F16),
        ("1 to 257 tokens, f16, odd shape", (33, 172), F16),
    ] {
        cases.push(normed(name.to_owned(), shape, format, &COUNTS));
    }
    cases.push(normed("compiled for one token".into(), (257, 512), NF4, &[1, 1]));
    cases.extend([(64, 16, 16), (96, 33, 33), (5, 4, 3)].map(|rows| qkv(rows, NF4)));
    cases.push(qkv((64, 16, 16), F16));
    cases.push(qkv((80, 40, 40), quant(QuantType::Nf4, 4096, true)));

    let kinds = [(NormKind::Rms, "rms"), (NormKind::Layer, "layer")];
    for (kind, name) in kinds {
        cases.push(norm_of(kind, &format!("{name} norm, offset 1"), Fill::Normal(1.0), 1e-6, 1.0));
        cases.push(norm_of(kind, &format!("{name} norm of tiny values"), Fill::Normal(1e-3), 1e-5, 0.0));
        cases.push(norm_of(kind, &format!("{name} norm, an outlier channel"), Fill::Outlier(101), 1e-5, 0.0));
        cases.push(norm_of(kind, &format!("{name} norm, mean 30"), Fill::Shifted(30.0), 1e-5, 0.0));
    }
    for act in ACTS {
        let mut case = Case::new("norm_linear", format!("{act:?} of a sum with bias"));
        let input = case.input(172, Fill::Normal(1.5));
        let out = case.output(33, Fill::Poison);
        let norm = case.norm(NormKind::Layer, 172, 1e-5, 0.0);
        let weight = case.linear(33, 172, NF4, true);
        let step = LinearStep { pre: Pre::norm(norm), act, ..product(input, weight, out) };
        case.step(Step::Linear(step));
        [1, 5, 64].into_iter().for_each(|count| case.hidden(count));
        cases.push(case);
    }
    cases.push(offset_columns());
    cases
}

/// q|k|v of unequal rows, k without a bias.
fn qkv((q, k, v): (usize, usize, usize), format: Format) -> Case {
    let mut case = Case::new("norm_linear", format!("q|k|v of {q}, {k}, {v} rows, {}", named(format)));
    let input = case.input(172, Fill::Normal(1.0));
    let out = case.output(q + k + v, Fill::Poison);
    let norm = case.rms(172);
    let weight = case.stack(&[(q, true), (k, false), (v, true)], 172, format, Arrangement::Stacked);
    case.step(Step::Linear(LinearStep { pre: Pre::norm(norm), ..product(input, weight, out) }));
    [1, 8, 9].into_iter().for_each(|count| case.hidden(count));
    case
}

fn norm_of(kind: NormKind, name: &str, fill: Fill, eps: f32, offset: f32) -> Case {
    let mut case = Case::new("norm_linear", name);
    let input = case.input(172, fill);
    let out = case.output(33, Fill::Poison);
    let norm = case.norm(kind, 172, eps, offset);
    let weight = case.linear(33, 172, NF4, false);
    case.step(Step::Linear(LinearStep { pre: Pre::norm(norm), ..product(input, weight, out) }));
    [1, 7, 65].into_iter().for_each(|count| case.hidden(count));
    case
}

/// Two products side by side in one register, and columns around them that must stay.
fn offset_columns() -> Case {
    let mut case = Case::new("norm_linear", "two products into columns of one register");
    let input = case.input(96, Fill::Normal(1.0));
    let out = case.output(65, Fill::Normal(1.0));
    let norm = case.rms(96);
    for (rows, at) in [(17, 3), (33, 20)] {
        let weight = case.linear(rows, 96, NF4, true);
        let step = LinearStep { pre: Pre::norm(norm), at, ..product(input, weight, out) };
        case.step(Step::Linear(step));
    }
    [1, 3, 9].into_iter().for_each(|count| case.hidden(count));
    case
}

/// Gate and up of `half` rows each, in two tensors or in one.
fn gate_up(name: String, half: usize, cols: usize, format: Format, act: Act, tensors: usize) -> Case {
    let mut case = Case::new("norm_gate_up", name);
    let input = case.input(cols, Fill::Normal(1.5));
    let out = case.output(half, Fill::Poison);
    let norm = case.rms(cols);
    let segments = if tensors == 1 { vec![(2 * half, false)] } else { vec![(half, false); 2] };
    let weight = case.stack(&segments, cols, format, Arrangement::Interleaved);
    let step = LinearStep { pre: Pre::norm(norm), act, gated: true, ..product(input, weight, out) };
    case.step(Step::Linear(step));
    [1, 7, 8, 9, 65].into_iter().for_each(|count| case.hidden(count));
    case
}

fn norm_gate_up() -> Vec<Case> {
    let mut cases = Vec::new();
    for act in ACTS {
        cases.push(gate_up(format!("{act:?}"), 33, 172, NF4, act, 2));
    }
    for format in formats() {
        cases.push(gate_up(named(format), 20, 172, format, Act::Silu, 2));
    }
    for (half, cols) in [(1, 3), (33, 257), (172, 64), (86, 256)] {
        let name = |tensors| format!("[2 x {half}, {cols}] in {tensors}");
        cases.push(gate_up(name("two tensors"), half, cols, NF4, Act::Silu, 2));
        cases.push(gate_up(name("one tensor"), half, cols, NF4, Act::Silu, 1));
    }
    let mut many = gate_up("1 to 257 tokens".into(), 66, 172, NF4, Act::Silu, 2);
    COUNTS.into_iter().for_each(|count| many.hidden(count));
    cases.push(many);
    let mut outlier = gate_up("an outlier channel".into(), 33, 172, NF4, Act::GeluTanh, 2);
    outlier.fills[0] = Fill::Outlier(7);
    cases.push(outlier);
    let mut tiny = gate_up("tiny values".into(), 33, 172, NF4, Act::Silu, 2);
    tiny.fills[0] = Fill::Normal(1e-3);
    cases.push(tiny);
    for tensors in [1, 2] {
        let name = format!("layer norm, {}", if tensors == 1 { "one tensor" } else { "two tensors" });
        let mut case = Case::new("norm_gate_up", name);
        let input = case.input(172, Fill::Shifted(1.0));
        let out = case.output(33, Fill::Poison);
        let norm = case.norm(NormKind::Layer, 172, 1e-5, 0.0);
        let segments = [(66 / tensors, true), (33, true)];
        let weight = case.stack(&segments[..tensors], 172, F16, Arrangement::Interleaved);
        let step = LinearStep { act: Act::Silu, gated: true, ..product(input, weight, out) };
        case.step(Step::Linear(LinearStep { pre: Pre::norm(norm), ..step }));
        [1, 3, 8].into_iter().for_each(|count| case.hidden(count));
        cases.push(case);
    }

    let mut biased = Case::new("norm_gate_up", "biases, no norm, at column 5");
    let input = biased.input(172, Fill::Normal(1.0));
    let out = biased.output(44, Fill::Normal(1.0));
    let weight = biased.stack(&[(33, true), (33, true)], 172, NF4, Arrangement::Interleaved);
    biased.step(Step::Linear(LinearStep {
        act: Act::Gelu,
        gated: true,
        at: 5,
        ..product(input, weight, out)
    }));
    [1, 9].into_iter().for_each(|count| biased.hidden(count));
    cases.push(biased);
    cases
}

/// Where a residual is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Residual {
    Absent,
    Separate,
    InPlace,
}

fn down(name: String, (rows, cols): (usize, usize), format: Format, residual: Residual) -> Case {
    let mut case = Case::new("linear_residual", name);
    let input = case.input(cols, Fill::Normal(1.0));
    let other = case.input(rows, Fill::Normal(1.0));
    let fill = if residual == Residual::InPlace { Fill::Normal(1.0) } else { Fill::Poison };
    let out = case.output(rows, fill);
    let weight = case.linear(rows, cols, format, false);
    let residual = match residual {
        Residual::Absent => None,
        Residual::Separate => Some(other),
        Residual::InPlace => Some(out),
    };
    case.step(Step::Linear(LinearStep { residual, ..product(input, weight, out) }));
    case
}

fn linear_residual() -> Vec<Case> {
    let mut cases = Vec::new();
    for (residual, name) in [
        (Residual::Absent, "no residual"),
        (Residual::Separate, "residual in another register"),
        (Residual::InPlace, "residual in place"),
    ] {
        for format in [NF4, F16] {
            cases.push(down(format!("{name}, {}", named(format)), (66, 172), format, residual));
        }
    }
    for format in formats() {
        cases.push(down(named(format), (33, 172), format, Residual::Separate));
    }
    for shape in SHAPES {
        cases.push(down(format!("[{}, {}]", shape.0, shape.1), shape, NF4, Residual::InPlace));
    }
    let mut outlier = down("an outlier channel".into(), (66, 172), NF4, Residual::Separate);
    outlier.fills[0] = Fill::Outlier(99);
    cases.push(outlier);
    for case in &mut cases {
        [1, 7, 8, 9].into_iter().for_each(|count| case.hidden(count));
    }

    let mut many = down("1 to 257 tokens".into(), (128, 256), NF4, Residual::InPlace);
    COUNTS.into_iter().for_each(|count| many.hidden(count));
    cases.push(many);

    for (name, in_place) in [("another register", false), ("place", true)] {
        let mut part =
            Case::new("linear_residual", format!("bias, activation and residual in {name} at column 7"));
        let input = part.input(172, Fill::Normal(1.0));
        let other = part.input(50, Fill::Normal(1.0));
        let out = part.output(50, Fill::Normal(1.0));
        let weight = part.linear(33, 172, NF4, true);
        let residual = Some(if in_place { out } else { other });
        part.step(Step::Linear(LinearStep {
            act: Act::Silu,
            residual,
            at: 7,
            ..product(input, weight, out)
        }));
        [1, 9, 64].into_iter().for_each(|count| part.hidden(count));
        cases.push(part);
    }

    let mut refused = down("too many rows are refused".into(), (33, 172), NF4, Residual::Separate);
    refused.hidden(4);
    refused.hidden(3);
    refused.refusals.push(refused.submissions[0].clone());
    refused.refusals[0].places = super::case::places(&[(0, 0, 5)]);
    cases.push(refused);
    cases
}

/// Which parts a [`Pre`] has.
#[derive(Debug, Clone, Copy, Default)]
struct Parts {
    residual: bool,
    post: Option<NormKind>,
    norm: Option<NormKind>,
    emit: Option<EmitKind>,
    offset: f32,
}

fn pre() -> Vec<Case> {
    use EmitKind::{Normed, Sum};
    use NormKind::{Layer, Rms};
    let none = Parts::default();
    let llama = Parts { residual: true, norm: Some(Rms), emit: Some(Sum), ..none };
    let bert = Parts { residual: true, norm: Some(Layer), emit: Some(Normed), ..none };
    let gemma = Parts { residual: true, post: Some(Rms), norm: Some(Rms), emit: Some(Sum), offset: 1.0 };
    let table = [
        ("residual", Parts { residual: true, ..none }),
        ("residual, emits the sum without a norm", Parts { residual: true, emit: Some(Sum), ..none }),
        ("residual and norm", Parts { emit: None, ..llama }),
        ("residual and norm, emits the sum", llama),
        ("residual and norm, emits the normed", Parts { emit: Some(Normed), ..llama }),
        ("residual and layer norm, emits the normed", bert),
        ("layer norm, emits the normed", Parts { residual: false, ..bert }),
        ("norm, emits the sum", Parts { residual: false, ..llama }),
        ("post-norm", Parts { post: Some(Rms), ..none }),
        ("post-norm and residual", Parts { residual: true, post: Some(Layer), ..none }),
        ("all of it, emits the sum", gemma),
        ("all of it, emits the normed", Parts { emit: Some(Normed), ..gemma }),
        ("post layer norm, emits the sum", Parts { post: Some(Layer), norm: Some(Layer), ..gemma }),
    ];
    let mut cases = Vec::new();
    for (name, parts) in table {
        for (suffix, cols, fill, format) in [
            ("", 172, Fill::Normal(1.0), NF4),
            (", an outlier channel", 172, Fill::Outlier(3), NF4),
            (", tiny values", 172, Fill::Normal(1e-3), NF4),
            (", 257 columns in f16", 257, Fill::Normal(1.0), F16),
        ] {
            cases.push(prepared(format!("{name}{suffix}"), parts, cols, fill, format));
        }
    }
    cases
}

fn prepared(name: String, parts: Parts, cols: usize, fill: Fill, format: Format) -> Case {
    let mut case = Case::new("pre", name);
    let input = case.input(cols, fill);
    let stream = if fill == Fill::Normal(1e-3) { fill } else { Fill::Normal(2.0) };
    let residual = parts.residual.then(|| case.input(cols, stream));
    let out = case.output(66, Fill::Poison);
    let post = parts.post.map(|kind| case.norm(kind, cols, 1e-5, parts.offset));
    let norm = parts.norm.map(|kind| case.norm(kind, cols, 1e-6, parts.offset));
    let emit = parts.emit.map(|kind| Emit { kind, to: case.output(cols, Fill::Poison) });
    let weight = case.linear(66, cols, format, true);
    let pre = Pre { residual, post, norm, emit };
    case.step(Step::Linear(LinearStep { pre, ..product(input, weight, out) }));
    [1, 3, 8, 9, 64].into_iter().for_each(|count| case.hidden(count));
    case
}
