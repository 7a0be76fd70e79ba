//! The encoder that BERT and its relatives vary: what differs between them, and the steps it becomes.
//!
//! ```text
//! x = norm(embed(tokens) + positions + types)
//! each layer:  x = norm(x + Wo · attend(qkv(x)))
//!              x = norm(x + Wd · act(Wu · x))
//! classifier:  logits = W · act(dense · x)      of each text's first row
//! tokens:      logits = W · x                   of every row
//! ```
//! Rows see all rows of their own text and of no other, so texts of different lengths go together in one
//! submission and nothing is padded. A layer leaves its sum; whoever reads it next norms it and keeps the
//! normed value, which is the residual stream of post-norm models.

use halfbyte_backend::{Act, Attend, Embed, Emit, EmitKind, Head, LinearStep, Norm, Pre, Reg, Step, WantId};
use halfbyte_checkpoint::ModelConfig;

use super::draft::{Draft, Part, Sizes};
use super::refuse;
use crate::{Blueprint, ModelError, Settings, Task, Tensors};

/// Names of a model's modules, below its prefix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    /// Before a layer's number.
    pub layer: &'static str,
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    /// The product after attention, and the norm of its sum.
    pub attention: &'static str,
    pub attention_norm: &'static str,
    /// The feed-forward part, and the norm of its sum.
    pub up: &'static str,
    pub down: &'static str,
    pub norm: &'static str,
}

/// A layer between the encoder and what is asked of it, by its whole path.
#[derive(Debug, Clone)]
pub(super) struct Dense {
    pub module: String,
    pub act: Act,
}

/// What a family of encoders is.
#[derive(Debug, Clone)]
pub(super) struct Encoder {
    /// `bert.`, or empty where a checkpoint holds the encoder alone.
    pub prefix: String,
    pub names: Names,
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub layers: usize,
    pub vocab: usize,
    /// Rows of the table of positions.
    pub positions: usize,
    /// The first position's row.
    pub first_position: u32,
    /// Rows of the table of token types; 0 if there is none.
    pub types: usize,
    pub act: Act,
    pub eps: f32,
    /// Before a sequence classifier.
    pub dense: Dense,
    /// A sequence classifier's last layer.
    pub classifier: String,
    /// What pools a text for embeddings, if the family has it. A checkpoint may lack it.
    pub pooler: Option<Dense>,
}

/// The activations, `[rows, width]` each.
struct Registers {
    /// The normed stream.
    stream: Reg,
    /// The stream and a product, not normed yet.
    sum: Reg,
    qkv: Reg,
    attended: Reg,
    inner: Reg,
}

/// The prefix of a checkpoint's tensors: `name.`, or nothing if it holds the encoder alone.
pub(super) fn prefix(tensors: &dyn Tensors, name: &str) -> String {
    let prefixed = format!("{name}.");
    match tensors.find(&format!("{prefixed}embeddings.word_embeddings.weight")) {
        Some(_) => prefixed,
        None => String::new(),
    }
}

impl Encoder {
    /// The steps for `task`, and the memory that they want.
    pub(super) fn build(
        &self,
        config: &ModelConfig,
        tensors: &dyn Tensors,
        settings: &Settings,
        task: Task,
    ) -> Result<Blueprint, ModelError> {
        self.check(config)?;
        let longest = self.positions - self.first_position as usize;
        let mut draft = Draft::new(config, tensors, settings, longest)?;
        let regs = Registers {
            stream: draft.register(self.hidden),
            sum: draft.register(self.hidden),
            qkv: draft.register(3 * self.hidden),
            attended: draft.register(self.hidden),
            inner: draft.register(self.intermediate),
        };
        let positions = self.embeddings(&mut draft, &regs)?;
        let mut pending = None;
        for index in 0..self.layers {
            let name = format!("{}{}.{index}", self.prefix, self.names.layer);
            let steps = self.layer(&mut draft, &regs, &name, pending)?;
            draft.block(&name, vec![if index == 0 { regs.stream } else { regs.sum }], steps);
            pending =
                Some(draft.layer_norm(&format!("{name}.{}", self.names.norm), self.hidden, self.eps)?);
        }
        let pre = Pre { norm: pending, ..Pre::default() };
        let last = Last { pre, positions };
        self.last(draft, config, &regs, &last, task)
    }

    fn check(&self, config: &ModelConfig) -> Result<(), ModelError> {
        if !self.hidden.is_multiple_of(self.heads) {
            let what = format!("hidden size {} over {} heads", self.hidden, self.heads);
            return Err(refuse(config, what, "the heads must divide it"));
        }
        if self.positions <= self.first_position as usize {
            let what = format!("{} positions, the first at {}", self.positions, self.first_position);
            return Err(refuse(config, what, "max_position_embeddings must be more"));
        }
        Ok(())
    }

    /// The embedding's block; returns the table of positions.
    fn embeddings(&self, draft: &mut Draft<'_>, regs: &Registers) -> Result<WantId, ModelError> {
        let name = format!("{}embeddings", self.prefix);
        let mut table = |which: &str, rows: usize| {
            draft.embedding(&format!("{name}.{which}_embeddings.weight"), [rows, self.hidden])
        };
        let words = table("word", self.vocab)?;
        let positions = table("position", self.positions)?;
        let types = if self.types > 0 { Some(table("token_type", self.types)?) } else { None };
        let embed = Embed {
            table: words,
            scale: 1.0,
            positions: Some((positions, self.first_position)),
            types,
            norm: Some(draft.layer_norm(&format!("{name}.LayerNorm"), self.hidden, self.eps)?),
            out: regs.stream,
        };
        draft.block(&name, vec![], vec![Step::Embed(embed)]);
        Ok(positions)
    }

    /// One layer. `pending` is the norm that the layer before left to be done.
    fn layer(
        &self,
        draft: &mut Draft<'_>,
        regs: &Registers,
        name: &str,
        pending: Option<Norm>,
    ) -> Result<Vec<Step>, ModelError> {
        let Names { query, key, value, attention, attention_norm, up, down, .. } = self.names;
        let part = |module: &str, rows, cols| Part::new(name, module, rows, cols, true);
        let square = |module: &str| part(module, self.hidden, self.hidden);
        let (input, mut pre) = match pending {
            None => (regs.stream, Pre::default()),
            Some(norm) => (regs.sum, kept(norm, regs.stream)),
        };
        let mut steps = Vec::new();
        let parts = [square(query), square(key), square(value)];
        for (at, weight) in draft.stacked(&format!("{name}.qkv"), &parts)? {
            let (act, residual, out) = (Act::Identity, None, regs.qkv);
            steps.push(Step::Linear(LinearStep { input, pre, weight, act, gated: false, residual, out, at }));
            // Once is enough.
            pre.emit = None;
        }
        steps.push(Step::Attend(self.attend(regs)));
        let output = draft.linear(&square(attention))?;
        steps.push(product(regs.attended, Pre::default(), output, Some(regs.stream), regs.sum));

        let norm = draft.layer_norm(&format!("{name}.{attention_norm}"), self.hidden, self.eps)?;
        let weight = draft.linear(&part(up, self.intermediate, self.hidden))?;
        let pre = kept(norm, regs.stream);
        let (act, residual, out) = (self.act, None, regs.inner);
        let (input, gated, at) = (regs.sum, false, 0);
        steps.push(Step::Linear(LinearStep { input, pre, weight, act, gated, residual, out, at }));
        let weight = draft.linear(&part(down, self.hidden, self.intermediate))?;
        steps.push(product(regs.inner, Pre::default(), weight, Some(regs.stream), regs.sum));
        Ok(steps)
    }

    fn attend(&self, regs: &Registers) -> Attend {
        let head_dim = self.hidden / self.heads;
        Attend {
            qkv: regs.qkv,
            cache: None,
            heads: self.heads,
            kv_heads: self.heads,
            head_dim,
            rope: None,
            q_norm: None,
            k_norm: None,
            scale: (head_dim as f64).powf(-0.5) as f32,
            softcap: None,
            window: None,
            causal: false,
            out: regs.attended,
        }
    }

    /// The block after the layers: a classifier, or what leaves the hidden states.
    fn last(
        &self,
        mut draft: Draft<'_>,
        config: &ModelConfig,
        regs: &Registers,
        last: &Last,
        task: Task,
    ) -> Result<Blueprint, ModelError> {
        let mut sizes = Sizes { vocab: self.vocab, hidden: self.hidden, logits: 0 };
        let mut steps = Vec::new();
        let mut outputs = Vec::new();
        let dense = match task {
            Task::ClassifySequence => Some(&self.dense),
            Task::ClassifyTokens => None,
            _ => self.pooler.as_ref().filter(|pooler| draft.has(&format!("{}.weight", pooler.module))),
        };
        let mut pre = last.pre;
        if task == Task::Embed {
            pre.emit = Some(Emit { kind: EmitKind::Normed, to: regs.stream });
            outputs.push(regs.stream);
        }
        let (mut input, mut head_pre) = (regs.sum, pre);
        if let Some(dense) = dense {
            let pooled = draft.register(self.hidden);
            let weight = draft.head_linear(&Part::head(&dense.module, self.hidden, self.hidden))?;
            let (act, residual, out) = (dense.act, None, pooled);
            steps.push(Step::Linear(LinearStep {
                input,
                pre,
                weight,
                act,
                gated: false,
                residual,
                out,
                at: 0,
            }));
            (input, head_pre) = (pooled, Pre::default());
            if task == Task::Embed {
                outputs.push(pooled);
            }
        }
        let weight = match task {
            Task::Embed if dense.is_some() => None,
            // A head that nobody asks for logits: it norms the last sum and leaves it. Any matrix of the
            // right width will do, so it is one that is there already.
            Task::Embed => Some(last.positions),
            _ => {
                sizes.logits = config.labels()?.len();
                let module = if task == Task::ClassifyTokens { "classifier" } else { &self.classifier };
                Some(draft.head_linear(&Part::head(module, sizes.logits, self.hidden))?)
            }
        };
        if let Some(weight) = weight {
            steps.push(Step::Head(Head { input, pre: head_pre, weight, scale: 1.0, softcap: None }));
        }
        let name = if task == Task::Embed { "pooler" } else { "classifier" };
        draft.block(name, vec![regs.sum], steps);
        Ok(draft.finish_as(task, sizes, outputs))
    }
}

/// What the last block starts from.
struct Last {
    /// The last layer's norm.
    pre: Pre,
    /// The table of positions.
    positions: WantId,
}

/// Norms a sum and keeps the normed value in the stream.
fn kept(norm: Norm, stream: Reg) -> Pre {
    Pre { norm: Some(norm), emit: Some(Emit { kind: EmitKind::Normed, to: stream }), ..Pre::default() }
}

/// `out = residual + W pre(input) + b`
fn product(input: Reg, pre: Pre, weight: WantId, residual: Option<Reg>, out: Reg) -> Step {
    Step::Linear(LinearStep { input, pre, weight, act: Act::Identity, gated: false, residual, out, at: 0 })
}
