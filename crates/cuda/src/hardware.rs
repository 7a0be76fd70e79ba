//! What kernels are fitted to.

use crate::kernels::linear_cores::Cores;
use crate::kernels::variant::{Lookup, Team};
use cubecl::ir::features::{MmaConfig, Plane};
use cubecl::ir::{ElemType, FloatKind, StorageType};
use cubecl::prelude::*;

/// Rows of the matrix for each team where multiprocessors are unknown: those are wgpu's adapters, here mostly
/// software, for which more code is more to compile.
const SOFTWARE_ROWS: usize = 2;

/// A device as far as launches depend on it.
#[derive(Debug, Clone)]
pub(crate) struct Hardware {
    /// Its name, for errors.
    pub device: String,
    /// How the units of a cube sum together.
    pub team: Team,
    /// Multiprocessors, where that is known.
    pub multiprocessors: Option<u32>,
    /// Units of the widest cubes.
    pub wide_units: usize,
    /// Units of a cube that draws: its histograms are 64 bytes of shared memory a unit.
    pub draw_units: usize,
    /// Rows of `x` in a tile of the tiled product.
    pub tile_batch: usize,
    /// Cubes along each dimension at most.
    pub cubes: [u32; 3],
    pub lookup: Lookup,
    /// How products of many rows use tensor cores, where they do.
    pub cores: Option<Cores>,
}

impl Hardware {
    /// Asks `client`.
    pub(crate) fn of<R: Runtime>(device: &str, client: &ComputeClient<R>) -> Self {
        let hardware = &client.properties().hardware;
        let planes = client.features().plane.contains(Plane::Ops).then(|| plane_size(client)).flatten();
        let roomy = hardware.max_shared_memory_size >= 20 << 10;
        Self {
            device: device.to_owned(),
            team: Team::of(planes),
            multiprocessors: hardware.num_streaming_multiprocessors,
            wide_units: if hardware.max_units_per_cube >= 1024 && planes.is_some() { 1024 } else { 256 },
            draw_units: if hardware.max_shared_memory_size >= 44 << 10 { 512 } else { 128 },
            tile_batch: if roomy { 64 } else { 32 },
            cubes: hardware.max_cube_count.into(),
            lookup: wanted_lookup(std::env::var("HALFBYTE_CUDA_LOOKUP").ok().as_deref(), planes),
            cores: None,
        }
    }

    /// Rows of the matrix for each team where there is one row of `x`: four, or fewer where the matrix would not
    /// give every multiprocessor four cubes.
    pub(crate) fn tile_rows(&self, rows: usize) -> usize {
        let Some(multiprocessors) = self.multiprocessors else { return SOFTWARE_ROWS };
        let wanted = 4 * multiprocessors as usize;
        [4, 2].into_iter().find(|tile| rows / (self.team.teams * tile) >= wanted).unwrap_or(1)
    }

    /// Rows of the matrix for each team where there are some rows of `x`.
    pub(crate) fn few_rows(&self) -> usize {
        if self.multiprocessors.is_some() { 2 } else { 1 }
    }
}

/// How products of many rows may use tensor cores, where the device has any for halves and planes of 32 (NVIDIA's and
/// AMD's). `wanted` is `off`, or `half` for numbers in one half each, which is faster and rounds to 11 bits.
pub(crate) fn offered_cores<R: Runtime>(client: &ComputeClient<R>, wanted: Option<&str>) -> Option<Cores> {
    let float = |kind| StorageType::Scalar(ElemType::Float(kind));
    let (half, single) = (float(FloatKind::F16), float(FloatKind::F32));
    let product = MmaConfig { a_type: half, b_type: half, cd_type: single, m: 16, n: 16, k: 16 };
    let hardware = &client.properties().hardware;
    let offered = client.features().matmul.cmma.contains(&product)
        && plane_size(client) == Some(32)
        && hardware.max_shared_memory_size >= 44 << 10;
    let split = wanted != Some("half");
    (offered && wanted != Some("off")).then_some(Cores { split, ..Cores::GPU })
}

/// Copies of the table of pairs for planes of 32: a pair is two banks, so 16 fill all.
pub(crate) const PAIR_COPIES: usize = 16;

/// `HALFBYTE_CUDA_LOOKUP=pairs` asks for the table of pairs, where planes are wide enough to gain by it.
fn wanted_lookup(wanted: Option<&str>, planes: Option<usize>) -> Lookup {
    match (wanted, planes) {
        (Some("pairs"), Some(32..)) => Lookup::Pairs { copies: PAIR_COPIES },
        _ => Lookup::Table,
    }
}

/// Units of a plane, if all planes have that many and a cube holds them.
pub(crate) fn plane_size<R: Runtime>(client: &ComputeClient<R>) -> Option<usize> {
    let hardware = &client.properties().hardware;
    let size = hardware.plane_size_min;
    let known = size == hardware.plane_size_max && size.is_power_of_two() && (4..=64).contains(&size);
    known.then_some(size as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_for_whom_they_are_asked() {
        assert_eq!(wanted_lookup(Some("pairs"), Some(32)), Lookup::Pairs { copies: 16 });
        assert_eq!(wanted_lookup(Some("pairs"), Some(8)), Lookup::Table);
        assert_eq!(wanted_lookup(None, Some(32)), Lookup::Table);
    }

    #[test]
    fn small_matrices_are_spread_over_more_cubes() {
        let mut hardware = Hardware {
            device: "cuda:0".into(),
            team: Team::of(Some(32)),
            multiprocessors: Some(132),
            wide_units: 1024,
            draw_units: 512,
            tile_batch: 64,
            cubes: [u32::MAX, 65535, 65535],
            lookup: Lookup::Table,
            cores: None,
        };
        assert_eq!([4096, 11008, 22016, 128_256].map(|rows| hardware.tile_rows(rows)), [1, 2, 4, 4]);
        hardware.multiprocessors = None;
        assert_eq!(hardware.tile_rows(64), SOFTWARE_ROWS);
    }
}
