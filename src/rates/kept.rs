//! Rates from one start to the next.

use super::Rates;
use crate::{FourBitCache, LoadOptions};
use halfbyte_backend::{Backend, DeviceKind};
use halfbyte_checkpoint::hub::{HubOptions, four_bit_cache_dir};
use std::path::{Path, PathBuf};

/// Measurements in a row that something disturbed, after which the best of them are believed: a machine that is always
/// busy is as fast as they say.
const TRIES: u32 = 3;

/// Rates as they are kept, and whether to trust them.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Kept {
    #[serde(flatten)]
    pub rates: Rates,
    /// What disturbed the measurement, if anything did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disturbed: Option<String>,
    /// Measurements in a row that were disturbed.
    #[serde(default)]
    pub tries: u32,
}

impl Kept {
    pub(super) fn new(rates: Rates, disturbed: Option<String>) -> Self {
        let tries = u32::from(disturbed.is_some());
        Self { rates, disturbed, tries }
    }

    /// What disturbed the measurement, if it is to be made again at the next start.
    pub(super) fn disturbed_still(&self) -> Option<String> {
        self.disturbed.clone().filter(|_| self.tries < TRIES)
    }

    /// What to believe after a disturbed measurement `before`. Others only ever make a device look slower: of two
    /// disturbed figures the higher one is nearer to the truth.
    pub(super) fn after(self, before: Option<Self>) -> Self {
        let (Some(before), true) = (before, self.disturbed.is_some()) else { return self };
        let higher = |one: Option<f64>, other: Option<f64>| one.into_iter().chain(other).reduce(f64::max);
        let (one, other) = (self.rates, before.rates);
        Self {
            rates: Rates {
                read_bytes_per_second: higher(one.read_bytes_per_second, other.read_bytes_per_second),
                upload_bytes_per_second: higher(one.upload_bytes_per_second, other.upload_bytes_per_second),
                products_per_second: higher(one.products_per_second, other.products_per_second),
            },
            disturbed: self.disturbed,
            tries: before.tries.saturating_add(1),
        }
    }
}

/// Where measured rates are kept; `None` where nothing is to be kept.
pub(super) fn dir(options: &LoadOptions) -> Option<PathBuf> {
    if options.four_bit_cache == FourBitCache::Never
        || std::env::var("HALFBYTE_CACHE").is_ok_and(|text| text == "never")
    {
        return None;
    }
    let hub = HubOptions { cache_dir: options.cache_dir.clone(), ..HubOptions::default() };
    Some(four_bit_cache_dir(&hub)?.join("rates"))
}

/// The file of a device, its driver, its own way to compute, and this version of the program.
pub(super) fn file(dir: &Path, backend: &dyn Backend) -> PathBuf {
    let info = backend.info();
    // Arithmetic, threads, kernels: a CPU's figures depend on all of them. A GPU's limits say nothing of speed.
    let limits = info.limits.iter().filter(|_| info.kind == DeviceKind::Cpu);
    let limits: Vec<String> = limits.map(|(name, value)| format!("{name} {value}")).collect();
    let key = format!(
        "{} {} {} {} {}",
        info.name,
        env!("CARGO_PKG_VERSION"),
        info.adapter,
        info.driver,
        limits.join(" ")
    );
    named(dir, &key)
}

/// The file of what is called so.
pub(super) fn named(dir: &Path, key: &str) -> PathBuf {
    let name: String = key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    dir.join(format!("{}.json", name.chars().take(200).collect::<String>()))
}

/// What was kept, if it is there, whole, and made of sensible numbers.
pub(super) fn read(file: &Path) -> Option<Kept> {
    let kept: Kept = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    (kept.rates.are_sensible() && kept.rates != Rates::default()).then_some(kept)
}

/// Keeps rates, by rename: no reader sees half of them.
pub(super) fn write(file: &Path, kept: &Kept) -> std::io::Result<()> {
    let part = file.with_extension(format!("{}.part", std::process::id()));
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let written =
        std::fs::write(&part, serde_json::to_vec_pretty(kept)?).and_then(|()| std::fs::rename(&part, file));
    if written.is_err() {
        _ = std::fs::remove_file(&part);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_cpu::CpuBackend;
    use halfbyte_placement::DeviceClass;

    fn rates(read: f64, products: f64) -> Rates {
        Rates { read_bytes_per_second: Some(read), products_per_second: Some(products), ..Rates::default() }
    }

    #[test]
    fn what_is_kept_is_read_and_what_is_broken_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(&folder.path().join("rates"), &CpuBackend::scalar());
        assert_eq!(read(&file), None);
        let rates = rates(2e10, 1.5e11);
        for disturbed in [None, Some("others worked".to_owned())] {
            let kept = Kept::new(rates, disturbed);
            write(&file, &kept).unwrap();
            assert_eq!(read(&file), Some(kept));
        }
        assert!(rates.are_whole(DeviceClass::Cpu) && !rates.are_whole(DeviceClass::Gpu));
        // As an earlier version wrote it.
        std::fs::write(&file, "{\"read_bytes_per_second\": 2e10, \"products_per_second\": 1.5e11}").unwrap();
        assert_eq!(read(&file), Some(Kept::new(rates, None)));
        for broken in ["", "{}", "{\"read_bytes_per_second\": -1}", "{\"read_bytes_per_second\": \"fast\"}"] {
            std::fs::write(&file, broken).unwrap();
            assert_eq!(read(&file), None, "{broken}");
        }
    }

    #[test]
    fn disturbed_rates_are_measured_again_and_believed_in_the_end() {
        let disturbed = |read, products| Kept::new(rates(read, products), Some("others worked".into()));
        let first = disturbed(1e10, 3e10);
        assert!(first.disturbed_still().is_some());
        let second = disturbed(2e10, 1e10).after(Some(first));
        assert_eq!((second.rates, second.tries), (rates(2e10, 3e10), 2));
        assert!(second.disturbed_still().is_some());
        // A quiet measurement counts alone, though it is lower.
        let quiet = Kept::new(rates(1.5e10, 2e10), None);
        assert_eq!(quiet.clone().after(Some(second.clone())), quiet);
        assert_eq!(quiet.disturbed_still(), None);
        let third = disturbed(1e10, 1e10).after(Some(second));
        assert_eq!((third.rates, third.disturbed_still()), (rates(2e10, 3e10), None));
    }
}
