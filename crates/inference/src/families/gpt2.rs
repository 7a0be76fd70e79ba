//! GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners").
//!
//! ```text
//! x = wte[tokens] + wpe[positions]
//! each layer:  x += Wo · attend(c_attn(ln_1(x)))
//!              x += c_proj · gelu(c_fc · ln_2(x))
//! logits = wte · ln_f(x)
//! ```
//! Everything has biases, positions are learned, nothing rotates, and linear layers are `Conv1D`: stored
//! as `[inputs, outputs]`. They are turned before they are quantized, as transformers does.

use halfbyte_backend::{Act, Attend, Embed, Head, LinearStep, Norm, Pre, Reg, Step, WantId};
use halfbyte_checkpoint::ModelConfig;

use super::decoder::activation;
use super::draft::{Draft, Part};
use super::refuse;
use crate::{Blueprint, ModelError, Settings, Tensors};

/// The sizes and options of a GPT-2.
struct Gpt2 {
    hidden: usize,
    intermediate: usize,
    heads: usize,
    act: Act,
    eps: f32,
    /// Whether scores are divided by the root of the head's width.
    scaled: bool,
    /// Whether scores of layer `i` are divided by `i + 1` too.
    scaled_by_layer: bool,
}

/// The activations, `[rows, width]` each.
struct Registers {
    /// The residual stream.
    stream: Reg,
    /// q, then k, then v.
    qkv: Reg,
    attended: Reg,
    inner: Reg,
}

pub(super) fn blueprint(
    config: &ModelConfig,
    tensors: &dyn Tensors,
    settings: &Settings,
) -> Result<Blueprint, ModelError> {
    if config.bool_or("add_cross_attention", false)? {
        return Err(refuse(config, "add_cross_attention", "only the decoder alone is, which has it false"));
    }
    let hidden = config.usize("n_embd")?;
    let heads = config.usize("n_head")?;
    if !hidden.is_multiple_of(heads) {
        let what = format!("n_embd {hidden} over {heads} heads");
        return Err(refuse(config, what, "n_head must divide n_embd"));
    }
    let (vocab, positions) = (config.usize("vocab_size")?, config.usize_or("n_positions", 1024)?);
    let model = Gpt2 {
        hidden,
        intermediate: config.usize_or("n_inner", 4 * hidden)?,
        heads,
        act: activation(config, config.str_or("activation_function", "gelu_new")?)?,
        eps: config.epsilon_or("layer_norm_epsilon", 1e-5)? as f32,
        scaled: config.bool_or("scale_attn_weights", true)?,
        scaled_by_layer: config.bool_or("scale_attn_by_inverse_layer_idx", false)?,
    };
    let mut draft = Draft::new(config, tensors, settings, positions)?;
    // The first GPT-2 checkpoints name their tensors without the model in front.
    let prefix = if draft.has("transformer.wte.weight") { "transformer." } else { "" };
    let regs = Registers {
        stream: draft.register(hidden),
        qkv: draft.register(3 * hidden),
        attended: draft.register(hidden),
        inner: draft.register(model.intermediate),
    };

    let table = draft.embedding(&format!("{prefix}wte.weight"), [vocab, hidden])?;
    let learned = draft.embedding(&format!("{prefix}wpe.weight"), [positions, hidden])?;
    let positions = Some((learned, 0));
    let embed = Embed { table, scale: 1.0, positions, types: None, norm: None, out: regs.stream };
    draft.block(&format!("{prefix}wte"), vec![], vec![Step::Embed(embed)]);

    for layer in 0..config.usize("n_layer")? {
        let name = format!("{prefix}h.{layer}");
        let steps = model.layer(&mut draft, &regs, &name, layer)?;
        draft.block(&name, vec![regs.stream], steps);
    }

    let weight = match config.bool_or("tie_word_embeddings", true)? {
        true => table,
        false => draft.head("lm_head.weight", [vocab, hidden])?,
    };
    let pre = Pre::norm(draft.layer_norm(&format!("{prefix}ln_f"), hidden, model.eps)?);
    let head = Head { input: regs.stream, pre, weight, scale: 1.0, softcap: None };
    draft.block("lm_head", vec![regs.stream], vec![Step::Head(head)]);
    Ok(draft.finish(vocab, hidden))
}

impl Gpt2 {
    fn layer(
        &self,
        draft: &mut Draft<'_>,
        regs: &Registers,
        name: &str,
        layer: usize,
    ) -> Result<Vec<Step>, ModelError> {
        let head_dim = self.hidden / self.heads;
        let mut scale = if self.scaled { (head_dim as f64).powf(-0.5) } else { 1.0 };
        if self.scaled_by_layer {
            scale /= (layer + 1) as f64;
        }
        let conv = |module: &str, rows, cols| Part::new(name, module, rows, cols, true).transposed();
        let ln_1 = draft.layer_norm(&format!("{name}.ln_1"), self.hidden, self.eps)?;
        let c_attn = draft.linear(&conv("attn.c_attn", 3 * self.hidden, self.hidden))?;
        let cache = draft.kv(&format!("{name}.attn.kv"), self.heads, head_dim, None);
        let attn_proj = draft.linear(&conv("attn.c_proj", self.hidden, self.hidden))?;
        let ln_2 = draft.layer_norm(&format!("{name}.ln_2"), self.hidden, self.eps)?;
        let c_fc = draft.linear(&conv("mlp.c_fc", self.intermediate, self.hidden))?;
        let mlp_proj = draft.linear(&conv("mlp.c_proj", self.hidden, self.intermediate))?;
        Ok(vec![
            normed(regs.stream, ln_1, c_attn, Act::Identity, regs.qkv),
            Step::Attend(Attend {
                qkv: regs.qkv,
                cache: Some(cache),
                heads: self.heads,
                kv_heads: self.heads,
                head_dim,
                rope: None,
                q_norm: None,
                k_norm: None,
                scale: scale as f32,
                softcap: None,
                window: None,
                causal: true,
                out: regs.attended,
            }),
            added(regs.attended, attn_proj, regs.stream),
            normed(regs.stream, ln_2, c_fc, self.act, regs.inner),
            added(regs.inner, mlp_proj, regs.stream),
        ])
    }
}

/// `out = act(W norm(input) + b)`
fn normed(input: Reg, norm: Norm, weight: WantId, act: Act, out: Reg) -> Step {
    let pre = Pre::norm(norm);
    Step::Linear(LinearStep { input, pre, weight, act, gated: false, residual: None, out, at: 0 })
}

/// `stream += W input + b`
fn added(input: Reg, weight: WantId, stream: Reg) -> Step {
    Step::Linear(LinearStep {
        input,
        pre: Pre::default(),
        weight,
        act: Act::Identity,
        gated: false,
        residual: Some(stream),
        out: stream,
        at: 0,
    })
}
