//! A checkpoint's tensors where they lie, for a device that reads them there.

use halfbyte_backend::{
    DType, Fault, Format, Mapped, MappedBytes, MappedQuantized, MappedScales, QuantFormat, Segment,
};
use halfbyte_checkpoint::{Checkpoint, LocatedWeight, Region, TensorDtype, quant_state};
use std::sync::Arc;

use crate::ModelError;
use crate::source::check_stored;
use crate::tensors::{Tensors, check_shape};

/// A part of a checkpoint's file, as backends take it.
#[derive(Debug)]
struct Part(Region);

impl MappedBytes for Part {
    fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    fn will_need(&self) {
        self.0.will_need();
    }

    fn done_with(&self) {
        self.0.done_with();
    }
}

fn part(region: Region) -> Arc<dyn MappedBytes> {
    Arc::new(Part(region))
}

/// Bytes of a dense matrix that is looked through for NaN and infinity when it is located. Larger ones would be read from
/// the disk for that alone: a device looks at them where a result shows that something is wrong.
const LOOKED_AT: usize = 4 << 20;

/// Where the segment lies in the format that it wants; `None` if it has to be converted first.
///
/// # Errors
/// What is wrong with the checkpoint.
pub(crate) fn locate(checkpoint: &Checkpoint, segment: &Segment) -> Result<Option<Mapped>, ModelError> {
    match segment.format {
        Format::Dense(_) if segment.transposed => Ok(None),
        Format::Dense(dtype) => {
            let stored = Tensors::get(&checkpoint.index, &segment.tensor)?;
            let same = matches!(
                (stored.dtype, dtype),
                (TensorDtype::F32, DType::F32)
                    | (TensorDtype::F16, DType::F16)
                    | (TensorDtype::BF16, DType::Bf16)
            );
            check_shape(&segment.tensor, stored, &[segment.rows, segment.cols])?;
            if !same {
                return Ok(None);
            }
            let region = checkpoint.region_of(checkpoint.index.get(&segment.tensor)?)?;
            if region.bytes().len() <= LOOKED_AT && !dtype.all_finite(region.bytes()) {
                return Err(Fault::not_finite(&checkpoint.name, &segment.tensor).into());
            }
            Ok(Some(Mapped::Dense { dtype, bytes: part(region) }))
        }
        Format::Quant(format) => {
            let found = quant_state::locate_quantized(checkpoint, &segment.tensor)?;
            found.map(|weight| quantized(checkpoint, weight, segment, format)).transpose()
        }
    }
}

/// A 4-bit weight; it must be what the blueprint took it for.
fn quantized(
    checkpoint: &Checkpoint,
    weight: LocatedWeight,
    segment: &Segment,
    format: QuantFormat,
) -> Result<Mapped, ModelError> {
    let LocatedWeight { state, code, packed, absmax, nested } = weight;
    // Of a single block the headers do not tell the size, and nothing depends on it.
    let single = state.len <= state.blocksize && state.len <= format.blocksize;
    let blocksize = if single { format.blocksize } else { state.blocksize };
    let found = QuantFormat { quant_type: state.quant_type, blocksize, double_quant: nested.is_some() };
    check_stored(checkpoint, segment, &state.shape, found)?;
    let scales = match (nested, state.nested) {
        (Some((values, map)), Some(nested)) => MappedScales::Nested {
            codes: part(absmax),
            absmax: values,
            map,
            offset: nested.offset,
            blocksize: nested.blocksize,
        },
        _ => MappedScales::Plain(part(absmax)),
    };
    Ok(Mapped::Quantized(MappedQuantized { blocksize, code: *code, packed: part(packed), scales }))
}
