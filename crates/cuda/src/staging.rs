//! Uploads through small staging buffers.

use crate::guard::{caught, fault};
use crate::kernels::scatter::{UNITS, scatter};
use crate::layout::STAGING;
use cubecl::prelude::*;
use cubecl::server::Handle;
use halfbyte_backend::Fault;

/// Writes host bytes into device buffers that exist already. CubeCL creates buffers from bytes but does not
/// write into old ones, so a kernel moves them; staging buffers have power-of-two sizes up to
/// [`STAGING`]` / 2`, so that the pool keeps at most one of each: [`STAGING`] bytes together.
pub(crate) struct Uploader<'a, R: Runtime> {
    pub device: &'a str,
    pub client: &'a ComputeClient<R>,
}

impl<R: Runtime> Uploader<'_, R> {
    /// Writes `bytes`, padded to a multiple of 16, to the beginning of `to`, and counts the launches.
    pub(crate) fn write(&self, to: &Handle, bytes: &[u8]) -> Result<u64, Fault> {
        self.write_rows(to, bytes, 1, 0, 1)
    }

    /// Writes rows of `quads` times 16 bytes to rows `at`, `at + step`, ... of `to`.
    pub(crate) fn write_rows(
        &self,
        to: &Handle,
        bytes: &[u8],
        quads: usize,
        at: usize,
        step: usize,
    ) -> Result<u64, Fault> {
        let row_bytes = quads * 16;
        let chunk_rows = Self::chunk_rows(quads);
        let mut launches = 0;
        for (index, chunk) in bytes.chunks(chunk_rows * row_bytes).enumerate() {
            self.write_chunk(to, chunk, quads, at + index * chunk_rows * step, step)?;
            launches += 1;
        }
        Ok(launches)
    }

    /// Rows of `quads` times 16 bytes that are staged at once.
    pub(crate) fn chunk_rows(quads: usize) -> usize {
        (STAGING as usize / 2 / (quads * 16)).max(1)
    }

    /// A buffer of its own that holds `bytes`, in a power of two.
    pub(crate) fn stage(&self, bytes: &[u8]) -> Result<Handle, Fault> {
        let mut staged = Vec::with_capacity(bytes.len().next_power_of_two().max(512));
        staged.extend_from_slice(bytes);
        staged.resize(bytes.len().next_power_of_two().max(512), 0);
        persistent(self.device, self.client, || self.client.create_from_slice(&staged))
    }

    fn write_chunk(
        &self,
        to: &Handle,
        chunk: &[u8],
        quads: usize,
        at: usize,
        step: usize,
    ) -> Result<(), Fault> {
        let count = chunk.len().div_ceil(16) as u32;
        let cubes = count.div_ceil(UNITS);
        let (x, y) = if cubes <= 0x8000 { (cubes, 1) } else { (0x8000, cubes.div_ceil(0x8000)) };
        let capacity = to.size_in_used() as usize / 16;
        let last = at + (count as usize).div_ceil(quads).saturating_sub(1) * step;
        if last * quads + quads.min(count as usize) > capacity {
            return Err(Fault::Internal(format!("row {last} of {quads} quads in a buffer of {capacity}")));
        }
        let staging = self.stage(chunk)?;
        let staged = staging.size_in_used() as usize / 16;
        caught(self.device, || {
            // SAFETY: `count` quads are staged, and the last row that they go to is within `to`.
            unsafe {
                scatter::launch_unchecked::<R>(
                    self.client,
                    CubeCount::Static(x, y, 1),
                    CubeDim::new_1d(UNITS),
                    ArrayArg::from_raw_parts(staging, staged),
                    ArrayArg::from_raw_parts(to.clone(), capacity),
                    quads as u32,
                    at as u32,
                    step as u32,
                    count,
                );
            }
        })
    }
}

/// Allocates in `allocate` exactly what is asked for: CubeCL's other pools round up to pages.
pub(crate) fn persistent<R: Runtime, T: Send>(
    device: &str,
    client: &ComputeClient<R>,
    allocate: impl FnOnce() -> T + Send,
) -> Result<T, Fault> {
    caught(device, || client.memory_persistent_allocation((), |()| allocate()))?
        .map_err(|error| fault(device, "allocation", &error))
}
