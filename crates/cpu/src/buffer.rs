//! Allocation that fails as a value.

use crate::pages;
use halfbyte_allocation::handled;
use halfbyte_quant::threads::each;
use std::mem::MaybeUninit;

/// Bytes of a page, at least: the system gives memory page by page when each is first written.
const PAGE: usize = 4096;

/// Bytes from which it is worth while to let all threads take the pages.
const LARGE: usize = 4 << 20;

/// An allocation that did not succeed: the bytes that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shortage(pub u64);

/// `len` zeros. The memory is touched, so that it is really there afterwards.
pub(crate) fn zeroed<T: Copy + Default + Send>(len: usize) -> Result<Vec<T>, Shortage> {
    let mut buffer = reserved(len)?;
    if len.saturating_mul(size_of::<T>()) >= LARGE {
        pages::ask_for_large(buffer.spare_capacity_mut());
    }
    settle(&mut buffer, len);
    Ok(buffer)
}

/// Room for `len` elements, to become zeros by [`settle`] once everything that is to lie beside them has room, too.
pub(crate) fn reserved<T>(len: usize) -> Result<Vec<T>, Shortage> {
    let mut buffer = Vec::new();
    handled(|| buffer.try_reserve_exact(len))
        .map_err(|_| Shortage((len as u64).saturating_mul(size_of::<T>() as u64)))?;
    Ok(buffer)
}

/// Fills `buffer`, which has room for them, up to `len` elements with zeros.
pub(crate) fn settle<T: Copy + Default + Send>(buffer: &mut Vec<T>, len: usize) {
    if len.saturating_mul(size_of::<T>()) >= LARGE {
        // Half the time of loading a model that is in the page cache would go into the kernel's work for each
        // page; the zeros are written after that, by one thread.
        let page = (PAGE / size_of::<T>().max(1)).max(1);
        each(buffer.spare_capacity_mut().chunks_mut(page * 64), |pages| {
            pages.chunks_mut(page).for_each(|page| page[0] = MaybeUninit::new(T::default()));
        });
    }
    buffer.resize(len, T::default());
}
