//! Rows `head` and `sample`: logits, greedy choices, and the loop that feeds them back.

use super::embed::tokens;
use super::linear::{NF4, named};
use super::{Case, Feed, Fill, Take};
use crate::{
    DType, Embed, Emit, EmitKind, Format, Head, Kind, NormKind, Pre, Purpose, SampleParams, Step, WantId,
};

const F16: Format = Format::Dense(DType::F16);

/// Both rows.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = head();
    cases.extend(sample());
    cases
}

/// What is particular about a head.
#[derive(Debug, Clone, Copy)]
struct Parts {
    vocabulary: usize,
    hidden: usize,
    format: Format,
    bias: bool,
    scale: f32,
    softcap: Option<f32>,
    norm: Option<NormKind>,
    fill: Fill,
    /// Whether its matrix is a model's output head, as [`LinearShape::head`](crate::LinearShape::head) says.
    of_model: bool,
}

const PLAIN: Parts = Parts {
    vocabulary: 257,
    hidden: 172,
    format: F16,
    bias: false,
    scale: 1.0,
    softcap: None,
    norm: Some(NormKind::Rms),
    fill: Fill::Normal(1.0),
    of_model: false,
};

fn logits(name: String, parts: Parts) -> Case {
    let Parts { vocabulary, hidden, scale, softcap, .. } = parts;
    let mut case = Case::new("head", name);
    let input = case.input(hidden, parts.fill);
    let norm = parts.norm.map(|kind| case.norm(kind, hidden, 1e-5, 0.0));
    let weight = case.linear(vocabulary, hidden, parts.format, parts.bias);
    if let Some(Kind::Linear(shape)) = case.stretch.wants.last_mut().map(|want| &mut want.kind) {
        shape.head = parts.of_model;
    }
    let pre = Pre { norm, ..Pre::default() };
    case.step(Step::Head(Head { input, pre, weight, scale, softcap }));
    case
}

fn head() -> Vec<Case> {
    let mut cases = Vec::new();
    for format in [DType::F32, DType::F16, DType::Bf16].map(Format::Dense).into_iter().chain([NF4]) {
        cases.push(logits(named(format), Parts { format, ..PLAIN }));
    }
    for (vocabulary, hidden) in [(1, 33), (3, 172), (65, 257), (1001, 64)] {
        let name = format!("[{vocabulary}, {hidden}]");
        cases.push(logits(name, Parts { vocabulary, hidden, ..PLAIN }));
    }
    for (name, parts) in [
        ("bias", Parts { bias: true, ..PLAIN }),
        ("scale", Parts { scale: 0.0625, ..PLAIN }),
        ("soft cap", Parts { softcap: Some(1.5), ..PLAIN }),
        ("bias, scale and soft cap", Parts { bias: true, scale: 2.5, softcap: Some(3.0), ..PLAIN }),
        ("layer norm", Parts { norm: Some(NormKind::Layer), ..PLAIN }),
        ("no norm", Parts { norm: None, bias: true, ..PLAIN }),
        ("tiny values", Parts { fill: Fill::Normal(1e-3), ..PLAIN }),
        ("an outlier channel", Parts { fill: Fill::Outlier(11), ..PLAIN }),
    ] {
        cases.push(logits(name.to_owned(), parts));
    }
    // What a device may hold in a form of its own: whole blocks of columns, with and without whole groups of rows.
    let model = Parts { of_model: true, ..PLAIN };
    for (vocabulary, hidden, dtype) in
        [(512, 192, DType::F16), (1003, 64, DType::Bf16), (33, 576, DType::F32), (15, 128, DType::F16)]
    {
        let name = format!("a model's head [{vocabulary}, {hidden}]");
        let bias = vocabulary == 33;
        cases.push(logits(name, Parts { vocabulary, hidden, format: Format::Dense(dtype), bias, ..model }));
    }
    for case in &mut cases {
        case.submit(Feed::Hidden(1.0), &[(0, 0, 1)], Take::Logits(vec![0]));
        case.submit(Feed::Hidden(1.0), &[(0, 1, 9)], Take::Logits(vec![8]));
        case.submit(Feed::Hidden(1.0), &[(0, 10, 7)], Take::Nothing);
        case.submit(Feed::Hidden(1.0), &[(0, 17, 7)], Take::Logits(vec![6, 0, 3]));
        case.submit(Feed::Hidden(1.0), &[(0, 24, 9)], Take::Logits((0..9).collect()));
        case.submit(Feed::Hidden(1.0), &[(0, 33, 65)], Take::Greedy(vec![64, 2]));
    }
    cases.push(stream());

    let mut large = logits("[128256, 64]".into(), Parts { vocabulary: 128_256, hidden: 64, ..PLAIN });
    large.submit(Feed::Hidden(1.0), &[(0, 0, 1)], Take::Logits(vec![0]));
    large.submit(Feed::Hidden(1.0), &[(0, 1, 5)], Take::Logits(vec![4, 1]));
    large.submit(Feed::Hidden(1.0), &[(0, 6, 5)], Take::Greedy(vec![0, 2, 4]));
    large.heavy = true;
    cases.push(large);
    cases
}

/// A head whose `pre` has all parts, as where a model's last layer leaves the sum to it.
fn stream() -> Case {
    let mut case = Case::new("head", "residual, post-norm and norm");
    let input = case.input(172, Fill::Normal(1.0));
    let residual = case.input(172, Fill::Normal(2.0));
    let emitted = case.reg(172);
    let post = case.norm(NormKind::Rms, 172, 1e-6, 1.0);
    let norm = case.norm(NormKind::Rms, 172, 1e-6, 1.0);
    let weight = case.linear(257, 172, F16, false);
    let emit = Emit { kind: EmitKind::Sum, to: emitted };
    let pre = Pre { residual: Some(residual), post: Some(post), norm: Some(norm), emit: Some(emit) };
    case.step(Step::Head(Head { input, pre, weight, scale: 1.0, softcap: Some(30.0) }));
    case.submit(Feed::Hidden(1.0), &[(0, 0, 9)], Take::Logits(vec![8, 1]));
    case.submit(Feed::Hidden(1.0), &[(0, 9, 1)], Take::Logits(vec![0]));
    case
}

/// Names that [`SeededWeights`](super::SeededWeights) gives a meaning: of both embeddings, of the head,
/// and of its bias.
#[derive(Debug, Clone, Copy)]
struct Named {
    tables: &'static str,
    head: &'static str,
    bias: Option<&'static str>,
}

fn sample() -> Vec<Case> {
    let usual = Named { tables: "table", head: "head", bias: None };
    // Exact sums in whatever order, and no norm: what ties in the reference ties everywhere.
    let exact = Named { tables: "exact", head: "exact_head", bias: None };
    let tied = Named { head: "tied_head", bias: Some("zero"), ..exact };
    vec![
        greedy("greedy loop", 257, usual),
        greedy("greedy loop with a bias", 1003, Named { bias: Some("bias"), ..usual }),
        greedy("scores in steps of 1/16, 5000 tokens", 5000, exact),
        greedy("ties go to the lowest id", 257, tied),
        greedy("ties go to the lowest id, 5000 tokens", 5000, tied),
        greedy("all logits are equal", 1000, Named { head: "zero", ..tied }),
        drawn("draws", 257, usual),
        drawn("draws of 5000 tokens", 5000, Named { bias: Some("bias"), ..usual }),
        drawn("draws among ties", 1003, tied),
        drawn("draws of equal logits", 1000, Named { head: "zero", ..tied }),
    ]
}

/// Ways to draw: each cut alone, all together, none, and a penalty on the greedy choice.
fn ways() -> Vec<SampleParams> {
    let plain = SampleParams { temperature: 1.0, seed: 0x1234_5678_9abc_def0, ..SampleParams::default() };
    vec![
        plain,
        SampleParams { temperature: 0.7, top_k: 50, top_p: 0.9, repetition_penalty: 1.1, ..plain },
        SampleParams { top_k: 5, ..plain },
        SampleParams { top_k: 1, ..plain },
        SampleParams { top_k: 1_000_000, ..plain },
        SampleParams { top_p: 0.5, ..plain },
        SampleParams { top_p: 1e-6, ..plain },
        SampleParams { temperature: 30.0, repetition_penalty: 1.5, ..plain },
        SampleParams { temperature: 0.0, repetition_penalty: 1.3, ..plain },
        SampleParams::default(),
    ]
}

/// Draws feed the next submission without a read; what has been seen is remembered from draw to draw.
fn drawn(name: &str, vocabulary: usize, named: Named) -> Case {
    let mut case = greedy(name, vocabulary, named);
    case.submissions.clear();
    let ids = tokens(case.seed, 9, vocabulary);
    let first = ways()[1];
    case.submit(Feed::Tokens(ids.clone()), &[(0, 0, 9)], Take::Sample(vec![(8, first, Some(ids))]));
    let mut position = 9;
    for params in ways() {
        for _ in 0..2 {
            case.submit(Feed::Chosen, &[(0, position, 1)], Take::Sample(vec![(0, params, None)]));
            position += 1;
        }
    }
    // Three sequences, of which the second remembers nothing and the third has seen all but the last.
    let ids = tokens(case.seed ^ 1, 12, vocabulary);
    let all: Vec<u32> = (1..vocabulary as u32).collect();
    let strict = SampleParams { repetition_penalty: 4.0, ..ways()[0] };
    case.submit(
        Feed::Tokens(ids),
        &[(0, position, 3), (1, 0, 5), (2, 0, 4)],
        Take::Sample(vec![(2, strict, None), (7, strict, Some(Vec::new())), (11, strict, Some(all))]),
    );
    for step in 0..3 {
        let runs = [(0, position + 3 + step, 1), (1, 5 + step, 1), (2, 4 + step, 1)];
        case.submit(Feed::Chosen, &runs, Take::Sample((0..3).map(|row| (row, strict, None)).collect()));
    }
    case
}

/// Embed and head in one program: greedy choices feed the next submission without a read.
fn greedy(name: &str, vocabulary: usize, named: Named) -> Case {
    let hidden = 64;
    let mut case = Case::new("sample", name);
    let out = case.reg(hidden);
    let table = case.linear(vocabulary, hidden, F16, false);
    let positions = case.linear(64, hidden, F16, false);
    let weight = case.linear(vocabulary, hidden, F16, named.bias.is_some());
    rename(&mut case, table, named.tables, None);
    rename(&mut case, positions, &format!("{}_positions", named.tables), None);
    rename(&mut case, weight, named.head, named.bias);
    let pre = if named.head == "head" { Pre::norm(case.rms(hidden)) } else { Pre::default() };
    let embed = Embed { table, scale: 1.0, positions: Some((positions, 0)), types: None, norm: None, out };
    case.step(Step::Embed(embed));
    case.step(Step::Head(Head { input: out, pre, weight, scale: 1.0, softcap: None }));

    let ids = tokens(case.seed, 9, vocabulary);
    case.submit(Feed::Tokens(ids), &[(0, 0, 9)], Take::Greedy(vec![8]));
    for position in 9..14 {
        case.submit(Feed::Chosen, &[(0, position, 1)], Take::Greedy(vec![0]));
    }
    // Three sequences: row r goes on with the token that row r of the choice chose.
    let ids = tokens(case.seed ^ 1, 12, vocabulary);
    case.submit(Feed::Tokens(ids), &[(0, 14, 3), (1, 0, 5), (2, 0, 4)], Take::Greedy(vec![2, 7, 11]));
    case.submit(Feed::Chosen, &[(0, 17, 1), (1, 5, 1), (2, 4, 1)], Take::Greedy(vec![0, 1, 2]));
    case.submit(Feed::Chosen, &[(0, 18, 1), (1, 6, 1), (2, 5, 1)], Take::Logits(vec![2, 0]));
    case.pipelined = true;
    case
}

/// Gives the tensors of a layer names.
fn rename(case: &mut Case, weight: WantId, tensor: &str, bias: Option<&str>) {
    let Some(want) = case.stretch.wants.get_mut(weight.0 as usize) else { return };
    want.purpose = Purpose::Embeddings;
    if let Kind::Linear(shape) = &mut want.kind {
        for segment in &mut shape.segments {
            segment.tensor = format!("{tensor}.weight");
            segment.bias = bias.map(|bias| format!("head.{bias}"));
        }
    }
}
