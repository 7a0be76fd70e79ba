//! `halfbyte devices`: every device of this machine.

use super::{print_json, print_table, say, watch};
use crate::args::DevicesArgs;
use crate::table::{Table, bytes};
use halfbyte::Error;
use serde_json::json;

/// Lists them with total and free memory; what is absent is said on stderr.
pub fn run(args: &DevicesArgs) -> Result<(), Error> {
    if args.watch {
        return watch::run(args);
    }
    let report = halfbyte::devices()?;
    if args.json {
        return print_json(&json!({ "devices": report.devices, "absent": report.absent }));
    }
    let size = |bytes_: Option<u64>| bytes_.map_or_else(|| "?".to_owned(), bytes);
    let mut table = Table::new(&["device", "adapter", "kind", "driver", "total", "free", "memory from"]);
    for device in &report.devices {
        table.row([
            device.device.clone(),
            device.adapter.clone(),
            device.kind_name().to_owned(),
            device.driver.clone(),
            size(device.total_bytes),
            size(device.free_bytes),
            device.memory_source.clone(),
        ]);
    }
    print_table(&table)?;
    for absent in &report.absent {
        say(&format!("note: {absent}"));
    }
    Ok(())
}
