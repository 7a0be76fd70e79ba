//! `halfbyte doctor`: the conformance table on every device here.

use super::{print, print_json, say};
use crate::args::DoctorArgs;
use crate::table::Table;
use halfbyte::Error;
use serde_json::json;

/// Runs the table; exit code 1 if any case failed.
pub fn run(args: &DoctorArgs) -> Result<(), Error> {
    let json = args.json;
    let report = halfbyte::doctor(args.device.as_deref(), &mut |line| {
        if !json {
            say(&format!(
                "{:8} {:16} {:60} {} (error {:.1e}, allowed {:.1e})",
                line.device, line.step, line.case, line.result, line.error, line.tolerance
            ));
        }
    })?;
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
        print(&table.to_string())?;
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
