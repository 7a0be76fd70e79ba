//! The conformance table on the devices of this machine.

use crate::devices::{open_all, open_named};
use crate::{Error, LoadOptions};
use halfbyte_backend::Backend;
use halfbyte_backend::conformance::{self, Outcome, Verdict};
use halfbyte_cpu::{CpuBackend, CpuOptions, Math};
use std::rc::Rc;

/// One case on one device.
#[derive(Debug, Clone, serde::Serialize)]
pub struct DoctorCase {
    /// The device; the CPU's fast arithmetic is `cpu fast`.
    pub device: String,
    /// The step, a row of the table.
    pub step: String,
    /// The case.
    pub case: String,
    /// `passed`, `failed: why`, `unsupported: what`.
    pub result: String,
    /// Worst relative error.
    pub error: f64,
    /// The largest error that passes.
    pub tolerance: f64,
}

/// One device's counts.
#[derive(Debug, Clone, serde::Serialize)]
pub struct DoctorDevice {
    /// The device.
    pub device: String,
    /// The maker's name for it.
    pub adapter: String,
    /// Cases that passed.
    pub passed: usize,
    /// Cases that failed.
    pub failed: usize,
    /// Cases that the device cannot run.
    pub unsupported: usize,
}

/// All devices.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct DoctorReport {
    /// Cases that passed, on all devices.
    pub passed: usize,
    /// Cases that failed.
    pub failed: usize,
    /// Cases that a device cannot run.
    pub unsupported: usize,
    /// Counts by device.
    pub devices: Vec<DoctorDevice>,
    /// Every case.
    pub cases: Vec<DoctorCase>,
    /// Kinds of device that were looked for and not found, a sentence each.
    pub absent: Vec<String>,
}

/// Runs the conformance table of every fused step on every device here, or only on `device`, against the
/// scalar CPU code. `on_case` sees each case as it ends.
///
/// # Errors
/// If there is no such device. Cases that fail are in the report.
pub fn doctor(device: Option<&str>, on_case: &mut dyn FnMut(&DoctorCase)) -> Result<DoctorReport, Error> {
    pollster::block_on(async {
        let reference = CpuBackend::scalar();
        let options = LoadOptions { cpu_math: Some(Math::Exact), ..LoadOptions::default() };
        let found = match device {
            Some(name) => open_named(name, &options).await?,
            None => open_all(&options).await?,
        };
        // The table's tolerances are those of exact arithmetic; the CPU is looked at in both.
        let fast: Rc<dyn Backend> =
            Rc::new(CpuBackend::with(CpuOptions { math: Some(Math::Fast), ..CpuOptions::default() })?);
        let subjects = found.backends.iter().map(|backend| (backend, None));
        let subjects = subjects.chain([(&fast, Some(Math::Fast))]);
        let mut report = DoctorReport::default();
        report.absent.clone_from(&found.absent);
        report.absent.extend(found.failed.iter().map(|(_, fault)| fault.to_string()));
        for (backend, math) in subjects {
            let info = backend.info();
            if device.is_some_and(|name| name != info.name) {
                continue;
            }
            let name = math.map_or_else(|| info.name.clone(), |math| format!("{} {math}", info.name));
            let mut cases = Vec::new();
            let mut seen = |outcome: &Outcome| {
                let case = DoctorCase {
                    device: name.clone(),
                    step: outcome.step.to_owned(),
                    case: outcome.case.clone(),
                    result: match &outcome.result {
                        Verdict::Passed => "passed".to_owned(),
                        Verdict::Failed(why) => format!("failed: {why}"),
                        Verdict::Unsupported(what) => format!("unsupported: {what}"),
                    },
                    error: outcome.error,
                    tolerance: outcome.tolerance,
                };
                on_case(&case);
                cases.push(case);
            };
            let table = match math {
                None => conformance::run(&reference, &**backend, &mut seen).await,
                Some(_) => {
                    conformance::run_products(&Math::fast_tolerance, &reference, &**backend, &mut seen).await
                }
            };
            report.passed += table.passed();
            report.failed += table.failed();
            report.unsupported += table.unsupported();
            report.cases.append(&mut cases);
            report.devices.push(DoctorDevice {
                device: name,
                adapter: info.adapter.clone(),
                passed: table.passed(),
                failed: table.failed(),
                unsupported: table.unsupported(),
            });
        }
        match (report.devices.is_empty(), device) {
            (true, Some(name)) => Err(found.lacks(name)),
            _ => Ok(report),
        }
    })
}
