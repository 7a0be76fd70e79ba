//! Row `embed`: token ids to vectors.

use super::{Case, Feed, Take};
use crate::random::Stream;
use crate::{DType, Embed, Format, NormKind, Step};

/// Ids below `vocabulary`: the first, the last, a repetition, then any.
pub(super) fn tokens(seed: u64, count: usize, vocabulary: usize) -> Vec<u32> {
    let mut stream = Stream::new(seed);
    let last = (vocabulary - 1) as u32;
    let fixed = [last, 0, last];
    (0..count)
        .map(|index| fixed.get(index).copied().unwrap_or_else(|| stream.below(vocabulary) as u32))
        .collect()
}

/// Which parts an [`Embed`] has.
#[derive(Debug, Clone, Copy)]
struct Parts {
    vocabulary: usize,
    hidden: usize,
    dtype: DType,
    scale: f32,
    positions: Option<u32>,
    types: bool,
    norm: Option<NormKind>,
}

/// The row.
pub(super) fn cases() -> Vec<Case> {
    let plain = Parts {
        vocabulary: 257,
        hidden: 172,
        dtype: DType::F16,
        scale: 1.0,
        positions: None,
        types: false,
        norm: None,
    };
    let bert = Parts { positions: Some(0), types: true, norm: Some(NormKind::Layer), ..plain };
    let table = [
        ("f16", plain),
        ("f32", Parts { dtype: DType::F32, ..plain }),
        ("bf16", Parts { dtype: DType::Bf16, ..plain }),
        ("one column", Parts { hidden: 1, ..plain }),
        ("33 columns in bf16", Parts { hidden: 33, dtype: DType::Bf16, ..plain }),
        ("257 columns", Parts { hidden: 257, ..plain }),
        ("scaled", Parts { scale: 13.1, ..plain }),
        ("positions", Parts { positions: Some(0), ..plain }),
        ("positions from row 2, scaled", Parts { positions: Some(2), scale: 3.5, ..plain }),
        ("token types", Parts { types: true, ..plain }),
        ("rms norm", Parts { norm: Some(NormKind::Rms), ..plain }),
        ("positions, types and layer norm", bert),
        ("all of it, positions from row 2", Parts { positions: Some(2), scale: 0.5, ..bert }),
        ("all of it in f32, 33 columns", Parts { hidden: 33, dtype: DType::F32, ..bert }),
    ];
    table.into_iter().map(|(name, parts)| case(name, parts)).collect()
}

fn case(name: &str, parts: Parts) -> Case {
    let Parts { vocabulary, hidden, dtype, scale, .. } = parts;
    let mut case = Case::new("embed", name);
    let out = case.reg(hidden);
    case.stretch.outputs.push(out);
    let format = Format::Dense(dtype);
    let table = case.linear(vocabulary, hidden, format, false);
    let positions = parts.positions.map(|first| (case.linear(90, hidden, format, false), first));
    let types = parts.types.then(|| case.linear(2, hidden, format, false));
    // Table rows have elements of deviation 1 / sqrt(hidden): this eps is a tenth of their variance.
    let norm = parts.norm.map(|kind| case.norm(kind, hidden, 0.1 / hidden as f32, 0.0));
    case.step(Step::Embed(Embed { table, scale, positions, types, norm, out }));
    for (sequence, position, count) in [(0, 0, 65), (0, 65, 1), (0, 66, 7), (1, 0, 9), (1, 9, 1)] {
        let ids = tokens(case.seed ^ u64::from(position), count, vocabulary);
        case.submit(Feed::Tokens(ids), &[(sequence, position, count)], Take::Hidden);
    }
    case
}
