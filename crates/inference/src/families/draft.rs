//! Collects a model's wants, registers and blocks while its steps are laid out.

use halfbyte_backend::{
    Arrangement, DType, Format, Kind, KvShape, KvType, LinearShape, Norm, NormKind, NormShape, Purpose, Reg,
    Segment, Step, Want, WantId,
};
use halfbyte_checkpoint::{ModelConfig, RopeScaling, TensorDtype};

use crate::settings::{DEFAULT_CONTEXT, Quantization};
use crate::tensors::{check_shape, stored_format};
use crate::{Block, Blueprint, ModelError, Settings, Task, Tensors, rope};

/// A linear layer's tensors by name: `module.weight`, `[rows, cols]`, and perhaps `module.bias`, `[rows]`.
pub(super) struct Part {
    module: String,
    rows: usize,
    cols: usize,
    bias: bool,
    transposed: bool,
}

impl Part {
    pub(super) fn new(parent: &str, module: &str, rows: usize, cols: usize, bias: bool) -> Self {
        Self { module: format!("{parent}.{module}"), rows, cols, bias, transposed: false }
    }

    /// A layer of a classifier or pooler, by its whole path; with a bias.
    pub(super) fn head(module: &str, rows: usize, cols: usize) -> Self {
        Self { module: module.into(), rows, cols, bias: true, transposed: false }
    }

    /// Stored as `[cols, rows]`: GPT-2's Conv1D.
    pub(super) fn transposed(self) -> Self {
        Self { transposed: true, ..self }
    }
}

/// The sizes of a model that is not a decoder.
pub(super) struct Sizes {
    pub(super) vocab: usize,
    pub(super) hidden: usize,
    /// Width of a row of logits.
    pub(super) logits: usize,
}

/// A rope table, and how many features of a head it rotates.
pub(super) struct Rotation {
    pub(super) id: WantId,
    pub(super) dim: usize,
}

/// A blueprint in the making.
pub(super) struct Draft<'a> {
    tensors: &'a dyn Tensors,
    quantization: Quantization,
    convert_heads: bool,
    kv: KvType,
    /// Rows of a sequence in a submission, where that is known.
    rows: Option<usize>,
    ropes: Vec<(RopeScaling, WantId)>,
    blueprint: Blueprint,
}

impl<'a> Draft<'a> {
    pub(super) fn new(
        config: &ModelConfig,
        tensors: &'a dyn Tensors,
        settings: &Settings,
        max_positions: usize,
    ) -> Result<Self, ModelError> {
        let context = settings.context.unwrap_or(max_positions.min(DEFAULT_CONTEXT));
        if context == 0 || context > max_positions {
            return Err(ModelError::Unsupported {
                what: format!("a context of {context} positions"),
                instead: format!("the model was made for 1 to {max_positions}"),
            });
        }
        if settings.sequences == 0 {
            return Err(ModelError::Invalid("an engine for 0 sequences; ask for at least 1".into()));
        }
        Ok(Self {
            tensors,
            quantization: Quantization::of(config, settings)?,
            convert_heads: settings.convert_heads,
            kv: settings.kv,
            rows: settings.rows,
            ropes: Vec::new(),
            blueprint: Blueprint {
                architecture: config.architecture.clone(),
                wants: Vec::new(),
                widths: Vec::new(),
                blocks: Vec::new(),
                task: Task::Generate,
                vocab: 0,
                logits: 0,
                outputs: Vec::new(),
                initialized: Vec::new(),
                deviation: config.f64_or("initializer_range", 0.02)? as f32,
                hidden: 0,
                max_positions,
                context,
                sequences: settings.sequences,
            },
        })
    }

    /// A decoder: its logits are over the vocabulary, and the matrix that makes them is its head.
    pub(super) fn finish(mut self, vocab: usize, hidden: usize) -> Blueprint {
        let Blueprint { blocks, wants, .. } = &mut self.blueprint;
        for step in blocks.iter().flat_map(|block| &block.steps) {
            if let Step::Head(head) = step
                && let Some(Want { kind: Kind::Linear(shape), .. }) = wants.get_mut(head.weight.0 as usize)
            {
                shape.head = true;
            }
        }
        self.blueprint.vocab = vocab;
        self.blueprint.logits = vocab;
        self.blueprint.hidden = hidden;
        self.blueprint
    }

    /// A model for another `task`, with `logits` a row, whose last block leaves `outputs`.
    pub(super) fn finish_as(self, task: Task, sizes: Sizes, outputs: Vec<Reg>) -> Blueprint {
        let Sizes { vocab, hidden, logits } = sizes;
        Blueprint { task, vocab, hidden, logits, outputs, ..self.blueprint }
    }

    /// Whether the checkpoint has a tensor.
    pub(super) fn has(&self, tensor: &str) -> bool {
        self.tensors.find(tensor).is_some()
    }

    pub(super) fn register(&mut self, width: usize) -> Reg {
        self.blueprint.widths.push(width);
        Reg((self.blueprint.widths.len() - 1) as u16)
    }

    pub(super) fn block(&mut self, name: &str, inputs: Vec<Reg>, steps: Vec<Step>) {
        self.blueprint.blocks.push(Block { name: name.into(), steps, inputs });
    }

    fn want(&mut self, name: String, purpose: Purpose, kind: Kind) -> WantId {
        self.blueprint.wants.push(Want { name, purpose, kind });
        WantId((self.blueprint.wants.len() - 1) as u32)
    }

    /// An embedding table: as the checkpoint stores it.
    pub(super) fn embedding(&mut self, tensor: &str, shape: [usize; 2]) -> Result<WantId, ModelError> {
        let format = stored_format(self.tensors, tensor, shape, false)?;
        if let Format::Quant(_) = format {
            return Err(ModelError::Unsupported {
                what: format!("the 4-bit embedding {tensor}"),
                instead: "take a checkpoint whose embeddings are in 16 bits, as bitsandbytes leaves them"
                    .into(),
            });
        }
        Ok(self.table(tensor, shape, format))
    }

    /// An output head: as the checkpoint stores it, 4-bit included.
    pub(super) fn head(&mut self, tensor: &str, shape: [usize; 2]) -> Result<WantId, ModelError> {
        let format = stored_format(self.tensors, tensor, shape, false)?;
        Ok(self.table(tensor, shape, format))
    }

    fn table(&mut self, tensor: &str, [rows, cols]: [usize; 2], format: Format) -> WantId {
        let segment = Segment { tensor: tensor.into(), rows, cols, format, bias: None, transposed: false };
        let name = tensor.strip_suffix(".weight").unwrap_or(tensor).to_owned();
        self.want(name, Purpose::Embeddings, Kind::Linear(LinearShape::single(segment)))
    }

    /// `value` rounded to the element type of `tensor`, as PyTorch computes with it.
    pub(super) fn rounded_as(&self, tensor: &str, value: f32) -> Result<f32, ModelError> {
        Ok(match self.tensors.get(tensor)?.dtype {
            TensorDtype::F16 => half::f16::from_f32(value).to_f32(),
            TensorDtype::BF16 => half::bf16::from_f32(value).to_f32(),
            _ => value,
        })
    }

    /// One linear layer of one tensor.
    pub(super) fn linear(&mut self, part: &Part) -> Result<WantId, ModelError> {
        let segment = self.segment(part)?;
        Ok(self.weights(part.module.clone(), vec![segment], Arrangement::Stacked))
    }

    /// Layers of one input side by side: `(first column of the output, weight)`. Parts of equal format
    /// that follow each other are stacked into one layer; usually that is all of them.
    pub(super) fn stacked(&mut self, name: &str, parts: &[Part]) -> Result<Vec<(usize, WantId)>, ModelError> {
        let segments = parts.iter().map(|part| self.segment(part)).collect::<Result<Vec<_>, _>>()?;
        let runs: Vec<&[Segment]> = segments.chunk_by(|a, b| a.format == b.format).collect();
        let mut layers = Vec::with_capacity(runs.len());
        let (mut at, mut part) = (0, 0);
        for run in &runs {
            // A run of its own is called by its own modules.
            let name = if runs.len() == 1 { name.to_owned() } else { parts[part].module.clone() };
            layers.push((at, self.weights(name, run.to_vec(), Arrangement::Stacked)));
            at += run.iter().map(|segment| segment.rows).sum::<usize>();
            part += run.len();
        }
        Ok(layers)
    }

    /// Gate and up, row by row: two parts of equal format, or one that holds both halves.
    pub(super) fn interleaved(&mut self, name: &str, parts: &[Part]) -> Result<WantId, ModelError> {
        let segments = parts.iter().map(|part| self.segment(part)).collect::<Result<Vec<_>, _>>()?;
        if let [first, second] = segments.as_slice()
            && first.format != second.format
        {
            return Err(ModelError::MixedFormats {
                first: first.tensor.clone(),
                second: second.tensor.clone(),
            });
        }
        Ok(self.weights(name.to_owned(), segments, Arrangement::Interleaved))
    }

    fn weights(&mut self, name: String, segments: Vec<Segment>, arrangement: Arrangement) -> WantId {
        self.want(name, Purpose::Weights, Kind::Linear(LinearShape::new(segments, arrangement)))
    }

    fn segment(&self, part: &Part) -> Result<Segment, ModelError> {
        let mut segment = self.segment_as_stored(part)?;
        if let (Format::Dense(_), Some(spec)) = (segment.format, self.quantization.spec(&part.module)) {
            segment.format = Format::Quant(spec.into());
        }
        Ok(segment)
    }

    fn segment_as_stored(&self, part: &Part) -> Result<Segment, ModelError> {
        let &Part { rows, cols, transposed, .. } = part;
        let tensor = format!("{}.weight", part.module);
        let format = stored_format(self.tensors, &tensor, [rows, cols], transposed)?;
        let bias = part.bias.then(|| format!("{}.bias", part.module));
        if let Some(bias) = &bias {
            check_shape(bias, self.tensors.get(bias)?, &[rows])?;
        }
        Ok(Segment { tensor, rows, cols, format, bias, transposed })
    }

    /// A mixture's router: as the checkpoint stores it, since what it loses sends tokens elsewhere.
    pub(super) fn router(&mut self, part: &Part) -> Result<WantId, ModelError> {
        let segment = self.segment_as_stored(part)?;
        Ok(self.weights(part.module.clone(), vec![segment], Arrangement::Stacked))
    }

    /// A layer of a classifier or pooler. It is quantized only where [`Settings::convert_heads`] says so.
    /// One that the checkpoint lacks is drawn at random while loading, as transformers does, and noted in
    /// [`Blueprint::initialized`]; it is never quantized.
    pub(super) fn head_linear(&mut self, part: &Part) -> Result<WantId, ModelError> {
        let (weight, bias) = (format!("{}.weight", part.module), format!("{}.bias", part.module));
        let segment = match (self.has(&weight), self.convert_heads) {
            (true, true) => self.segment(part)?,
            (true, false) => self.segment_as_stored(part)?,
            (false, _) => {
                self.blueprint.initialized.extend([weight.clone(), bias.clone()]);
                let &Part { rows, cols, transposed, .. } = part;
                let format = Format::Dense(DType::F32);
                Segment { tensor: weight, rows, cols, format, bias: Some(bias), transposed }
            }
        };
        Ok(self.weights(part.module.clone(), vec![segment], Arrangement::Stacked))
    }

    /// A LayerNorm: weight and bias, which old checkpoints call gamma and beta.
    pub(super) fn layer_norm(&mut self, name: &str, len: usize, eps: f32) -> Result<Norm, ModelError> {
        let (weight, bias) = match self.has(&format!("{name}.gamma")) {
            true => (format!("{name}.gamma"), format!("{name}.beta")),
            false => (format!("{name}.weight"), format!("{name}.bias")),
        };
        for tensor in [&weight, &bias] {
            check_shape(tensor, self.tensors.get(tensor)?, &[len])?;
        }
        let shape = NormShape { len, weight, bias: Some(bias) };
        let weight = self.want(name.into(), Purpose::Weights, Kind::Norm(shape));
        Ok(Norm { kind: NormKind::Layer, weight, eps, offset: 0.0 })
    }

    pub(super) fn rms_norm(
        &mut self,
        name: &str,
        len: usize,
        eps: f32,
        offset: f32,
    ) -> Result<Norm, ModelError> {
        let weight = format!("{name}.weight");
        check_shape(&weight, self.tensors.get(&weight)?, &[len])?;
        let shape = NormShape { len, weight, bias: None };
        let weight = self.want(name.into(), Purpose::Weights, Kind::Norm(shape));
        Ok(Norm { kind: NormKind::Rms, weight, eps, offset })
    }

    /// The table of one kind of rotation; layers of the same kind share it.
    pub(super) fn rope(&mut self, scaling: &RopeScaling, head_dim: usize) -> Result<Rotation, ModelError> {
        let context = self.blueprint.context;
        let shape = rope::shape(scaling, head_dim, context, self.blueprint.max_positions)?;
        let dim = shape.inv_freq.len() * 2;
        let known = self.ropes.iter().find(|(known, _)| known == scaling).map(|&(_, id)| id);
        let id = match known {
            Some(id) => id,
            None => {
                let name = match self.ropes.len() {
                    0 => "model.rotary".to_owned(),
                    count => format!("model.rotary.{count}"),
                };
                let id = self.want(name, Purpose::RopeTable, Kind::Rope(shape));
                self.ropes.push((scaling.clone(), id));
                id
            }
        };
        Ok(Rotation { id, dim })
    }

    /// The cache of a layer, whose rows see `window` positions, or all.
    pub(super) fn kv(
        &mut self,
        name: &str,
        kv_heads: usize,
        head_dim: usize,
        window: Option<usize>,
    ) -> WantId {
        let whole = KvShape {
            sequences: self.blueprint.sequences,
            kv_heads,
            head_dim,
            capacity: self.blueprint.context,
            ring: None,
            dtype: self.kv,
        };
        let shape = match (window, self.rows) {
            (Some(window), Some(rows)) => whole.with_window(window, rows),
            _ => whole,
        };
        self.want(name.into(), Purpose::KvCache, Kind::Kv(shape))
    }
}
