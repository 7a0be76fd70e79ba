//! `halfbyte doctor`: the conformance table on every device here.

use super::{print_json, print_table, say};
use crate::args::DoctorArgs;
use crate::table::Table;
use halfbyte::{DoctorCase, Error};
use serde_json::json;

/// Runs the table; exit code 1 if any case failed.
pub fn run(args: &DoctorArgs) -> Result<(), Error> {
    let json = args.json;
    let mut step = Step::default();
    let report = halfbyte::doctor(args.device.as_deref(), &mut |case| {
        if json {
            return;
        }
        if args.cases || case.result.starts_with("failed") {
            say(&format!(
                "{:8} {:16} {:60} {} (error {:.1e}, allowed {:.1e})",
                case.device, case.step, case.case, case.result, case.error, case.tolerance
            ));
        }
        if !args.cases {
            step.see(case);
        }
    })?;
    step.end();
    if json {
        print_json(&json!({
            "passed": report.passed,
            "failed": report.failed,
            "unsupported": report.unsupported,
            "cases": report.cases,
            "absent": report.absent,
        }))?;
    } else {
        let mut table = Table::new(&["device", "adapter", "passed", "failed", "unsupported"]);
        for device in &report.devices {
            table.row([
                device.device.clone(),
                device.adapter.clone(),
                device.passed.to_string(),
                device.failed.to_string(),
                device.unsupported.to_string(),
            ]);
        }
        print_table(&table)?;
        for absent in &report.absent {
            say(&format!("note: {absent}"));
        }
    }
    if report.failed > 0 {
        return Err(Error::Usage(format!(
            "{} of {} cases failed: please report this with the lines above",
            report.failed,
            report.passed + report.failed
        )));
    }
    Ok(())
}

/// The cases of one step on one device, which follow each other.
#[derive(Default)]
struct Step {
    device: String,
    name: String,
    passed: usize,
    failed: usize,
    unsupported: usize,
    worst: f64,
    allowed: f64,
}

impl Step {
    /// Counts a case; the first of the next step ends this one.
    fn see(&mut self, case: &DoctorCase) {
        if (&self.device, &self.name) != (&case.device, &case.step) {
            self.end();
            *self = Self { device: case.device.clone(), name: case.step.clone(), ..Self::default() };
        }
        match case.result.split(':').next() {
            Some("passed") => self.passed += 1,
            Some("unsupported") => self.unsupported += 1,
            _ => self.failed += 1,
        }
        // The case that came nearest to what is allowed.
        if case.error * self.allowed >= self.worst * case.tolerance {
            (self.worst, self.allowed) = (case.error, case.tolerance);
        }
    }

    /// Says what was counted.
    fn end(&self) {
        if self.name.is_empty() {
            return;
        }
        let more = |count: usize, what: &str| {
            if count == 0 { String::new() } else { format!(", {count} {what}") }
        };
        say(&format!(
            "{:9} {:16} {:3} passed{}{} (worst error {:.1e} of {:.1e} allowed)",
            self.device,
            self.name,
            self.passed,
            more(self.failed, "failed"),
            more(self.unsupported, "unsupported"),
            self.worst,
            self.allowed
        ));
    }
}
