//! Allocation that fails as a value.

/// An allocation that did not succeed: the bytes that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shortage(pub u64);

/// `len` zeros. The memory is touched, so that it is really there afterwards.
pub(crate) fn zeroed<T: Copy + Default>(len: usize) -> Result<Vec<T>, Shortage> {
    let mut buffer = Vec::new();
    buffer
        .try_reserve_exact(len)
        .map_err(|_| Shortage((len as u64).saturating_mul(size_of::<T>() as u64)))?;
    buffer.resize(len, T::default());
    Ok(buffer)
}
