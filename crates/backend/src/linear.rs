//! The shape of a linear layer: stacked segments of one format.

use crate::Fault;
use halfbyte_quant::{QuantSpec, QuantType};

/// Element types of dense tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of binary32.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> u64 {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }

    /// Whether little-endian elements are neither NaN nor infinite: the bits of their exponents are not all ones. Without
    /// a branch an element, so that it takes no longer than reading them. What is left of a last element is not looked at.
    pub fn all_finite(self, bytes: &[u8]) -> bool {
        let half = |mask: u16| none(bytes, move |word| u16::from_le_bytes(word) & mask == mask);
        match self {
            DType::F32 => none(bytes, |word| !f32::from_le_bytes(word).is_finite()),
            DType::F16 => half(0x7c00),
            DType::Bf16 => half(0x7f80),
        }
    }
}

/// Whether no element of `N` bytes is special.
fn none<const N: usize>(bytes: &[u8], is_special: impl Fn([u8; N]) -> bool) -> bool {
    /// Elements between two looks at what was found.
    const PIECE: usize = 1 << 12;
    let any = |piece: &[[u8; N]]| piece.iter().fold(false, |any, &word| any | is_special(word));
    !bytes.as_chunks::<N>().0.chunks(PIECE).any(any)
}

/// How a 4-bit matrix is quantized (bitsandbytes' `quant_state`, less its values).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuantFormat {
    /// The 16-entry codebook's name. A checkpoint may store its own values: they win.
    pub quant_type: QuantType,
    /// Weights that share an absmax: a power of two from 32 to 4096. Blocks run over the flattened
    /// `[rows, cols]` and may cross rows.
    pub blocksize: usize,
    /// Whether absmax is itself quantized to 8 bits in blocks of 256.
    pub double_quant: bool,
}

impl From<QuantSpec> for QuantFormat {
    fn from(spec: QuantSpec) -> Self {
        Self { quant_type: spec.quant_type, blocksize: spec.blocksize, double_quant: spec.double_quant }
    }
}

impl From<QuantFormat> for QuantSpec {
    fn from(format: QuantFormat) -> Self {
        QuantSpec {
            quant_type: format.quant_type,
            blocksize: format.blocksize,
            double_quant: format.double_quant,
        }
    }
}

/// How a matrix is held on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// One element after the other.
    Dense(DType),
    /// Blocks of 4-bit codes with scales.
    Quant(QuantFormat),
}

/// One tensor of the checkpoint, `[rows, cols]` after transposition, that is part of a linear layer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Segment {
    /// Its name in the checkpoint, as in `model.layers.0.self_attn.q_proj.weight`.
    pub tensor: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// How it is to be held. Sources convert: a dense tensor is quantized as it is read.
    pub format: Format,
    /// The name of its bias, `[rows]`, if it has one.
    pub bias: Option<String>,
    /// Whether the checkpoint stores `[cols, rows]` (GPT-2's Conv1D).
    pub transposed: bool,
}

/// How the rows of the segments become rows of the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arrangement {
    /// One segment below the other (q|k|v).
    Stacked,
    /// Two halves row by row, so that gate and up of one output are neighbours: layer row `2i` is row
    /// `i` of the first half, `2i + 1` row `i` of the second. With two segments the halves are the
    /// segments; with one (Phi 3's `gate_up_proj`) they are its upper and lower half.
    Interleaved,
}

/// A linear layer `y = W x + b`, `W: [rows, cols]`, of one or more segments of equal `cols` and
/// [`Format`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LinearShape {
    /// The tensors.
    pub segments: Vec<Segment>,
    /// Their order.
    pub arrangement: Arrangement,
    /// Whether it is a model's output head, alone or as its embedding table, too: the one dense matrix that decoding
    /// reads as a whole. A device may hold it in fewer bits where it was asked for rough arithmetic.
    pub head: bool,
}

impl LinearShape {
    /// A layer of segments in some order.
    pub fn new(segments: Vec<Segment>, arrangement: Arrangement) -> Self {
        Self { segments, arrangement, head: false }
    }

    /// A layer of one tensor.
    pub fn single(segment: Segment) -> Self {
        Self::new(vec![segment], Arrangement::Stacked)
    }

    /// Output features: the sum over the segments.
    pub fn rows(&self) -> usize {
        self.segments.iter().map(|segment| segment.rows).sum()
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.segments.first().map_or(0, |segment| segment.cols)
    }

    /// The format of all segments.
    pub fn format(&self) -> Format {
        self.segments.first().map_or(Format::Dense(DType::F32), |segment| segment.format)
    }

    /// Whether any segment has a bias (the others' biases are then zero).
    pub fn has_bias(&self) -> bool {
        self.segments.iter().any(|segment| segment.bias.is_some())
    }

    /// Whether `other` takes the same place: the same shapes, formats and use under whatever names.
    pub fn lies_as(&self, other: &Self) -> bool {
        let unnamed = |segment: &Segment| {
            let Segment { tensor: _, rows, cols, format, bias, transposed } = segment;
            (*rows, *cols, *format, bias.is_some(), *transposed)
        };
        self.arrangement == other.arrangement
            && self.head == other.head
            && self.segments.iter().map(unnamed).eq(other.segments.iter().map(unnamed))
    }

    /// Which row of which segment is row `row` of the layer: `(segment, row in the segment)`.
    pub fn source_row(&self, row: usize) -> (usize, usize) {
        match (self.arrangement, self.segments.len()) {
            (Arrangement::Interleaved, 1) => (0, row / 2 + (row % 2) * (self.segments[0].rows / 2)),
            (Arrangement::Interleaved, _) => (row % 2, row / 2),
            (Arrangement::Stacked, _) => {
                let mut rest = row;
                for (index, segment) in self.segments.iter().enumerate() {
                    if rest < segment.rows {
                        return (index, rest);
                    }
                    rest -= segment.rows;
                }
                (self.segments.len(), rest)
            }
        }
    }

    /// Checks that the segments can be one layer.
    ///
    /// # Errors
    /// [`Fault::Internal`] if they are empty, differ in `cols` or format, or cannot be interleaved.
    pub fn check(&self) -> Result<(), Fault> {
        let Some(first) = self.segments.first() else {
            return Err(Fault::Internal("a linear layer without segments".into()));
        };
        for segment in &self.segments {
            if segment.rows == 0 || segment.cols == 0 {
                return Err(Fault::Internal(format!("{} is empty", segment.tensor)));
            }
            if segment.cols != first.cols || segment.format != first.format {
                return Err(Fault::Internal(format!(
                    "{} ({} columns, {:?}) cannot be stacked on {} ({} columns, {:?})",
                    segment.tensor, segment.cols, segment.format, first.tensor, first.cols, first.format
                )));
            }
        }
        if self.arrangement == Arrangement::Interleaved {
            let fits = match self.segments.as_slice() {
                [one] => one.rows % 2 == 0,
                [gate, up] => gate.rows == up.rows,
                _ => false,
            };
            if !fits {
                return Err(Fault::Internal(format!("{} cannot be interleaved", first.tensor)));
            }
        }
        Ok(())
    }
}
