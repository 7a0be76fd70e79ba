//! What a model is built from: which tensors there are, and how they are stored.

use halfbyte_backend::{DType, Format, QuantFormat};
use halfbyte_checkpoint::{TensorDtype, TensorIndex};
use halfbyte_quant::QuantType;

use crate::ModelError;

/// A tensor as a checkpoint's header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its element type.
    pub dtype: TensorDtype,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The file that holds it, for messages.
    pub file: String,
}

/// The tensors of a model, by name: a checkpoint's index, or a model that is made up.
pub trait Tensors {
    /// The tensor of that name, if there is one.
    fn find(&self, name: &str) -> Option<Stored>;

    /// The tensor of that name, which the model must have.
    ///
    /// # Errors
    /// If there is none, with what comes near.
    fn get(&self, name: &str) -> Result<Stored, ModelError>;
}

impl Tensors for TensorIndex {
    fn find(&self, name: &str) -> Option<Stored> {
        TensorIndex::find(self, name).map(|info| Stored {
            dtype: info.dtype,
            shape: info.shape.clone(),
            file: self.files().get(info.file).cloned().unwrap_or_default(),
        })
    }

    fn get(&self, name: &str) -> Result<Stored, ModelError> {
        TensorIndex::get(self, name)?;
        Tensors::find(self, name).ok_or_else(|| ModelError::Invalid(format!("tensor {name} comes and goes")))
    }
}

/// How the weight `name`, `[rows, cols]` for the model, is stored.
///
/// A weight with a bitsandbytes quant state beside it is [`Format::Quant`]. Its block size stands in
/// the state's bytes, which headers do not have, but the number of its scales gives it: the block size
/// is a power of two, and with two or more blocks only one of them makes that many.
///
/// # Errors
/// If it is missing, of another shape, or neither 4-bit nor float.
pub(crate) fn stored_format(
    tensors: &dyn Tensors,
    name: &str,
    [rows, cols]: [usize; 2],
    transposed: bool,
) -> Result<Format, ModelError> {
    let stored = tensors.get(name)?;
    let state = |kind: &str| tensors.find(&format!("{name}.quant_state.bitsandbytes__{kind}")).is_some();
    let quant_type = match (state("nf4"), state("fp4")) {
        (true, _) => QuantType::Nf4,
        (_, true) => QuantType::Fp4,
        _ => return dense_format(name, stored, &if transposed { [cols, rows] } else { [rows, cols] }),
    };
    let elements = rows.saturating_mul(cols);
    let wanted_bytes = elements.div_ceil(2) as u64;
    let bytes = stored.shape.iter().product::<usize>() as u64 * stored.dtype.bits() / 8;
    let scales = tensors.get(&format!("{name}.absmax"))?.shape.iter().product::<usize>();
    // 64 first: with a single block every size fits, and 64 is what everyone takes.
    let blocksize = [64, 32, 128, 256, 512, 1024, 2048, 4096]
        .into_iter()
        .find(|size| elements.div_ceil(*size) == scales)
        .filter(|_| bytes == wanted_bytes);
    let Some(blocksize) = blocksize else {
        return Err(ModelError::Shape {
            tensor: format!("{name} (4-bit, {bytes} bytes and {scales} scales)"),
            file: stored.file,
            found: stored.shape,
            wanted: vec![rows, cols],
        });
    };
    let double_quant = tensors.find(&format!("{name}.nested_absmax")).is_some();
    Ok(Format::Quant(QuantFormat { quant_type, blocksize, double_quant }))
}

/// The format of a tensor of floats. 64-bit floats are held in 32.
fn dense_format(name: &str, stored: Stored, wanted: &[usize]) -> Result<Format, ModelError> {
    let dtype = match stored.dtype {
        TensorDtype::F16 => DType::F16,
        TensorDtype::BF16 => DType::Bf16,
        TensorDtype::F32 | TensorDtype::F64 => DType::F32,
        other => {
            return Err(ModelError::Dtype {
                tensor: name.into(),
                file: stored.file,
                dtype: other.to_string(),
                instead:
                    "weights must be floats of at least 16 bits, or 4-bit with a bitsandbytes quant state"
                        .into(),
            });
        }
    };
    check_shape(name, stored, wanted)?;
    Ok(Format::Dense(dtype))
}

/// Checks a tensor's shape.
///
/// # Errors
/// [`ModelError::Shape`].
pub(crate) fn check_shape(name: &str, stored: Stored, wanted: &[usize]) -> Result<(), ModelError> {
    if stored.shape == wanted {
        return Ok(());
    }
    Err(ModelError::Shape {
        tensor: name.into(),
        file: stored.file,
        found: stored.shape,
        wanted: wanted.to_vec(),
    })
}
