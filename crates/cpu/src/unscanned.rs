//! Matrices in files that nobody has looked through for NaN and infinity.
//!
//! What is copied into memory, or quantized, is looked at on the way. A large matrix of floats that stays in its file would
//! be read from the disk for that alone. Instead the results of the steps that read it are looked at: a weight that is no
//! number spoils a result whenever it is used, and then the matrix is looked through to name it. Rows of an embedding that
//! no token takes are never used; an infinite weight may hide behind an activation or a cap that bounds it.

use crate::bound::BoundStep;
use crate::matrix::{Matrix, Tensor};
use crate::slots::Shared;
use halfbyte_backend::{DType, Fault, Reg};

/// The steps of a program over files whose matrices are still to be looked through, if a result gives reason to.
pub(crate) struct Unscanned(Vec<bool>);

impl Unscanned {
    /// Those of `steps` that read floats. Their matrices may be filled later.
    pub fn of(steps: &[BoundStep]) -> Self {
        let is_dense = |tensor: &Tensor| matches!(tensor, Tensor::Dense { .. });
        let has_floats = |matrix: &Shared<Matrix>| matrix.read().tensors.iter().any(is_dense);
        Self(steps.iter().map(|step| matrices(step).any(has_floats)).collect())
    }

    /// Looks through the matrices of step `index` if `result`, what it has written, is not finite. Where that is not
    /// because of one of them, the step is not asked for again.
    ///
    /// # Errors
    /// [`Fault::Source`] with the tensor that holds NaN or infinity.
    pub fn check(&mut self, index: usize, step: &BoundStep, result: &[f32]) -> Result<(), Fault> {
        // Summed up, so that there is no branch a value.
        let finite = || result.iter().fold(true, |all, value| all & value.is_finite());
        if !self.0[index] || finite() {
            return Ok(());
        }
        let special = |(dtype, bytes, _): &(DType, &[u8], &str)| !dtype.all_finite(bytes);
        for matrix in matrices(step) {
            if let Some((.., tensor)) = floats_in_files(&matrix.read()).find(special) {
                return Err(Fault::not_finite("disk", tensor));
            }
        }
        self.0[index] = false;
        Ok(())
    }
}

/// The register that a step writes; `None` for logits.
pub(crate) fn result(step: &BoundStep) -> Option<Reg> {
    match step {
        BoundStep::Embed { step, .. } => Some(step.out),
        BoundStep::Linear { step, .. } => Some(step.out),
        BoundStep::Attend { step, .. } => Some(step.out),
        BoundStep::Moe { step, .. } => Some(step.out),
        BoundStep::Head { .. } => None,
    }
}

/// All matrices that a step reads.
fn matrices(step: &BoundStep) -> Box<dyn Iterator<Item = &Shared<Matrix>> + '_> {
    match step {
        BoundStep::Embed { table, positions, types, .. } => {
            Box::new([Some(table), positions.as_ref(), types.as_ref()].into_iter().flatten())
        }
        BoundStep::Moe { router, experts, .. } => Box::new(
            std::iter::once(router).chain(experts.iter().flat_map(|(first, second)| [first, second])),
        ),
        BoundStep::Linear { weight, .. } | BoundStep::Head { weight, .. } => {
            Box::new(std::iter::once(weight))
        }
        BoundStep::Attend { .. } => Box::new(std::iter::empty()),
    }
}

/// The parts of a matrix that are floats in a file, with their names.
fn floats_in_files(matrix: &Matrix) -> impl Iterator<Item = (DType, &[u8], &str)> {
    matrix.tensors.iter().zip(&matrix.shape.segments).filter_map(|(tensor, segment)| match tensor {
        Tensor::Dense { dtype, bytes } => {
            bytes.file().map(|file| (*dtype, file.bytes(), segment.tensor.as_str()))
        }
        Tensor::Quant(_) | Tensor::Interleaved(_) | Tensor::Bytes(_) => None,
    })
}
