//! What the devices of this machine do in a second: measured once for each device and driver, and kept.

mod probe;

use crate::devices::Candidate;
use crate::{Error, FourBitCache, LoadOptions};
use halfbyte_backend::{Backend, DeviceKind};
use halfbyte_checkpoint::hub::{HubOptions, four_bit_cache_dir};
use halfbyte_placement::{Device, DeviceClass};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What a device does in a second, as far as it was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Rates {
    /// Bytes of 4-bit weights that it reads for a single token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes_per_second: Option<f64>,
    /// Of a GPU, bytes of 4-bit weights that reach it from the CPU's memory, laid out anew on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_bytes_per_second: Option<f64>,
    /// Multiplications and additions of 4-bit products, for many tokens at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub products_per_second: Option<f64>,
}

/// `never`: nothing is measured, and the planner goes by the kind of a device alone. `again`: what is kept is measured
/// anew. A `.json` file: the rates in it by device, as a plan reports them, to see how a model would live elsewhere.
const VARIABLE: &str = "HALFBYTE_RATES";

/// Where the rates of devices come from.
enum From {
    Nowhere,
    /// What is kept; what is not is measured.
    Here {
        again: bool,
    },
    Stated(BTreeMap<String, Rates>),
}

impl From {
    fn environment() -> Result<Self, Error> {
        match std::env::var(VARIABLE).as_deref() {
            Err(_) | Ok("" | "auto") => Ok(Self::Here { again: false }),
            Ok("again") => Ok(Self::Here { again: true }),
            Ok("never") => Ok(Self::Nowhere),
            Ok(file) if file.ends_with(".json") => {
                let wrong = |why: String| Error::Usage(format!("{VARIABLE}={file}: {why}"));
                let text = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
                let stated: BTreeMap<String, Rates> =
                    serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
                match stated.iter().find(|(_, rates)| !rates.are_sensible()) {
                    Some((name, _)) => Err(wrong(format!("a rate of {name} is not above 0"))),
                    None => Ok(Self::Stated(stated)),
                }
            }
            Ok(other) => {
                Err(Error::Usage(format!("{VARIABLE}={other}: expected auto, again, never or a .json file")))
            }
        }
    }
}

impl Rates {
    /// What the planner was told of a device.
    pub(crate) fn of(device: &Device) -> Option<Self> {
        let rates = Self {
            read_bytes_per_second: device.rate,
            upload_bytes_per_second: device.upload,
            products_per_second: device.products,
        };
        (rates != Self::default()).then_some(rates)
    }

    fn are_sensible(&self) -> bool {
        let all = [self.read_bytes_per_second, self.upload_bytes_per_second, self.products_per_second];
        all.into_iter().flatten().all(|rate| rate.is_finite() && rate > 0.0)
    }

    fn tell(&self, device: &mut Device) {
        device.rate = self.read_bytes_per_second;
        device.upload = self.upload_bytes_per_second;
        device.products = self.products_per_second;
    }
}

/// Tells the planner the rates of all candidates, where a choice depends on them: where there is a GPU beside the CPU.
///
/// # Errors
/// What is wrong with `HALFBYTE_RATES`. What cannot be measured stays unknown.
pub(crate) async fn tell(candidates: &mut [Candidate], options: &LoadOptions) -> Result<(), Error> {
    let from = From::environment()?;
    let is = |kind: DeviceClass| move |one: &Candidate| one.device.kind == kind;
    let host = candidates.iter().position(is(DeviceClass::Cpu));
    let choice = candidates.iter().any(is(DeviceClass::Gpu));
    let again = match from {
        From::Nowhere => return Ok(()),
        From::Stated(stated) => {
            for candidate in candidates.iter_mut() {
                if let Some(rates) = stated.get(&candidate.device.name) {
                    rates.tell(&mut candidate.device);
                }
            }
            tell_disk(candidates);
            return Ok(());
        }
        From::Here { again } => again,
    };
    let (Some(host), true) = (host, choice) else { return Ok(()) };
    let dir = dir(options);
    let files: Vec<Option<PathBuf>> =
        candidates.iter().map(|one| dir.as_deref().map(|dir| file(dir, &*one.backend))).collect();
    let mut rates: Vec<Option<Rates>> =
        files.iter().map(|file| file.as_deref().filter(|_| !again).and_then(read)).collect();
    let missing = |rates: &[Option<Rates>]| -> Vec<usize> {
        let devices = 0..candidates.len();
        devices.filter(|&at| rates[at].is_none() && candidates[at].device.kind != DeviceClass::Disk).collect()
    };
    let missing = missing(&rates);
    if !missing.is_empty() {
        let start = Instant::now();
        let host = &*candidates[host].backend;
        for &at in &missing {
            let found = probe::measure(&*candidates[at].backend, host).await;
            rates[at] = Some(found);
            // A folder that cannot be written to costs the time of measuring again.
            if let (Some(file), true) = (&files[at], found.are_whole(candidates[at].device.kind)) {
                _ = write(file, &found);
            }
        }
        tracing::info!("measured the rates of {} devices in {:.1?}", missing.len(), start.elapsed());
    }
    for (candidate, rates) in candidates.iter_mut().zip(rates) {
        if let Some(rates) = rates {
            rates.tell(&mut candidate.device);
        }
    }
    tell_disk(candidates);
    Ok(())
}

/// What lies on a disk the CPU multiplies. How fast a disk is nobody knows before it was read once.
fn tell_disk(candidates: &mut [Candidate]) {
    let cpu = candidates.iter().find(|one| one.device.kind == DeviceClass::Cpu);
    let products = cpu.and_then(|one| one.device.products);
    for disk in candidates.iter_mut().filter(|one| one.device.kind == DeviceClass::Disk) {
        disk.device.products = disk.device.products.or(products);
    }
}

impl Rates {
    /// Whether nothing that can be measured is missing.
    fn are_whole(&self, kind: DeviceClass) -> bool {
        let link = self.upload_bytes_per_second.is_some() || kind != DeviceClass::Gpu;
        self.read_bytes_per_second.is_some() && self.products_per_second.is_some() && link
    }
}

/// Where measured rates are kept; `None` where nothing is to be kept.
fn dir(options: &LoadOptions) -> Option<PathBuf> {
    if options.four_bit_cache == FourBitCache::Never
        || std::env::var("HALFBYTE_CACHE").is_ok_and(|text| text == "never")
    {
        return None;
    }
    let hub = HubOptions { cache_dir: options.cache_dir.clone(), ..HubOptions::default() };
    Some(four_bit_cache_dir(&hub)?.join("rates"))
}

/// The file of a device, its driver, its own way to compute, and this version of the program.
fn file(dir: &Path, backend: &dyn Backend) -> PathBuf {
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
    let name: String = key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    dir.join(format!("{}.json", name.chars().take(200).collect::<String>()))
}

/// What was kept, if it is there, whole, and made of sensible numbers.
fn read(file: &Path) -> Option<Rates> {
    let rates: Rates = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    (rates.are_sensible() && rates != Rates::default()).then_some(rates)
}

/// Keeps rates, by rename: no reader sees half of them.
fn write(file: &Path, rates: &Rates) -> std::io::Result<()> {
    let part = file.with_extension(format!("{}.part", std::process::id()));
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let written =
        std::fs::write(&part, serde_json::to_vec_pretty(rates)?).and_then(|()| std::fs::rename(&part, file));
    if written.is_err() {
        _ = std::fs::remove_file(&part);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_cpu::CpuBackend;

    #[test]
    fn what_is_kept_is_read_and_what_is_broken_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(&folder.path().join("rates"), &CpuBackend::scalar());
        assert_eq!(read(&file), None);
        let rates = Rates {
            read_bytes_per_second: Some(2e10),
            products_per_second: Some(1.5e11),
            ..Rates::default()
        };
        write(&file, &rates).unwrap();
        assert_eq!(read(&file), Some(rates));
        assert!(rates.are_whole(DeviceClass::Cpu) && !rates.are_whole(DeviceClass::Gpu));
        for broken in ["", "{}", "{\"read_bytes_per_second\": -1}", "{\"read_bytes_per_second\": \"fast\"}"] {
            std::fs::write(&file, broken).unwrap();
            assert_eq!(read(&file), None, "{broken}");
        }
    }

    #[test]
    fn a_processor_can_be_measured_and_nothing_stays() {
        let cpu = CpuBackend::new().unwrap();
        let before = cpu.ledger().footprint();
        let rates = pollster::block_on(probe::measure(&cpu, &cpu));
        println!("{rates:?}");
        assert!(rates.are_sensible() && rates.are_whole(DeviceClass::Cpu), "{rates:?}");
        assert_eq!(rates.upload_bytes_per_second, None);
        assert_eq!(cpu.ledger().footprint(), before);
    }
}
