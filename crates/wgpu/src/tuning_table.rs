//! Which shapes suit which maker's GPUs.
//!
//! The shapes of NVIDIA's and Apple's GPUs are those that published kernels came to there: 32 lanes of 16 bytes, four
//! or eight rows a team. Where the table knows nothing, `tuning_measure` asks the device.

use crate::tuning::Tuning;
use halfbyte_backend::DeviceKind;

/// The shapes for an adapter by its maker's PCI id; `None` where nothing is known.
pub(crate) fn known(vendor: u32, kind: DeviceKind, subgroup: Option<u32>) -> Option<Tuning> {
    const AMD: u32 = 0x1002;
    const APPLE: u32 = 0x106b;
    const NVIDIA: u32 = 0x10de;
    if kind == DeviceKind::Software {
        return Some(Tuning::software(subgroup));
    }
    match vendor {
        // 4096 inputs staged at once: a processor has 100 to 228 KiB of workgroup memory.
        NVIDIA => Some(Tuning { staged: 1024, ..Tuning::gpu(subgroup) }),
        APPLE => Some(Tuning::gpu(subgroup)),
        // Reads of workgroup memory are as cheap as asking another lane, which goes through the same memory there.
        AMD => Some(Tuning { shuffle: false, ..Tuning::gpu(subgroup) }),
        // Intel's workgroup memory is slow beside its bandwidth, Qualcomm's subgroups are of 64 and 128 threads, and
        // of other makers nothing is published.
        _ => None,
    }
}

/// The closed set of shapes that are tried where nothing is known, the usual one first.
pub(crate) fn candidates(subgroup: Option<u32>) -> Vec<Tuning> {
    let usual = Tuning::gpu(subgroup);
    let mut all = vec![
        usual,
        Tuning { threads: 64, ..usual },
        Tuning { threads: 256, ..usual },
        Tuning { lanes: 16, ..usual },
        Tuning { staged: 1024, ..usual },
    ];
    if subgroup.is_some() {
        all.push(Tuning { shuffle: true, ..usual });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makers_that_are_known_are_not_measured() {
        for (vendor, staged) in [(0x10de, 1024), (0x106b, 512), (0x1002, 512)] {
            let tuning = Tuning { staged, ..Tuning::gpu(Some(32)) };
            assert_eq!(known(vendor, DeviceKind::DiscreteGpu, Some(32)), Some(tuning));
        }
        assert_eq!(known(0x8086, DeviceKind::IntegratedGpu, Some(8)), None);
        assert_eq!(known(0x8086, DeviceKind::Software, Some(8)), Some(Tuning::software(Some(8))));
    }

    #[test]
    fn shuffles_need_subgroups() {
        assert!(candidates(None).iter().all(|tuning| !tuning.shuffle));
        assert!(candidates(Some(16)).iter().any(|tuning| tuning.shuffle));
    }
}
