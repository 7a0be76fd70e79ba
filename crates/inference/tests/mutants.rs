//! A blueprint that is wrong in one thing is noticed: each mutant is far from some model's reference.

mod fixture;

use fixture::{Fixture, WHOLE, distance, exact};
use halfbyte_backend::{
    Act, Attend, Backend, Canonical, Embed, EmitKind, Fut, Kind, LinearStep, Moe, NormKind, Pairing, Segment,
    Step, WeightSource,
};
use halfbyte_cpu::CpuBackend;
use halfbyte_inference::{Blueprint, CheckpointSource, Encoded, Engine, Task, classify, logits};
use pollster::block_on;
use std::rc::Rc;

fn steps(blueprint: &mut Blueprint, mut change: impl FnMut(&mut Step)) {
    blueprint.blocks.iter_mut().flat_map(|block| &mut block.steps).for_each(&mut change);
}

fn attends(blueprint: &mut Blueprint, mut change: impl FnMut(&mut Attend)) {
    steps(blueprint, |step| {
        if let Step::Attend(attend) = step {
            change(attend);
        }
    });
}

fn linears(blueprint: &mut Blueprint, mut change: impl FnMut(&mut LinearStep)) {
    steps(blueprint, |step| {
        if let Step::Linear(linear) = step {
            change(linear);
        }
    });
}

fn biases(blueprint: &mut Blueprint, module: &str) {
    for want in &mut blueprint.wants {
        if let Kind::Linear(shape) = &mut want.kind {
            let mut matching = shape.segments.iter_mut().filter(|segment| segment.tensor.contains(module));
            if let Some(segment) = matching.next() {
                segment.bias = None;
            }
        }
    }
}

fn ropes(blueprint: &mut Blueprint, mut change: impl FnMut(&mut Vec<f64>)) {
    for want in &mut blueprint.wants {
        if let Kind::Rope(shape) = &mut want.kind {
            change(&mut shape.inv_freq);
        }
    }
}

/// Swaps two segments of each layer that has both.
fn swap(blueprint: &mut Blueprint, first: &str, second: &str) {
    for want in &mut blueprint.wants {
        if let Kind::Linear(shape) = &mut want.kind {
            let at = |name: &str| shape.segments.iter().position(|segment| segment.tensor.contains(name));
            if let (Some(first), Some(second)) = (at(first), at(second)) {
                shape.segments.swap(first, second);
            }
        }
    }
}

type Mutant = (&'static str, &'static str, fn(&mut Blueprint));

const MUTANTS: &[Mutant] = &[
    ("epsilon", "llama_mha", |blueprint| {
        linears(blueprint, |linear| {
            if let Some(norm) = &mut linear.pre.norm {
                norm.eps = 1e-2;
            }
        });
    }),
    ("rope base", "llama_mha", |blueprint| {
        ropes(blueprint, |frequencies| {
            let n = frequencies.len() as f64;
            *frequencies = (0..frequencies.len()).map(|i| 20_000f64.powf(-(i as f64) / n)).collect();
        });
    }),
    ("linear scaling left out", "llama_bias_linearrope", |blueprint| {
        ropes(blueprint, |frequencies| frequencies.iter_mut().for_each(|frequency| *frequency *= 2.0));
    }),
    ("llama3 scaling left out", "llama_gqa_tied_llama3rope", |blueprint| {
        ropes(blueprint, |frequencies| {
            let n = frequencies.len();
            *frequencies = (0..n).map(|i| frequencies[1].powf(i as f64)).collect();
        });
    }),
    ("pairing", "llama_mha", |blueprint| {
        attends(blueprint, |attend| {
            if let Some(rope) = &mut attend.rope {
                rope.pairing = Pairing::Adjacent;
            }
        });
    }),
    ("no rope", "llama_mha", |blueprint| attends(blueprint, |attend| attend.rope = None)),
    ("k and v swapped", "llama_gqa_tied_llama3rope", |blueprint| swap(blueprint, "k_proj", "v_proj")),
    ("gate and up swapped", "llama_mha", |blueprint| swap(blueprint, "gate_proj", "up_proj")),
    ("score scale", "llama_mha", |blueprint| attends(blueprint, |attend| attend.scale *= 1.01)),
    ("not causal", "llama_mha", |blueprint| attends(blueprint, |attend| attend.causal = false)),
    ("window one less", "mistral_sw8", |blueprint| {
        attends(blueprint, |attend| attend.window = attend.window.map(|window| window - 1));
    }),
    ("no window", "mistral_sw8", |blueprint| attends(blueprint, |attend| attend.window = None)),
    ("q bias missing", "qwen2_bias", |blueprint| biases(blueprint, "q_proj")),
    ("o bias missing", "llama_bias_linearrope", |blueprint| biases(blueprint, "o_proj")),
    ("up bias missing", "llama_bias_linearrope", |blueprint| biases(blueprint, "up_proj")),
    ("down bias missing", "llama_bias_linearrope", |blueprint| biases(blueprint, "down_proj")),
    ("k norm missing", "qwen3_qknorm", |blueprint| attends(blueprint, |attend| attend.k_norm = None)),
    ("q and k norms swapped", "gemma3_text", |blueprint| {
        attends(blueprint, |attend| std::mem::swap(&mut attend.q_norm, &mut attend.k_norm));
    }),
    ("activation", "llama_mha", |blueprint| {
        linears(blueprint, |linear| {
            if linear.gated {
                linear.act = Act::Gelu;
            }
        });
    }),
    ("exact for tanh gelu", "gemma2_softcap", |blueprint| {
        linears(blueprint, |linear| {
            if linear.gated {
                linear.act = Act::Gelu;
            }
        });
    }),
    ("post-norm missing", "gemma2_softcap", |blueprint| {
        linears(blueprint, |linear| linear.pre.post = None);
    }),
    ("norm offset", "gemma2_softcap", |blueprint| {
        linears(blueprint, |linear| {
            if let Some(norm) = &mut linear.pre.norm {
                norm.offset = 0.0;
            }
        });
    }),
    ("score cap", "gemma2_softcap", |blueprint| attends(blueprint, |attend| attend.softcap = None)),
    ("logit cap", "gemma2_softcap", |blueprint| {
        steps(blueprint, |step| {
            if let Step::Head(head) = step {
                head.softcap = None;
            }
        });
    }),
    ("embedding scale", "gemma3_text", |blueprint| {
        steps(blueprint, |step| {
            if let Step::Embed(embed) = step {
                embed.scale = 1.0;
            }
        });
    }),
    ("one rope for all", "gemma3_text", |blueprint| {
        let mut first = None;
        attends(blueprint, |attend| {
            if let Some(rope) = &mut attend.rope {
                rope.table = *first.get_or_insert(rope.table);
            }
        });
    }),
];

/// Changes an encoder's embedding.
fn embeds(blueprint: &mut Blueprint, mut change: impl FnMut(&mut Embed)) {
    steps(blueprint, |step| {
        if let Step::Embed(embed) = step {
            change(embed);
        }
    });
}

/// Changes the mixtures of experts.
fn experts(blueprint: &mut Blueprint, mut change: impl FnMut(&mut Moe)) {
    steps(blueprint, |step| {
        if let Step::Moe(moe) = step {
            change(moe);
        }
    });
}

fn activations(blueprint: &mut Blueprint, from: Act, to: Act) {
    linears(blueprint, |linear| {
        if linear.act == from {
            linear.act = to;
        }
    });
}

const NEWER_MUTANTS: &[Mutant] = &[
    ("erf for tanh gelu", "gpt2", |blueprint| activations(blueprint, Act::GeluTanh, Act::Gelu)),
    ("positions one on", "gpt2", |blueprint| {
        embeds(blueprint, |embed| embed.positions = embed.positions.map(|(table, first)| (table, first + 1)));
    }),
    ("not transposed", "gpt2", |blueprint| {
        // The square ones: others would not load.
        for want in &mut blueprint.wants {
            if let Kind::Linear(shape) = &mut want.kind {
                for segment in shape.segments.iter_mut().filter(|segment| segment.rows == segment.cols) {
                    segment.transposed = false;
                }
            }
        }
    }),
    ("RMS for LayerNorm", "gpt2", |blueprint| {
        linears(blueprint, |linear| {
            if let Some(norm) = &mut linear.pre.norm {
                norm.kind = NormKind::Rms;
            }
        });
    }),
    ("one expert less", "qwen3_moe", |blueprint| experts(blueprint, |moe| moe.top_k -= 1)),
    ("one expert more", "mixtral_moe", |blueprint| experts(blueprint, |moe| moe.top_k += 1)),
    ("weights as they are", "mixtral_moe", |blueprint| experts(blueprint, |moe| moe.renormalize = false)),
    ("weights as they are", "qwen3_moe", |blueprint| experts(blueprint, |moe| moe.renormalize = false)),
    ("expert order", "mixtral_moe", |blueprint| {
        let name = |expert: usize| format!("experts.{expert}.");
        for want in &mut blueprint.wants {
            if let Kind::Linear(shape) = &mut want.kind {
                for segment in &mut shape.segments {
                    let other = if segment.tensor.contains(&name(1)) { 2 } else { 1 };
                    segment.tensor = segment.tensor.replace(&name(3 - other), &name(other));
                }
            }
        }
    }),
    ("gate and up of experts swapped", "qwen3_moe", |blueprint| swap(blueprint, "gate_proj", "up_proj")),
    ("tanh for erf gelu", "bert_cls", |blueprint| activations(blueprint, Act::Gelu, Act::GeluTanh)),
    ("tanh for erf gelu", "distilbert_cls", |blueprint| activations(blueprint, Act::Gelu, Act::GeluTanh)),
    ("epsilon", "bert_cls", |blueprint| {
        linears(blueprint, |linear| {
            if let Some(norm) = &mut linear.pre.norm {
                norm.eps = 1e-3;
            }
        });
    }),
    ("epsilon of the embedding", "distilbert_cls", |blueprint| {
        embeds(blueprint, |embed| {
            if let Some(norm) = &mut embed.norm {
                norm.eps = 1e-3;
            }
        });
    }),
    ("positions from 0", "roberta_cls", |blueprint| {
        embeds(blueprint, |embed| embed.positions = embed.positions.map(|(table, _)| (table, 0)));
    }),
    ("positions one on", "roberta_cls", |blueprint| {
        embeds(blueprint, |embed| embed.positions = embed.positions.map(|(table, _)| (table, 3)));
    }),
    ("no token types", "bert_cls", |blueprint| embeds(blueprint, |embed| embed.types = None)),
    ("no norm of the embedding", "roberta_cls", |blueprint| embeds(blueprint, |embed| embed.norm = None)),
    ("pooler without tanh", "bert_cls", |blueprint| activations(blueprint, Act::Tanh, Act::Identity)),
    ("dense without tanh", "roberta_cls", |blueprint| activations(blueprint, Act::Tanh, Act::Identity)),
    ("tanh for relu", "distilbert_cls", |blueprint| activations(blueprint, Act::Relu, Act::Tanh)),
    ("causal", "bert_cls", |blueprint| attends(blueprint, |attend| attend.causal = true)),
    ("score scale", "roberta_cls", |blueprint| attends(blueprint, |attend| attend.scale *= 1.01)),
    ("k and v swapped", "bert_cls", |blueprint| swap(blueprint, "key", "value")),
    ("q bias missing", "distilbert_cls", |blueprint| biases(blueprint, "q_lin")),
    ("classifier bias missing", "bert_cls", |blueprint| biases(blueprint, "classifier")),
    ("the sum for the normed stream", "bert_cls", |blueprint| {
        linears(blueprint, |linear| {
            if let Some(emit) = &mut linear.pre.emit {
                emit.kind = EmitKind::Sum;
            }
        });
    }),
    ("last norm missing", "distilbert_cls", |blueprint| {
        let last = blueprint.blocks.len() - 1;
        if let Step::Linear(linear) = &mut blueprint.blocks[last].steps[0] {
            linear.pre.norm = None;
        }
    }),
];

/// The reference's texts, padding left out.
fn texts(fixture: &Fixture) -> Vec<Encoded> {
    let (ids, mask) = (fixture.ids("input_ids"), fixture.ids("attention_mask"));
    let types =
        if fixture.has("token_type_ids") { fixture.ids("token_type_ids") } else { vec![0; ids.len()] };
    let rows = ids.chunks(14).zip(types.chunks(14)).zip(mask.chunks(14));
    rows.map(|((ids, types), mask)| {
        let kept = mask.iter().filter(|&&one| one == 1).count();
        Encoded { ids: ids[..kept].to_vec(), types: types[..kept].to_vec() }
    })
    .collect()
}

fn distance_of(model: &str, mutate: fn(&mut Blueprint)) -> f64 {
    let fixture = Fixture::open(&format!("models/{model}"));
    let mut blueprint = fixture.blueprint(&exact(None));
    let before = blueprint.clone();
    mutate(&mut blueprint);
    assert!(blueprint != before || std::ptr::fn_addr_eq(mutate, UNCHANGED), "nothing to change in {model}");
    let mut engine = fixture.load(blueprint, WHOLE);
    let found = match engine.blueprint().task {
        Task::Generate => block_on(logits(&mut engine, 0, &fixture.input())).unwrap(),
        _ => block_on(classify(&mut engine, &texts(&fixture))).unwrap().concat(),
    };
    distance(&found, &fixture.floats("logits"))
}

const UNCHANGED: fn(&mut Blueprint) = |_| {};

#[test]
fn every_mutant_is_noticed() {
    for &(name, model, mutate) in MUTANTS.iter().chain(NEWER_MUTANTS) {
        let distance = distance_of(model, mutate);
        println!("{name} in {model}: {distance:.1e}");
        // The families' tests allow 2e-5.
        assert!(distance > 5e-5, "{name} in {model} makes a difference of {distance:e} only");
    }
}

/// Permutes the query heads of a dense model: head `h` becomes what head `order[h]` was.
struct Reordered<'a> {
    source: CheckpointSource<'a>,
    order: Vec<usize>,
}

impl WeightSource for Reordered<'_> {
    fn segment<'a>(&'a self, segment: &'a Segment) -> Fut<'a, Canonical<'a>> {
        Box::pin(async move {
            let canonical = self.source.segment(segment).await?;
            let Canonical::Dense { dtype, bytes } = &canonical else { panic!("a dense model is needed") };
            let (size, heads) = (dtype.size() as usize, self.order.len());
            // q's heads are blocks of rows, o's are parts of every row.
            let (block, run) = if segment.tensor.contains("q_proj") {
                let run = segment.rows / heads * segment.cols * size;
                (bytes.len(), run)
            } else if segment.tensor.contains("o_proj") {
                (segment.cols * size, segment.cols / heads * size)
            } else {
                return Ok(canonical);
            };
            let reorder = |block: &[u8]| -> Vec<u8> {
                self.order.iter().flat_map(|&head| block[head * run..][..run].to_vec()).collect()
            };
            let bytes: Vec<u8> = bytes.chunks(block).flat_map(reorder).collect();
            Ok(Canonical::Dense { dtype: *dtype, bytes: bytes.into() })
        })
    }

    fn vector<'a>(&'a self, name: &'a str, len: usize) -> Fut<'a, Vec<f32>> {
        self.source.vector(name, len)
    }
}

/// Query head `h` reads key-value head `h / group`. Heads in the order in which `h % kv_heads` would read
/// them give other logits; heads in another order within their group give the same.
#[test]
fn a_wrong_head_mapping_is_noticed() {
    let fixture = Fixture::open("models/llama_gqa_tied_llama3rope");
    let heads = fixture.checkpoint.config.usize("num_attention_heads").unwrap();
    let kv_heads = fixture.checkpoint.config.usize("num_key_value_heads").unwrap();
    let group = heads / kv_heads;
    assert!(group > 1 && kv_heads > 1);
    let distance_of = |order: Vec<usize>| {
        let blueprint = fixture.blueprint(&exact(None));
        let backend: Rc<dyn Backend> = Rc::new(CpuBackend::scalar());
        let placement = vec![(backend, 0..blueprint.blocks.len())];
        let source = Reordered { source: CheckpointSource::new(&fixture.checkpoint), order };
        let mut engine = block_on(Engine::load(blueprint, placement, WHOLE, &source, &mut |_| {})).unwrap();
        let found = block_on(logits(&mut engine, 0, &fixture.input())).unwrap();
        distance(&found, &fixture.floats("logits"))
    };
    let within = (0..heads).map(|head| head / group * group + (group - 1 - head % group)).collect();
    assert!(distance_of(within) < 2e-5);
    let across = (0..heads).map(|head| head % group * kv_heads + head / group).collect();
    assert!(distance_of(across) > 1e-2);
}
