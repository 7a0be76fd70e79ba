//! bitsandbytes' 4-bit weights, as `save_pretrained` writes them.
//!
//! A weight `P` of a 4-bit module is several tensors: `P` itself holds the packed codes, `P.absmax` the
//! scales, `P.quant_map` the codebook, with double quantization `P.nested_absmax` and
//! `P.nested_quant_map` too, and `P.quant_state.bitsandbytes__nf4` (or `__fp4`) a JSON text that says what
//! they mean. The packed bytes may be stored under any type of `bnb_4bit_quant_storage`: they are
//! reinterpreted, never converted.

use crate::checkpoint::Checkpoint;
use crate::dtype::TensorDtype;
use crate::error::{CheckpointError, shown, shown_list};
use crate::header::TensorInfo;
use crate::index::TensorIndex;
use crate::region::Region;
use halfbyte_quant::{Absmax, QuantType, Quantized};
use serde::Deserialize;

/// What follows the weight's name in the name of its quant state, but for the type.
const STATE: &str = ".quant_state.bitsandbytes__";

/// A 4-bit weight of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedWeight {
    /// Codes and scales of the flat weight, checked.
    pub data: Quantized,
    /// The weight's dimensions before it was quantized: `[out, in]`.
    pub shape: Vec<usize>,
    /// The weight's type before it was quantized, and of what it dequantizes to.
    pub dtype: TensorDtype,
}

/// What a weight's quant state says, read from a few hundred bytes: enough to plan memory with.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantState {
    /// The codebook's name.
    pub quant_type: QuantType,
    /// Elements that share a scale.
    pub blocksize: usize,
    /// The weight's dimensions before it was quantized.
    pub shape: Vec<usize>,
    /// The product of `shape`.
    pub len: usize,
    /// The weight's type before it was quantized.
    pub dtype: TensorDtype,
    /// Double quantization: how the scales are themselves quantized.
    pub nested: Option<NestedState>,
}

/// How scales have been quantized to 8 bits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NestedState {
    /// Scales that share a second scale.
    pub blocksize: usize,
    /// The mean that was taken off all scales.
    pub offset: f32,
}

/// The JSON as written. Unknown keys are refused, as bitsandbytes does.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawState {
    quant_type: String,
    blocksize: u64,
    dtype: String,
    shape: Vec<u64>,
    nested_blocksize: Option<u64>,
    nested_dtype: Option<String>,
    nested_offset: Option<f64>,
}

/// Whether `weight`, such as `model.layers.0.mlp.up_proj.weight`, is stored in 4 bits.
pub fn is_quantized(index: &TensorIndex, weight: &str) -> bool {
    state_tensors(index, weight).next().is_some()
}

/// The 4-bit weights of a checkpoint by name, in the order of the index.
pub fn quantized_weights(index: &TensorIndex) -> impl Iterator<Item = &str> {
    index
        .iter()
        .filter_map(|tensor| tensor.name.split_once(STATE))
        .filter(|(_, kind)| kind.parse::<QuantType>().is_ok())
        .map(|(weight, _)| weight)
}

/// The quant states of a weight; there should be one at most.
fn state_tensors<'a>(
    index: &'a TensorIndex,
    weight: &str,
) -> impl Iterator<Item = (QuantType, &'a TensorInfo)> {
    [QuantType::Nf4, QuantType::Fp4]
        .into_iter()
        .filter_map(move |kind| Some((kind, index.find(&format!("{weight}{STATE}{kind}"))?)))
}

/// Reads the quant state of `weight`; `None` if it is not stored in 4 bits.
///
/// # Errors
/// [`CheckpointError::QuantState`] if there are two states, or it is not what bitsandbytes writes.
pub fn read_state(checkpoint: &Checkpoint, weight: &str) -> Result<Option<QuantState>, CheckpointError> {
    let mut states = state_tensors(&checkpoint.index, weight);
    let Some((kind, tensor)) = states.next() else {
        return Ok(None);
    };
    let broken = |problem: String| CheckpointError::QuantState { tensor: shown(weight), problem };
    if states.next().is_some() {
        return Err(broken("it has an NF4 and an FP4 quant state".to_string()));
    }
    if tensor.dtype != TensorDtype::U8 {
        let problem = format!("its quant state is of type {}, not U8", tensor.dtype);
        return Err(broken(problem));
    }
    QuantState::parse(kind, checkpoint.bytes_of(tensor)?).map(Some).map_err(broken)
}

impl QuantState {
    /// Reads the JSON of a quant state whose name says `kind`. The error is a phrase for [`CheckpointError::QuantState`].
    fn parse(kind: QuantType, json: &[u8]) -> Result<QuantState, String> {
        let raw: RawState = serde_json::from_slice(json)
            .map_err(|error| format!("its quant state: {}", shown(&error.to_string())))?;
        if raw.quant_type != kind.to_string() {
            return Err(format!(
                "its quant state says quant_type \"{}\", but is named {kind}",
                shown(&raw.quant_type)
            ));
        }
        let dtype = TensorDtype::from_torch_name(&raw.dtype)
            .filter(|dtype| dtype.is_float())
            .ok_or_else(|| format!("its dtype \"{}\" is no float type", shown(&raw.dtype)))?;
        let size = |size: u64| usize::try_from(size).ok();
        let shape: Option<Vec<usize>> = raw.shape.iter().copied().map(size).collect();
        let (shape, len) = shape
            .and_then(|shape| {
                let len = shape.iter().try_fold(1usize, |len, &size| len.checked_mul(size))?;
                Some((shape, len))
            })
            .ok_or_else(|| format!("the product of its shape {} overflows", shown_list(&raw.shape)))?;
        let blocksize = size(raw.blocksize)
            .filter(|&size| size > 0)
            .ok_or_else(|| format!("its blocksize {} is impossible", raw.blocksize))?;
        let nested = match (raw.nested_blocksize, raw.nested_offset) {
            (None, None) => None,
            (Some(blocksize), Some(offset)) => {
                if let Some(dtype) = raw.nested_dtype.filter(|dtype| dtype != "float32") {
                    return Err(format!("its nested_dtype is \"{}\", not float32", shown(&dtype)));
                }
                let blocksize = size(blocksize)
                    .filter(|&size| size > 0)
                    .ok_or_else(|| format!("its nested_blocksize {blocksize} is impossible"))?;
                let single = offset as f32;
                if !single.is_finite() {
                    return Err(format!("its nested_offset {offset:e} is beyond float32"));
                }
                Some(NestedState { blocksize, offset: single })
            }
            _ => {
                return Err("it has only one of nested_blocksize and nested_offset".to_string());
            }
        };
        Ok(QuantState { quant_type: kind, blocksize, shape, len, dtype, nested })
    }
}

/// A 4-bit weight where it lies; only what is small has been read.
#[derive(Debug, Clone)]
pub struct LocatedWeight {
    /// What its quant state says.
    pub state: QuantState,
    /// The value of each code.
    pub code: Box<[f32; 16]>,
    /// Two codes a byte: `[state.len.div_ceil(2)]`.
    pub packed: Region,
    /// The scale of each block: f32 without [`nested`](Self::nested), else 8-bit codes.
    pub absmax: Region,
    /// Scales of the scales, and the values of their codes.
    pub nested: Option<(Vec<f32>, Box<[f32; 256]>)>,
}

/// Finds `weight` if it is stored in 4 bits, without reading its codes; `None` if it is not. Scales are read, a ninth of its
/// bytes where they are not nested: one that is no number would turn every answer into NaN.
///
/// # Errors
/// As [`read_quantized`].
pub fn locate_quantized(
    checkpoint: &Checkpoint,
    weight: &str,
) -> Result<Option<LocatedWeight>, CheckpointError> {
    let Some(state) = read_state(checkpoint, weight)? else {
        return Ok(None);
    };
    let parts = Parts { checkpoint, weight };
    parts.check_packed(&state)?;
    let region = |name: &str| checkpoint.region_of(checkpoint.index.get(name)?);
    let blocks = state.len.div_ceil(state.blocksize);
    let dtype = if state.nested.is_some() { TensorDtype::U8 } else { TensorDtype::F32 };
    let absmax = parts.bytes("absmax", dtype, blocks)?;
    if state.nested.is_none() {
        parts.check_finite("absmax", absmax)?;
    }
    let nested = match state.nested {
        None => None,
        Some(nested) => Some((
            parts.floats("nested_absmax", blocks.div_ceil(nested.blocksize))?,
            parts.array(parts.floats("nested_quant_map", 256)?)?,
        )),
    };
    Ok(Some(LocatedWeight {
        code: parts.array(parts.floats("quant_map", 16)?)?,
        packed: region(weight)?,
        absmax: region(&format!("{weight}.absmax"))?,
        nested,
        state,
    }))
}

/// Reads `weight` if it is stored in 4 bits; `None` if it is not.
///
/// # Errors
/// [`CheckpointError::QuantState`] if its tensors are missing, of wrong types or lengths, or its quant
/// state is not what bitsandbytes writes.
pub fn read_quantized(
    checkpoint: &Checkpoint,
    weight: &str,
) -> Result<Option<QuantizedWeight>, CheckpointError> {
    let Some(state) = read_state(checkpoint, weight)? else {
        return Ok(None);
    };
    let parts = Parts { checkpoint, weight };
    let packed = parts.check_packed(&state)?;
    let code = parts.floats("quant_map", 16)?;
    let blocks = state.len.div_ceil(state.blocksize);
    let absmax = match state.nested {
        None => Absmax::Plain(parts.floats("absmax", blocks)?),
        Some(nested) => Absmax::Nested {
            codes: parts.bytes("absmax", TensorDtype::U8, blocks)?.to_vec(),
            absmax: parts.floats("nested_absmax", blocks.div_ceil(nested.blocksize))?,
            offset: nested.offset,
            code: parts.array(parts.floats("nested_quant_map", 256)?)?,
            blocksize: nested.blocksize,
        },
    };
    let data = Quantized {
        len: state.len,
        blocksize: state.blocksize,
        quant_type: state.quant_type,
        code: *parts.array::<16>(code)?,
        packed: copied(packed),
        absmax,
    };
    data.check().map_err(|error| parts.broken(shown(&error.to_string())))?;
    Ok(Some(QuantizedWeight { data, shape: state.shape, dtype: state.dtype }))
}

/// A copy of bytes that may lie in a memory map. With all threads: what takes the time is the kernel's work for
/// each page of the map and of the copy.
fn copied(bytes: &[u8]) -> Vec<u8> {
    #[cfg(feature = "native")]
    {
        const PIECE: usize = 1 << 20;
        let mut copy = vec![0; bytes.len()];
        let pieces = copy.chunks_mut(PIECE).zip(bytes.chunks(PIECE));
        halfbyte_quant::threads::each(pieces, |(to, from)| to.copy_from_slice(from));
        copy
    }
    #[cfg(not(feature = "native"))]
    {
        bytes.to_vec()
    }
}

/// Little-endian floats, which a file need not have aligned.
fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks::<4>().0.iter().copied().map(f32::from_le_bytes)
}

/// The tensors of one weight.
struct Parts<'a> {
    checkpoint: &'a Checkpoint,
    weight: &'a str,
}

impl<'a> Parts<'a> {
    fn broken(&self, problem: String) -> CheckpointError {
        CheckpointError::QuantState { tensor: shown(self.weight), problem }
    }

    /// The packed codes: the weight's bytes, whatever type they are stored under.
    fn packed(&self) -> Result<&'a [u8], CheckpointError> {
        match self.checkpoint.index.find(self.weight) {
            Some(tensor) => self.checkpoint.bytes_of(tensor),
            None => Err(self.broken("it has a quant state but no packed codes".to_string())),
        }
    }

    /// The packed codes of a state. To be called before anything is made of `len`: a hostile state may say any
    /// number.
    fn check_packed(&self, state: &QuantState) -> Result<&'a [u8], CheckpointError> {
        let packed = self.packed()?;
        if packed.len() == state.len.div_ceil(2) {
            return Ok(packed);
        }
        Err(self.broken(format!(
            "it has {} packed bytes, but {} of 4 bits needs {}",
            packed.len(),
            shown_list(&state.shape),
            state.len.div_ceil(2)
        )))
    }

    /// The bytes of one part, of a type and number of elements.
    fn bytes(&self, part: &str, dtype: TensorDtype, len: usize) -> Result<&'a [u8], CheckpointError> {
        let tensor = self
            .checkpoint
            .index
            .find(&format!("{}.{part}", self.weight))
            .ok_or_else(|| self.broken(format!("its {part} is missing")))?;
        if tensor.dtype != dtype || tensor.elements() != len {
            return Err(self.broken(format!(
                "its {part} is {} {}, expected {dtype} [{len}]",
                tensor.dtype,
                shown_list(&tensor.shape)
            )));
        }
        self.checkpoint.bytes_of(tensor)
    }

    /// One part as floats, all of them finite: one that is not would turn every answer into NaN. A file's tensors need not
    /// be aligned, so they are copied.
    fn floats(&self, part: &str, len: usize) -> Result<Vec<f32>, CheckpointError> {
        let bytes = self.bytes(part, TensorDtype::F32, len)?;
        self.check_finite(part, bytes)?;
        Ok(floats(bytes).collect())
    }

    /// Refuses 32-bit floats of which one is NaN or infinite.
    fn check_finite(&self, part: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        match floats(bytes).enumerate().find(|(_, value)| !value.is_finite()) {
            None => Ok(()),
            Some((at, value)) => Err(self.broken(format!("value {at} of its {part} is {value}"))),
        }
    }

    fn array<const N: usize>(&self, floats: Vec<f32>) -> Result<Box<[f32; N]>, CheckpointError> {
        let found = floats.len();
        Box::try_from(floats.into_boxed_slice())
            .map_err(|_| self.broken(format!("a table has {found} values, expected {N}")))
    }
}
