//! Errors of meaning that the table must catch.

mod parts;

use super::{Case, Outcome, Take, execute};
use crate::{Act, Arrangement, Backend, DType, EmitKind, Format, KvType, NormKind, Pairing, SampleParams};
use halfbyte_quant::QuantType;
use parts::*;

/// One way to misread a step.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    /// The row of the table whose cases must catch it.
    pub step: &'static str,
    /// What it gets wrong.
    pub name: &'static str,
    /// Puts the error into a case; false if the case has nothing to get wrong.
    pub apply: fn(&mut Case) -> bool,
}

type Mutation = (&'static str, fn(&mut Case) -> bool);

/// Runs `case` on the reference and its mutant on the subject: a good table fails one case at least.
/// `None` if the case has nothing that the mutant changes.
pub async fn run_mutant(
    mutant: &Mutant,
    case: &Case,
    reference: &dyn Backend,
    subject: &dyn Backend,
) -> Option<Outcome> {
    let mut mutated = case.clone();
    if mutated.step != mutant.step || !(mutant.apply)(&mut mutated) {
        return None;
    }
    Some(execute::compare(case, reference, &mutated, subject).await)
}

/// All mutants.
pub fn mutants() -> Vec<Mutant> {
    let table: [(&[&'static str], &[Mutation]); 13] = [
        (&["embed"], EMBED),
        (&["embed", "norm_linear", "norm_gate_up", "pre", "attend", "head"], NORMS),
        (&["norm_linear", "norm_gate_up", "linear_residual"], LAYERS),
        (&["norm_linear", "norm_gate_up"], ACTIVATIONS),
        (&["linear_residual", "merge_linear"], RESIDUALS),
        (&["norm_linear"], STACKED),
        (&["norm_gate_up"], GATED),
        (&["pre"], PRE),
        (&["attend", "merge_linear"], ATTEND),
        (&["attend"], ATTEND_VARIANTS),
        (&["moe"], EXPERTS),
        (&["head"], HEAD),
        (&["sample"], SAMPLE),
    ];
    let mutants = table.iter().flat_map(|(steps, mutations)| {
        let of = |&step| mutations.iter().map(move |&(name, apply)| Mutant { step, name, apply });
        steps.iter().flat_map(of)
    });
    mutants.collect()
}

const EMBED: &[Mutation] = &[
    ("scale left out", |case| embeds(case, |step| set(&mut step.scale, 1.0))),
    ("positions left out", |case| embeds(case, |step| step.positions.take().is_some())),
    ("positions from one row on", |case| {
        embeds(case, |step| {
            step.positions.as_mut().is_some_and(|(_, first)| update(first, |first| first + 1))
        })
    }),
    ("positions from row 0", |case| {
        embeds(case, |step| step.positions.as_mut().is_some_and(|(_, first)| set(first, 0)))
    }),
    ("token types left out", |case| embeds(case, |step| step.types.take().is_some())),
    ("every token of type 0", |case| {
        let typed = embeds(case, |step| step.types.is_some());
        let places = case.submissions.iter_mut().flat_map(|submission| &mut submission.places);
        places.for_each(|place| place.token_type = 0);
        typed
    }),
    ("norm left out", |case| embeds(case, |step| step.norm.take().is_some())),
    ("table in another dtype", |case| shapes(case, |shape| reformat(shape, narrowed))),
];

const NORMS: &[Mutation] = &[
    ("eps left out", |case| norms(case, |norm| set(&mut norm.eps, 0.0))),
    ("eps doubled", |case| norms(case, |norm| update(&mut norm.eps, |eps| eps * 2.0))),
    ("the other offset", |case| norms(case, |norm| update(&mut norm.offset, |offset| 1.0 - offset))),
    ("mean not subtracted", |case| {
        norms(case, |norm| replace(&mut norm.kind, NormKind::Layer, NormKind::Rms))
    }),
    ("mean subtracted", |case| norms(case, |norm| replace(&mut norm.kind, NormKind::Rms, NormKind::Layer))),
    ("norm's bias left out", |case| norm_shapes(case, |shape| shape.bias.take().is_some())),
];

const LAYERS: &[Mutation] = &[
    ("bias left out", |case| {
        shapes(case, |shape| any(&mut shape.segments, |segment| segment.bias.take().is_some()))
    }),
    ("one column on", |case| {
        let widths = case.stretch.widths.clone();
        linears(case, |step| {
            let width = widths.get(usize::from(step.out.0)).copied().unwrap_or(0);
            step.at > 0 && step.at + 35 <= width && update(&mut step.at, |at| at + 1)
        })
    }),
    ("the other codebook", |case| {
        shapes(case, |shape| {
            requantize(shape, |quant| {
                let other = if quant.quant_type == QuantType::Nf4 { QuantType::Fp4 } else { QuantType::Nf4 };
                set(&mut quant.quant_type, other)
            })
        })
    }),
    ("nested scales left plain", |case| {
        shapes(case, |shape| requantize(shape, |quant| set(&mut quant.double_quant, false)))
    }),
    ("blocks of another size", |case| {
        shapes(case, |shape| requantize(shape, |quant| set(&mut quant.blocksize, 128)))
    }),
    ("f32 weights narrowed", |case| {
        shapes(case, |shape| reformat(shape, |dtype| if dtype == DType::F32 { DType::F16 } else { dtype }))
    }),
    ("bf16 weights of f16's precision", |case| {
        shapes(case, |shape| reformat(shape, |dtype| if dtype == DType::Bf16 { DType::F16 } else { dtype }))
    }),
];

const ACTIVATIONS: &[Mutation] = &[
    ("Gelu by tanh", |case| linears(case, |step| replace(&mut step.act, Act::Gelu, Act::GeluTanh))),
    ("GeluTanh by erf", |case| linears(case, |step| replace(&mut step.act, Act::GeluTanh, Act::Gelu))),
    ("Silu as Gelu", |case| linears(case, |step| replace(&mut step.act, Act::Silu, Act::Gelu))),
    ("Relu left out", |case| linears(case, |step| replace(&mut step.act, Act::Relu, Act::Identity))),
    ("Tanh left out", |case| linears(case, |step| replace(&mut step.act, Act::Tanh, Act::Identity))),
    ("Identity as Relu", |case| linears(case, |step| replace(&mut step.act, Act::Identity, Act::Relu))),
];

const RESIDUALS: &[Mutation] = &[
    ("residual left out", |case| linears(case, |step| step.residual.take().is_some())),
    ("residual of out itself", |case| {
        linears(case, |step| step.residual.is_some() && set(&mut step.residual, Some(step.out)))
    }),
];

const STACKED: &[Mutation] = &[
    ("segments in another order", |case| {
        shapes(case, |shape| shape.segments.len() == 3 && exchange(&mut shape.segments, 1, 2))
    }),
    ("norm left out", |case| pres(case, |pre| pre.norm.take().is_some())),
];

const EXPERTS: &[Mutation] = &[
    ("one expert less", |case| {
        mixtures(case, |step| {
            if step.top_k > 1 {
                step.top_k -= 1;
                true
            } else {
                false
            }
        })
    }),
    ("weights summed otherwise", |case| {
        // All experts of all: nothing to renormalize.
        mixtures(case, |step| {
            step.renormalize = !step.renormalize;
            step.top_k < step.experts
        })
    }),
    ("relu", |case| {
        mixtures(case, |step| {
            step.act = Act::Relu;
            true
        })
    }),
    ("no residual", |case| mixtures(case, |step| step.residual.take().is_some())),
];

const GATED: &[Mutation] = &[
    ("gate and up exchanged", |case| {
        shapes(case, |shape| shape.segments.len() == 2 && exchange(&mut shape.segments, 0, 1))
    }),
    ("two tensors not interleaved", |case| {
        shapes(case, |shape| shape.segments.len() == 2 && set(&mut shape.arrangement, Arrangement::Stacked))
    }),
    ("one tensor not interleaved", |case| {
        shapes(case, |shape| shape.segments.len() == 1 && set(&mut shape.arrangement, Arrangement::Stacked))
    }),
];

const PRE: &[Mutation] = &[
    ("residual left out", |case| pres(case, |pre| pre.residual.take().is_some())),
    ("post-norm left out", |case| pres(case, |pre| pre.post.take().is_some())),
    ("norm left out", |case| pres(case, |pre| pre.norm.take().is_some())),
    ("post-norm and norm exchanged", |case| {
        pres(case, |pre| {
            let both = pre.post.is_some() && pre.norm.is_some();
            std::mem::swap(&mut pre.post, &mut pre.norm);
            both
        })
    }),
    ("emits the sum, not the normed", |case| {
        emits(case, |kind| replace(kind, EmitKind::Normed, EmitKind::Sum))
    }),
    ("emits the normed, not the sum", |case| {
        emits(case, |kind| replace(kind, EmitKind::Sum, EmitKind::Normed))
    }),
];

const ATTEND: &[Mutation] = &[
    ("scores a hundredth too large", |case| {
        attends(case, |step| update(&mut step.scale, |scale| scale * 1.01))
    }),
    ("sees what is to come", |case| attends(case, |step| set(&mut step.causal, false))),
    ("keys rounded to f16", |case| caches(case, |dtype| replace(dtype, KvType::F32, KvType::F16))),
    ("keys not rounded to f16", |case| caches(case, |dtype| replace(dtype, KvType::F16, KvType::F32))),
];

const ATTEND_VARIANTS: &[Mutation] = &[
    ("encoder made causal", |case| attends(case, |step| set(&mut step.causal, true))),
    ("key-value heads exchanged", |case| {
        let mut at = None;
        attends(case, |step| {
            at = (step.kv_heads >= 2).then_some((step.heads * step.head_dim, step.head_dim));
            at.is_some()
        });
        case.exchanged = at.map(|(first, len)| (first, first + len, len));
        at.is_some()
    }),
    ("query heads exchanged between groups", |case| {
        let mut at = None;
        attends(case, |step| {
            at = (step.kv_heads >= 2).then_some((step.heads - 1, step.head_dim));
            at.is_some()
        });
        case.exchanged = at.map(|(last, len)| (0, last * len, len));
        at.is_some()
    }),
    ("keys and values exchanged", |case| {
        let mut at = None;
        attends(case, |step| {
            at = Some((step.heads * step.head_dim, step.kv_heads * step.head_dim));
            true
        });
        case.exchanged = at.map(|(first, len)| (first, first + len, len));
        at.is_some()
    }),
    ("rope left out", |case| attends(case, |step| step.rope.take().is_some())),
    ("adjacent pairs as halves", |case| {
        ropes(case, |rope| replace(&mut rope.pairing, Pairing::Adjacent, Pairing::Half))
    }),
    ("halves as adjacent pairs", |case| {
        ropes(case, |rope| replace(&mut rope.pairing, Pairing::Half, Pairing::Adjacent))
    }),
    ("another rope base", |case| {
        tables(case, |table| any(&mut table.inv_freq, |freq| update(freq, |freq| freq.powf(1.01))))
    }),
    ("rope frequencies over the whole head", |case| {
        let mut partial = None;
        attends(case, |step| {
            partial = step.rope.map(|rope| (rope.dim, step.head_dim)).filter(|(dim, head)| dim < head);
            partial.is_some()
        });
        partial.is_some_and(|(dim, head_dim)| {
            let power = dim as f64 / head_dim as f64;
            tables(case, |table| any(&mut table.inv_freq, |freq| update(freq, |freq| freq.powf(power))))
        })
    }),
    ("rope magnitude left out", |case| tables(case, |table| set(&mut table.magnitude, 1.0))),
    ("norm of q left out", |case| attends(case, |step| step.q_norm.take().is_some())),
    ("norm of k left out", |case| attends(case, |step| step.k_norm.take().is_some())),
    ("norms of q and k exchanged", |case| {
        attends(case, |step| {
            std::mem::swap(&mut step.q_norm, &mut step.k_norm);
            step.q_norm != step.k_norm
        })
    }),
    ("soft cap left out", |case| attends(case, |step| step.softcap.take().is_some())),
    ("soft cap before the scale", |case| {
        attends(case, |step| {
            let scale = step.scale;
            step.softcap.as_mut().is_some_and(|cap| update(cap, |cap| cap * scale))
        })
    }),
    ("window left out", |case| attends(case, |step| step.window.take().is_some())),
    ("window one position wider", |case| {
        attends(case, |step| step.window.as_mut().is_some_and(|window| update(window, |window| window + 1)))
    }),
    ("window one position narrower", |case| {
        attends(case, |step| {
            step.window.as_mut().is_some_and(|window| update(window, |window| window.max(2) - 1))
        })
    }),
    ("q8 as f16", |case| caches(case, |dtype| replace(dtype, KvType::Q8, KvType::F16))),
    ("q8 as q4", |case| caches(case, |dtype| replace(dtype, KvType::Q8, KvType::Q4))),
    ("q4 as q8", |case| caches(case, |dtype| replace(dtype, KvType::Q4, KvType::Q8))),
];

const HEAD: &[Mutation] = &[
    ("scale left out", |case| heads(case, |step| set(&mut step.scale, 1.0))),
    ("soft cap left out", |case| heads(case, |step| step.softcap.take().is_some())),
    ("soft cap before the scale", |case| {
        heads(case, |step| {
            let scale = step.scale;
            step.softcap.as_mut().is_some_and(|cap| update(cap, |cap| cap * scale))
        })
    }),
    ("norm left out", |case| pres(case, |pre| pre.norm.take().is_some())),
    ("post-norm left out", |case| pres(case, |pre| pre.post.take().is_some())),
    ("residual left out", |case| pres(case, |pre| pre.residual.take().is_some())),
    ("bias left out", |case| {
        shapes(case, |shape| any(&mut shape.segments, |segment| segment.bias.take().is_some()))
    }),
    ("f16 weights as bf16", |case| {
        shapes(case, |shape| reformat(shape, |dtype| if dtype == DType::F16 { DType::Bf16 } else { dtype }))
    }),
    ("rows in ascending order", |case| {
        takes(case, |take| match take {
            Take::Logits(rows) | Take::Greedy(rows) => {
                let asked = rows.clone();
                rows.sort_unstable();
                *rows != asked
            }
            _ => false,
        })
    }),
    ("the first rows, not those named", |case| {
        takes(case, |take| match take {
            Take::Logits(rows) | Take::Greedy(rows) => {
                let first: Vec<u32> = (0..rows.len() as u32).collect();
                set(rows, first)
            }
            _ => false,
        })
    }),
];

const SAMPLE: &[Mutation] = &[
    // A bias that grows with the id by less than the steps between scores: the highest of equals wins.
    ("ties go to a higher id", |case| {
        shapes(case, |shape| {
            any(&mut shape.segments, |segment| {
                segment
                    .bias
                    .as_mut()
                    .is_some_and(|bias| replace(bias, "head.zero".into(), "head.ascending".into()))
            })
        })
    }),
    ("bias left out", |case| {
        shapes(case, |shape| {
            let biased = |bias: &mut String| bias == "head.bias";
            any(&mut shape.segments, |segment| {
                segment.bias.as_mut().is_some_and(biased) && segment.bias.take().is_some()
            })
        })
    }),
    ("greedy rows in reverse", |case| {
        takes(case, |take| match take {
            Take::Greedy(rows) if rows.len() > 1 => {
                rows.reverse();
                true
            }
            _ => false,
        })
    }),
    ("temperature left out of draws", |case| {
        draws(case, |params| params.temperature > 0.0 && set(&mut params.temperature, 1.0))
    }),
    ("top-k one too large", |case| {
        draws(case, |params| params.top_k > 0 && update(&mut params.top_k, |k| k + 1))
    }),
    ("top-p left out", |case| draws(case, |params| set(&mut params.top_p, 1.0))),
    ("penalty left out", |case| draws(case, |params| set(&mut params.repetition_penalty, 1.0))),
    ("upper half of the seed left out", |case| {
        draws(case, |params| update(&mut params.seed, |seed| seed & 0xffff_ffff))
    }),
    ("nothing is remembered as seen", |case| {
        takes(case, |take| match take {
            Take::Sample(draws) => any(draws, |(_, _, seen)| replace(seen, None, Some(Vec::new()))),
            _ => false,
        })
    }),
    ("what was seen is not begun anew", |case| {
        takes(case, |take| match take {
            Take::Sample(draws) => any(draws, |(_, _, seen)| seen.take().is_some()),
            _ => false,
        })
    }),
    ("table read one position late", |case| {
        embeds(case, |step| {
            step.positions.as_mut().is_some_and(|(_, first)| update(first, |first| first + 1))
        })
    }),
];

/// Changes the parameters of all draws.
fn draws(case: &mut Case, change: impl Fn(&mut SampleParams) -> bool) -> bool {
    takes(case, |take| match take {
        Take::Sample(draws) => any(draws, |(_, params, _)| change(params)),
        _ => false,
    })
}

/// The dtype with fewer digits that is as wide, or half as wide.
fn narrowed(dtype: DType) -> DType {
    if dtype == DType::F32 { DType::F16 } else { DType::Bf16 }
}

/// Changes the dtype of a dense layer.
fn reformat(shape: &mut crate::LinearShape, change: fn(DType) -> DType) -> bool {
    any(&mut shape.segments, |segment| match segment.format {
        Format::Dense(dtype) => set(&mut segment.format, Format::Dense(change(dtype))),
        Format::Quant(_) => false,
    })
}
