//! Collects a model's wants, registers and blocks while its steps are laid out.

use halfbyte_backend::{
    Arrangement, Format, Kind, KvShape, KvType, LinearShape, Norm, NormKind, NormShape, Purpose, Reg,
    Segment, Step, Want, WantId,
};
use halfbyte_checkpoint::{ModelConfig, RopeScaling, TensorDtype};

use crate::settings::{DEFAULT_CONTEXT, Quantization};
use crate::tensors::{check_shape, stored_format};
use crate::{Block, Blueprint, ModelError, Settings, Tensors, rope};

/// A linear layer's tensors by name: `module.weight`, `[rows, cols]`, and perhaps `module.bias`, `[rows]`.
pub(super) struct Part {
    module: String,
    rows: usize,
    cols: usize,
    bias: bool,
}

impl Part {
    pub(super) fn new(parent: &str, module: &str, rows: usize, cols: usize, bias: bool) -> Self {
        Self { module: format!("{parent}.{module}"), rows, cols, bias }
    }
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
    kv: KvType,
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
            kv: settings.kv,
            ropes: Vec::new(),
            blueprint: Blueprint {
                architecture: config.architecture.clone(),
                wants: Vec::new(),
                widths: Vec::new(),
                blocks: Vec::new(),
                vocab: 0,
                hidden: 0,
                max_positions,
                context,
                sequences: settings.sequences,
            },
        })
    }

    pub(super) fn finish(mut self, vocab: usize, hidden: usize) -> Blueprint {
        self.blueprint.vocab = vocab;
        self.blueprint.hidden = hidden;
        self.blueprint
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
        self.want(name, Purpose::Weights, Kind::Linear(LinearShape { segments, arrangement }))
    }

    fn segment(&self, part: &Part) -> Result<Segment, ModelError> {
        let tensor = format!("{}.weight", part.module);
        let mut format = stored_format(self.tensors, &tensor, [part.rows, part.cols], false)?;
        if let (Format::Dense(_), Some(spec)) = (format, self.quantization.spec(&part.module)) {
            format = Format::Quant(spec.into());
        }
        let bias = part.bias.then(|| format!("{}.bias", part.module));
        if let Some(bias) = &bias {
            check_shape(bias, self.tensors.get(bias)?, &[part.rows])?;
        }
        Ok(Segment { tensor, rows: part.rows, cols: part.cols, format, bias, transposed: false })
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

    pub(super) fn kv(&mut self, name: &str, kv_heads: usize, head_dim: usize) -> WantId {
        let shape = KvShape {
            sequences: self.blueprint.sequences,
            kv_heads,
            head_dim,
            capacity: self.blueprint.context,
            dtype: self.kv,
        };
        self.want(name.into(), Purpose::KvCache, Kind::Kv(shape))
    }
}
