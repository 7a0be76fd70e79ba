//! What the devices of this machine do in a second: measured once for each device and driver, and kept.

mod disk;
mod kept;
mod probe;
mod steadiness;

use crate::devices::Candidate;
use crate::planning::Planning;
use crate::{Error, LoadOptions};
pub(crate) use disk::tell_kept;
use halfbyte_placement::{Device, DeviceClass};
use kept::{Kept, dir, file, read, write};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// What a device does in a second, as far as it was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Rates {
    /// Bytes of 4-bit weights that it reads for a single token; of a disk, bytes of files that memory does not keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes_per_second: Option<f64>,
    /// Of a GPU, bytes of 4-bit weights that reach it from the CPU's memory, laid out anew on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_bytes_per_second: Option<f64>,
    /// Multiplications and additions of 4-bit products, for many tokens at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub products_per_second: Option<f64>,
}

/// Who says how fast a device is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RateSource {
    /// It was measured here.
    Measured,
    /// A file that `HALFBYTE_RATES` names.
    Stated,
    /// Nobody: the planner goes by its kind.
    #[default]
    Assumed,
}

impl RateSource {
    /// As a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Stated => "stated",
            Self::Assumed => "assumed",
        }
    }
}

/// Where the rates of a device come from, and whether they are to be trusted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rated {
    pub(crate) source: RateSource,
    /// What disturbed the measurement, if it is to be made again at the next start.
    pub(crate) disturbed: Option<String>,
    /// Whether that was at this start.
    is_fresh: bool,
}

impl Rated {
    fn measured(kept: &Kept, is_fresh: bool) -> Self {
        Self { source: RateSource::Measured, disturbed: kept.disturbed_still(), is_fresh }
    }
}

/// `never`: nothing is measured, and the planner goes by the kind of a device alone. `again`: what is kept is measured
/// anew. A `.json` file: the rates in it by device, as a plan reports them, to see how a model would live elsewhere.
const VARIABLE: &str = "HALFBYTE_RATES";

/// Where the rates of devices come from.
enum Source {
    Nowhere,
    /// What is kept; what is not is measured.
    Here {
        again: bool,
    },
    Stated(BTreeMap<String, Rates>),
}

impl Source {
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

    /// Whether nothing that can be measured is missing.
    fn are_whole(&self, kind: DeviceClass) -> bool {
        let link = self.upload_bytes_per_second.is_some() || kind != DeviceClass::Gpu;
        let products = self.products_per_second.is_some() || kind == DeviceClass::Disk;
        self.read_bytes_per_second.is_some() && products && link
    }

    fn tell(&self, device: &mut Device) {
        device.rate = self.read_bytes_per_second;
        device.upload = self.upload_bytes_per_second;
        device.products = self.products_per_second;
    }
}

impl Candidate {
    fn tell(&mut self, kept: &Kept, is_fresh: bool) {
        kept.rates.tell(&mut self.device);
        self.rated = Rated::measured(kept, is_fresh);
    }

    /// Whether its rate is still to be measured, or once more.
    fn is_open(&self) -> bool {
        self.device.rate.is_none() || (self.rated.disturbed.is_some() && !self.rated.is_fresh)
    }
}

/// Tells the planner the rates of all candidates but the disk's: those that are stated or kept, and where a choice depends
/// on them, since there is a GPU beside the CPU, measured ones.
///
/// # Errors
/// What is wrong with `HALFBYTE_RATES`. What cannot be measured stays unknown.
pub(crate) async fn tell(candidates: &mut [Candidate], options: &LoadOptions) -> Result<(), Error> {
    let again = match Source::environment()? {
        Source::Nowhere => return Ok(()),
        Source::Stated(stated) => {
            for candidate in candidates.iter_mut() {
                if let Some(rates) = stated.get(&candidate.device.name) {
                    rates.tell(&mut candidate.device);
                    candidate.rated.source = RateSource::Stated;
                }
            }
            disk::tell_products(candidates);
            return Ok(());
        }
        Source::Here { again } => again,
    };
    let is = |kind: DeviceClass| move |one: &Candidate| one.device.kind == kind;
    let choice = candidates.iter().any(is(DeviceClass::Cpu)) && candidates.iter().any(is(DeviceClass::Gpu));
    let devices: Vec<usize> =
        (0..candidates.len()).filter(|&at| !is(DeviceClass::Disk)(&candidates[at])).collect();
    tell_these(candidates, &devices, options, again, choice).await;
    Ok(())
}

/// Measures what a plan rests on and nobody has measured yet, where it puts blocks on the disk, so that how slow that is
/// can be said, or where it is `shown` to somebody.
///
/// # Errors
/// As [`tell`].
pub(crate) fn complete(planning: &mut Planning, shown: bool) -> Result<(), Error> {
    let Source::Here { again } = Source::environment()? else { return Ok(()) };
    let devices = planning.devices();
    let Ok(plan) = halfbyte_placement::plan(&devices, &planning.costs(), &planning.request) else {
        return Ok(());
    };
    let used: BTreeSet<usize> = plan.stages.iter().map(|stage| stage.device).collect();
    let is_disk = |at: usize| devices[at].kind == DeviceClass::Disk;
    if !shown && !used.iter().any(|&at| is_disk(at)) {
        return Ok(());
    }
    let open = used.iter().copied().filter(|&at| planning.candidates[at].is_open());
    let (disks, others): (Vec<usize>, Vec<usize>) = open.partition(|&at| is_disk(at));
    let options = planning.options.clone();
    pollster::block_on(tell_these(&mut planning.candidates, &others, &options, again, true));
    for disk in disks {
        disk::measure(planning, disk, again);
    }
    Ok(())
}

/// Tells the rates of these devices that are kept and, where it `may_measure`, of the others.
async fn tell_these(
    candidates: &mut [Candidate],
    devices: &[usize],
    options: &LoadOptions,
    again: bool,
    may_measure: bool,
) {
    let host = candidates.iter().position(|one| one.device.kind == DeviceClass::Cpu);
    let (dir, start) = (dir(options), Instant::now());
    let mut measured = 0;
    for &at in devices {
        let file = dir.as_deref().map(|dir| file(dir, &*candidates[at].backend));
        let before = file.as_deref().filter(|_| !again).and_then(read);
        let may_measure = may_measure && !candidates[at].rated.is_fresh;
        let kept = match (before, host) {
            (Some(kept), _) if !may_measure || kept.disturbed_still().is_none() => kept,
            (before, Some(host)) if may_measure => {
                measured += 1;
                let found = probe::measure(&*candidates[at].backend, &*candidates[host].backend).await;
                let kept = found.after(before);
                // A folder that cannot be written to costs the time of measuring again.
                if let (Some(file), true) = (&file, kept.rates.are_whole(candidates[at].device.kind)) {
                    _ = write(file, &kept);
                }
                kept
            }
            _ => continue,
        };
        candidates[at].tell(&kept, may_measure);
        if let Some(why) = kept.disturbed_still().filter(|_| may_measure) {
            tracing::info!("{}: {}", candidates[at].device.name, words(&why));
        }
    }
    disk::tell_products(candidates);
    if measured > 0 {
        tracing::info!("measured the rates of {measured} devices in {:.1?}", start.elapsed());
    }
}

/// That rates are not to be trusted, and why.
pub(crate) fn words(disturbed: &str) -> String {
    format!("its rates were taken while {disturbed}: they are measured again at the next start")
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_backend::Backend;
    use halfbyte_cpu::CpuBackend;

    #[test]
    fn a_processor_can_be_measured_and_nothing_stays() {
        let cpu = CpuBackend::new().unwrap();
        let before = cpu.ledger().footprint();
        let Kept { rates, .. } = pollster::block_on(probe::measure(&cpu, &cpu));
        println!("{rates:?}");
        assert!(rates.are_sensible() && rates.are_whole(DeviceClass::Cpu), "{rates:?}");
        assert_eq!(rates.upload_bytes_per_second, None);
        assert_eq!(cpu.ledger().footprint(), before);
    }
}
