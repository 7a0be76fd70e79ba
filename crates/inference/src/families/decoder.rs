//! The decoder that the families vary: what may differ between them, and the steps it becomes.
//!
//! ```text
//! x = embed(tokens) * embed_scale
//! each layer:  x += post(attend(qkv(norm(x))) · Wo)
//!              x += post(act(gate · norm(x)) * (up · norm(x)) · Wd)
//! logits = softcap(head · norm(x))
//! ```
//! Without post-norms a product adds to the residual stream as it is written. With them (Gemma) it is
//! left in a register of its own, and the next step's [`Pre`] norms it and adds it.

use halfbyte_backend::{
    Act, Attend, Embed, Emit, EmitKind, Head, LinearStep, Moe, Norm, Pairing, Pre, Reg, RopeUse, Step,
};
use halfbyte_checkpoint::{ModelConfig, RopeScaling};

use super::draft::{Draft, Part};
use super::layer_type::LayerType;
use super::refuse;
use crate::{Blueprint, ModelError, Settings, Tensors};

/// Names of a layer's norms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Norms {
    /// Before attention.
    pub attention: &'static str,
    /// After attention, before its sum (Gemma).
    pub post_attention: Option<&'static str>,
    /// Before the feed-forward part.
    pub mlp: &'static str,
    /// After it, before its sum (Gemma).
    pub post_mlp: Option<&'static str>,
}

/// A mixture of experts, as Mixtral and Qwen 3 have it.
#[derive(Debug, Clone)]
pub(super) struct Experts {
    /// Below a layer: the module that holds router and experts.
    pub module: &'static str,
    /// Below an expert: gate, up and down.
    pub names: [&'static str; 3],
    pub count: usize,
    /// How many a token takes.
    pub top_k: usize,
    /// Width of one expert.
    pub intermediate: usize,
    /// Whether the weights of the chosen are made to sum to 1.
    pub renormalize: bool,
    /// Layers that have the plain feed-forward part all the same.
    pub plain_layers: Vec<usize>,
}

/// What a family of decoders is. [`Decoder::read`] fills in what most of them share.
#[derive(Debug, Clone)]
pub(super) struct Decoder {
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub max_positions: usize,
    /// One for each layer.
    pub layers: Vec<LayerType>,
    pub act: Act,
    pub eps: f32,
    /// Added to the weights of all norms: 1 for Gemma.
    pub norm_offset: f32,
    pub norms: Norms,
    /// Whether embeddings are multiplied by `sqrt(hidden)`.
    pub scaled_embedding: bool,
    /// Whether the head is the embedding.
    pub tied: bool,
    pub qkv_bias: bool,
    pub o_bias: bool,
    pub mlp_bias: bool,
    /// Whether one tensor holds q, k and v (`qkv_proj`) and another gate and up (`gate_up_proj`).
    pub fused: bool,
    /// Whether each head's query and key are normed.
    pub qk_norm: bool,
    /// Experts in place of the feed-forward part, in layers where this says so.
    pub experts: Option<Experts>,
    /// Factor on attention scores.
    pub scale: f32,
    pub attention_softcap: Option<f32>,
    pub logit_softcap: Option<f32>,
    pub rope: RopeScaling,
    /// The rotary embedding of sliding layers, where it differs (Gemma 3).
    pub sliding_rope: Option<RopeScaling>,
}

impl Decoder {
    /// The plain decoder of a configuration: pre-norms, full attention, no biases, everything that the
    /// names common to most families say.
    pub(super) fn read(config: &ModelConfig) -> Result<Self, ModelError> {
        let hidden = config.usize("hidden_size")?;
        let heads = config.usize("num_attention_heads")?;
        let kv_heads = config.usize_or("num_key_value_heads", heads)?;
        if heads % kv_heads != 0 {
            let what = format!("{heads} attention heads over {kv_heads} key-value heads");
            return Err(refuse(config, what, "num_key_value_heads must divide num_attention_heads"));
        }
        let head_dim = match config.opt_usize("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden % heads == 0 => hidden / heads,
            None => {
                let what = format!("hidden_size {hidden} over {heads} attention heads");
                return Err(refuse(config, what, "give head_dim, or let one divide the other"));
            }
        };
        let act = config.str_or("hidden_act", "silu")?;
        Ok(Self {
            hidden,
            intermediate: config.usize("intermediate_size")?,
            heads,
            kv_heads,
            head_dim,
            vocab: config.usize("vocab_size")?,
            max_positions: config.usize_or("max_position_embeddings", 2048)?,
            layers: vec![LayerType::Full; config.usize("num_hidden_layers")?],
            act: activation(config, act)?,
            eps: config.epsilon_or("rms_norm_eps", 1e-6)? as f32,
            norm_offset: 0.0,
            norms: Norms {
                attention: "input_layernorm",
                post_attention: None,
                mlp: "post_attention_layernorm",
                post_mlp: None,
            },
            scaled_embedding: false,
            tied: config.bool_or("tie_word_embeddings", false)?,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            fused: false,
            qk_norm: false,
            experts: None,
            scale: (head_dim as f64).powf(-0.5) as f32,
            attention_softcap: None,
            logit_softcap: None,
            rope: config.rope()?,
            sliding_rope: None,
        })
    }

    /// The steps, and the memory that they want.
    pub(super) fn build(
        &self,
        config: &ModelConfig,
        tensors: &dyn Tensors,
        settings: &Settings,
    ) -> Result<Blueprint, ModelError> {
        let mut draft = Draft::new(config, tensors, settings, self.max_positions)?;
        let regs = Registers {
            stream: draft.register(self.hidden),
            // The stream after attention and a product's own register: only with post-norms.
            middle: self
                .norms
                .post_attention
                .map(|_| (draft.register(self.hidden), draft.register(self.hidden))),
            qkv: draft.register((self.heads + 2 * self.kv_heads) * self.head_dim),
            attended: draft.register(self.heads * self.head_dim),
            gated: draft.register(self.intermediate),
        };

        let table = draft.embedding("model.embed_tokens.weight", [self.vocab, self.hidden])?;
        let scale = if self.scaled_embedding {
            draft.rounded_as("model.embed_tokens.weight", (self.hidden as f64).sqrt() as f32)?
        } else {
            1.0
        };
        let embed = Embed { table, scale, positions: None, types: None, norm: None, out: regs.stream };
        draft.block("model.embed_tokens", vec![], vec![Step::Embed(embed)]);

        // What the product before left to be normed and added.
        let mut pending: Option<Norm> = None;
        for (index, layer) in self.layers.iter().enumerate() {
            let name = format!("model.layers.{index}");
            let inputs = regs.boundary(pending);
            let steps = self.layer(&mut draft, &regs, &name, (index, *layer), &mut pending)?;
            draft.block(&name, inputs, steps);
        }

        let weight =
            if self.tied { table } else { draft.head("lm_head.weight", [self.vocab, self.hidden])? };
        let inputs = regs.boundary(pending);
        let (input, mut pre) = regs.summed(pending);
        pre.norm = Some(self.norm(&mut draft, "model.norm", self.hidden)?);
        let head = Head { input, pre, weight, scale: 1.0, softcap: self.logit_softcap };
        draft.block("lm_head", inputs, vec![Step::Head(head)]);
        Ok(draft.finish(self.vocab, self.hidden))
    }

    fn layer(
        &self,
        draft: &mut Draft<'_>,
        regs: &Registers,
        name: &str,
        (index, layer): (usize, LayerType),
        pending: &mut Option<Norm>,
    ) -> Result<Vec<Step>, ModelError> {
        let mut steps = self.attention(draft, regs, name, layer, *pending)?;
        *pending = self.post(draft, name, self.norms.post_attention)?;
        match &self.experts {
            Some(experts) if !experts.plain_layers.contains(&index) => {
                steps.push(self.mixture(draft, regs, name, experts)?);
            }
            _ => steps.extend(self.mlp(draft, regs, name, *pending)?),
        }
        *pending = self.post(draft, name, self.norms.post_mlp)?;
        Ok(steps)
    }

    fn attention(
        &self,
        draft: &mut Draft<'_>,
        regs: &Registers,
        name: &str,
        layer: LayerType,
        pending: Option<Norm>,
    ) -> Result<Vec<Step>, ModelError> {
        let attn = format!("{name}.self_attn");
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let part = |module: &str, rows, cols, bias| Part::new(&attn, module, rows, cols, bias);
        let parts = if self.fused {
            vec![part("qkv_proj", q + 2 * kv, self.hidden, self.qkv_bias)]
        } else {
            vec![
                part("q_proj", q, self.hidden, self.qkv_bias),
                part("k_proj", kv, self.hidden, self.qkv_bias),
                part("v_proj", kv, self.hidden, self.qkv_bias),
            ]
        };
        let (input, mut pre) = regs.summed(pending);
        pre.norm = Some(self.norm(draft, &format!("{name}.{}", self.norms.attention), self.hidden)?);
        // The stream moves on to its other register, because no step writes what it reads.
        pre.emit = regs.middle.map(|(middle, _)| Emit { kind: EmitKind::Sum, to: middle });
        let mut steps = Vec::new();
        for (at, weight) in draft.stacked(&format!("{attn}.qkv"), &parts)? {
            let step = LinearStep {
                input,
                pre,
                weight,
                act: Act::Identity,
                gated: false,
                residual: None,
                out: regs.qkv,
                at,
            };
            steps.push(Step::Linear(step));
            // Once is enough.
            pre.emit = None;
        }

        let scaling = match (layer, &self.sliding_rope) {
            (LayerType::Sliding(_), Some(sliding)) => sliding,
            _ => &self.rope,
        };
        let table = draft.rope(scaling, self.head_dim)?;
        let qk_norm = |draft: &mut Draft<'_>, which: &str| match self.qk_norm {
            true => self.norm(draft, &format!("{attn}.{which}"), self.head_dim).map(Some),
            false => Ok(None),
        };
        let q_norm = qk_norm(draft, "q_norm")?;
        let k_norm = qk_norm(draft, "k_norm")?;
        steps.push(Step::Attend(Attend {
            qkv: regs.qkv,
            cache: Some(draft.kv(&format!("{attn}.kv"), self.kv_heads, self.head_dim, layer.window())),
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            rope: Some(RopeUse { table: table.id, dim: table.dim, pairing: Pairing::Half }),
            q_norm,
            k_norm,
            scale: self.scale,
            softcap: self.attention_softcap,
            window: layer.window(),
            causal: true,
            out: regs.attended,
        }));

        let o_proj = part("o_proj", self.hidden, q, self.o_bias);
        let weight = draft.linear(&o_proj)?;
        steps.push(regs.product(regs.attended, weight));
        Ok(steps)
    }

    fn mlp(
        &self,
        draft: &mut Draft<'_>,
        regs: &Registers,
        name: &str,
        pending: Option<Norm>,
    ) -> Result<Vec<Step>, ModelError> {
        let mlp = format!("{name}.mlp");
        let part = |module: &str, rows, cols| Part::new(&mlp, module, rows, cols, self.mlp_bias);
        let parts = if self.fused {
            vec![part("gate_up_proj", 2 * self.intermediate, self.hidden)]
        } else {
            vec![
                part("gate_proj", self.intermediate, self.hidden),
                part("up_proj", self.intermediate, self.hidden),
            ]
        };
        let (input, mut pre) = match (regs.middle, pending) {
            (Some((middle, product)), Some(_)) => {
                (product, Pre { residual: Some(middle), post: pending, ..Pre::default() })
            }
            _ => (regs.stream, Pre::default()),
        };
        pre.norm = Some(self.norm(draft, &format!("{name}.{}", self.norms.mlp), self.hidden)?);
        pre.emit = regs.middle.map(|_| Emit { kind: EmitKind::Sum, to: regs.stream });
        let gate_up = LinearStep {
            input,
            pre,
            weight: draft.interleaved(&format!("{mlp}.gate_up"), &parts)?,
            act: self.act,
            gated: true,
            residual: None,
            out: regs.gated,
            at: 0,
        };
        let down = draft.linear(&part("down_proj", self.hidden, self.intermediate))?;
        Ok(vec![Step::Linear(gate_up), regs.product(regs.gated, down)])
    }

    /// The experts of a layer, whose products add to the stream: no family with them has post-norms.
    fn mixture(
        &self,
        draft: &mut Draft<'_>,
        regs: &Registers,
        name: &str,
        experts: &Experts,
    ) -> Result<Step, ModelError> {
        let module = format!("{name}.{}", experts.module);
        let norm = self.norm(draft, &format!("{name}.{}", self.norms.mlp), self.hidden)?;
        let router = draft.router(&Part::new(&module, "gate", experts.count, self.hidden, false))?;
        let [gate, up, down] = experts.names;
        let part = |expert: usize, which: &str, rows, cols| {
            Part::new(&format!("{module}.experts.{expert}"), which, rows, cols, false)
        };
        // All of one kind, then all of the other: a step names the first of each run.
        let mut gate_ups = Vec::with_capacity(experts.count);
        for expert in 0..experts.count {
            let parts = [gate, up].map(|which| part(expert, which, experts.intermediate, self.hidden));
            gate_ups.push(draft.interleaved(&format!("{module}.experts.{expert}.gate_up"), &parts)?);
        }
        let mut downs = Vec::with_capacity(experts.count);
        for expert in 0..experts.count {
            downs.push(draft.linear(&part(expert, down, self.hidden, experts.intermediate))?);
        }
        Ok(Step::Moe(Moe {
            input: regs.stream,
            pre: Pre::norm(norm),
            router,
            experts: experts.count,
            top_k: experts.top_k,
            renormalize: experts.renormalize,
            gate_up: gate_ups[0],
            down: downs[0],
            act: self.act,
            residual: Some(regs.stream),
            out: regs.stream,
        }))
    }

    fn norm(&self, draft: &mut Draft<'_>, name: &str, len: usize) -> Result<Norm, ModelError> {
        draft.rms_norm(name, len, self.eps, self.norm_offset)
    }

    fn post(
        &self,
        draft: &mut Draft<'_>,
        layer: &str,
        name: Option<&str>,
    ) -> Result<Option<Norm>, ModelError> {
        name.map(|name| self.norm(draft, &format!("{layer}.{name}"), self.hidden)).transpose()
    }
}

/// The activations, `[rows, width]` each.
struct Registers {
    /// The residual stream between layers, `hidden`.
    stream: Reg,
    /// With post-norms: the stream between a layer's two parts, and a product that awaits its norm.
    middle: Option<(Reg, Reg)>,
    /// `(heads + 2 kv_heads) * head_dim`
    qkv: Reg,
    /// `heads * head_dim`
    attended: Reg,
    /// `intermediate`
    gated: Reg,
}

impl Registers {
    /// What a block takes from the one before it.
    fn boundary(&self, pending: Option<Norm>) -> Vec<Reg> {
        match (self.middle, pending) {
            (Some((_, product)), Some(_)) => vec![self.stream, product],
            _ => vec![self.stream],
        }
    }

    /// The stream with the pending product normed and added: the input of a step, and its [`Pre`].
    fn summed(&self, pending: Option<Norm>) -> (Reg, Pre) {
        match (self.middle, pending) {
            (Some((_, product)), Some(_)) => {
                (product, Pre { residual: Some(self.stream), post: pending, ..Pre::default() })
            }
            _ => (self.stream, Pre::default()),
        }
    }

    /// A product that goes back to the stream: added as it is written, or left to be normed.
    fn product(&self, input: Reg, weight: halfbyte_backend::WantId) -> Step {
        let (residual, out) = match self.middle {
            None => (Some(self.stream), self.stream),
            Some((_, product)) => (None, product),
        };
        let pre = Pre::default();
        Step::Linear(LinearStep {
            input,
            pre,
            weight,
            act: Act::Identity,
            gated: false,
            residual,
            out,
            at: 0,
        })
    }
}

/// An activation function by the name that configurations give it.
pub(super) fn activation(config: &ModelConfig, name: &str) -> Result<Act, ModelError> {
    Ok(match name {
        "silu" | "swish" => Act::Silu,
        "gelu" => Act::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Act::GeluTanh,
        "relu" => Act::Relu,
        other => {
            return Err(refuse(
                config,
                format!("activation \"{}\"", halfbyte_checkpoint::error::shown(other)),
                "known are silu, gelu, gelu_new, gelu_pytorch_tanh and relu",
            ));
        }
    })
}
