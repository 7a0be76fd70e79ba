//! A model as blocks of steps, before it lives anywhere.

use halfbyte_backend::{Caps, Fault};
use halfbyte_backend::{Footprint, Kind, KvShape, Layout, Purpose, Reg, Step, Stretch, Want, WantId};
use std::collections::BTreeMap;
use std::ops::Range;

/// Steps that stay together on one device: an embedding, a layer, a head.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Its name, as device maps have it: `model.embed_tokens`, `model.layers.0`, `lm_head`.
    pub name: String,
    /// Its steps, over the blueprint's wants and registers.
    pub steps: Vec<Step>,
    /// The registers that it takes from the block before it: the residual stream. Empty for the first.
    pub inputs: Vec<Reg>,
}

/// What a model is for: what its last block gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    /// Continue a text: logits over the vocabulary, a KV cache.
    Generate,
    /// Label a text: logits over the labels at its first token.
    ClassifySequence,
    /// Label each token of a text: logits over the labels at every one.
    ClassifyTokens,
    /// Hidden states of a text, and a pooled one where the checkpoint has a pooler.
    Embed,
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Task::Generate => "text generation",
            Task::ClassifySequence => "sequence classification",
            Task::ClassifyTokens => "token classification",
            Task::Embed => "embeddings",
        })
    }
}

/// A model: what it wants and what it does, block by block. Pure data, made from headers alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Blueprint {
    /// The architecture, as in `LlamaForCausalLM`.
    pub architecture: String,
    /// All that the steps name by [`WantId`].
    pub wants: Vec<Want>,
    /// Width of each register.
    pub widths: Vec<usize>,
    /// The model in order.
    pub blocks: Vec<Block>,
    /// What it is for.
    pub task: Task,
    /// Rows of the embedding: token ids are below it.
    pub vocab: usize,
    /// Width of a row of logits: the vocabulary or the labels; 0 if there are none.
    pub logits: usize,
    /// The registers that the last block leaves for [`Output::Hidden`](halfbyte_backend::Output::Hidden):
    /// for [`Task::Embed`] the last hidden state, then the pooled one if there is a pooler; else none.
    pub outputs: Vec<Reg>,
    /// Tensors of the head that the checkpoint lacks and that are drawn at random while loading.
    pub initialized: Vec<String>,
    /// The standard deviation of what is drawn.
    pub deviation: f32,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Positions that the model was trained for.
    pub max_positions: usize,
    /// Positions of each sequence in the KV cache.
    pub context: usize,
    /// Sequences at once.
    pub sequences: usize,
}

impl Blueprint {
    /// The caches whose rows see a window, and how many positions that is.
    pub(crate) fn windows(&self) -> impl Iterator<Item = (&KvShape, usize)> {
        self.blocks.iter().flat_map(|block| &block.steps).filter_map(|step| {
            let Step::Attend(attend) = step else { return None };
            match &self.wants.get(attend.cache?.0 as usize)?.kind {
                Kind::Kv(shape) => Some((shape, attend.window?)),
                _ => None,
            }
        })
    }

    /// The blocks of `range` as one stretch: with the wants and registers that they use, renumbered.
    /// It takes hidden states unless it starts with the first block, and leaves some unless it ends
    /// with the last of a model that is not for them. A range beyond the blocks is cut.
    pub fn stretch(&self, range: Range<usize>) -> Stretch {
        let range = range.start.min(self.blocks.len())..range.end.min(self.blocks.len());
        let blocks = self.blocks.get(range.clone()).unwrap_or_default();
        let mut steps: Vec<Step> = blocks.iter().flat_map(|block| block.steps.iter().copied()).collect();
        let boundary = |at: usize| self.blocks.get(at).map_or_else(Vec::new, |block| block.inputs.clone());
        let mut inputs = boundary(range.start);
        let mut outputs =
            if range.end == self.blocks.len() { self.outputs.clone() } else { boundary(range.end) };

        let mut wants = Vec::new();
        let mut want_ids = BTreeMap::new();
        let mut widths = Vec::new();
        let mut regs = BTreeMap::new();
        let mut renumber = |reg: &mut Reg| {
            let width = self.widths.get(usize::from(reg.0)).copied().unwrap_or(0);
            *reg = *regs.entry(*reg).or_insert_with(|| {
                widths.push(width);
                Reg((widths.len() - 1) as u16)
            });
        };
        inputs.iter_mut().for_each(&mut renumber);
        for step in &mut steps {
            step.regs_mut(&mut renumber);
            step.wants_mut(&mut |id: &mut WantId| {
                let Some(want) = self.wants.get(id.0 as usize) else { return };
                *id = *want_ids.entry(*id).or_insert_with(|| {
                    wants.push(want.clone());
                    WantId((wants.len() - 1) as u32)
                });
            });
        }
        outputs.iter_mut().for_each(&mut renumber);
        Stretch { wants, steps, widths, inputs, outputs }
    }

    /// All blocks as one stretch.
    pub fn whole(&self) -> Stretch {
        self.stretch(0..self.blocks.len())
    }

    /// The position of the block called `name`.
    pub fn block(&self, name: &str) -> Option<usize> {
        self.blocks.iter().position(|block| block.name == name)
    }

    /// Bytes that the blocks of `range` take on a device of this layout: wants, and a program for
    /// `caps`. What the device holds anyway ([`Layout::resident`]) is not among them.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] if the device cannot hold or run them.
    pub fn footprint(
        &self,
        layout: &dyn Layout,
        range: Range<usize>,
        caps: &Caps,
    ) -> Result<Footprint, Fault> {
        let stretch = self.stretch(range);
        let mut footprint = layout.program(&stretch, caps)?;
        for want in &stretch.wants {
            footprint.merge(&layout.want_footprint(want)?);
        }
        Ok(footprint)
    }

    /// Multiplications and additions that a token takes in a block, embeddings and attention left out: of a mixture
    /// of experts those of the experts that it chooses.
    pub fn products(&self, block: usize) -> u64 {
        let of = |id: &WantId| self.wants.get(id.0 as usize).map_or(0, elements);
        let steps = self.blocks.get(block).map_or(&[][..], |block| &block.steps);
        let step = |step: &Step| match step {
            Step::Linear(linear) => of(&linear.weight),
            Step::Head(head) => of(&head.weight),
            Step::Moe(moe) => {
                let expert = of(&moe.gate_up_of(0)) + of(&moe.down_of(0));
                of(&moe.router) + moe.top_k as u64 * expert
            }
            Step::Embed(_) | Step::Attend(_) => 0,
        };
        steps.iter().map(step).sum()
    }

    /// Bytes of a token that go to another device and back when a block is computed there for once: keys and values,
    /// and the hidden states before and after it.
    pub fn row_bytes(&self, block: usize) -> u64 {
        let width = |at: usize| -> usize {
            let inputs = self.blocks.get(at).map_or(&[][..], |block| &block.inputs);
            inputs.iter().map(|reg| self.widths.get(usize::from(reg.0)).copied().unwrap_or(0)).sum()
        };
        let steps = self.blocks.get(block).map_or(&[][..], |block| &block.steps);
        let cached = steps.iter().filter_map(|step| match step {
            Step::Attend(attend) => self.wants.get(attend.cache?.0 as usize),
            _ => None,
        });
        let cached = cached.map(|want| match want.kind {
            Kind::Kv(shape) => 2 * shape.kv_heads as u64 * shape.head_bytes(),
            _ => 0,
        });
        (width(block) + width(block + 1)) as u64 * 4 + cached.sum::<u64>()
    }

    /// Weights that a token reads: the elements of all linear layers but embeddings, each once.
    pub fn linear_weights(&self) -> u64 {
        self.wants.iter().filter(|want| want.purpose == Purpose::Weights).map(elements).sum()
    }
}

/// Elements of a matrix; 0 for anything else.
fn elements(want: &Want) -> u64 {
    match &want.kind {
        Kind::Linear(shape) => shape.rows() as u64 * shape.cols() as u64,
        _ => 0,
    }
}
