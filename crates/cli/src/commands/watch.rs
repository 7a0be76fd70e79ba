//! `halfbyte devices --watch`: the memory of every device as bars, again and again.

use super::{print, print_json};
use crate::args::DevicesArgs;
use crate::table::bytes;
use halfbyte::{Error, MemoryEvent, MemorySample};
use std::io::IsTerminal;
use std::time::Duration;

/// Characters of a bar, where there is room.
const WIDTH: usize = 40;

/// Draws until Ctrl-C or until `--samples` have been drawn; `--json` prints an object a line instead.
pub fn run(args: &DevicesArgs) -> Result<(), Error> {
    if !(args.interval > 0.0 && args.interval <= 86_400.0) {
        return Err(Error::Usage(format!(
            "--interval {}: expected seconds above 0 and at most 86400",
            args.interval
        )));
    }
    let redraw = std::io::stdout().is_terminal();
    let (mut samples, mut drawn) = (0, 0);
    let mut warnings: Vec<String> = Vec::new();
    for event in halfbyte::watch(Duration::from_secs_f64(args.interval))? {
        if args.json {
            let value = serde_json::to_value(&event).map_err(|error| Error::Usage(error.to_string()))?;
            print_json(&value)?;
        }
        match event {
            MemoryEvent::Sample { devices } => {
                if !args.json {
                    // The window may have another size by now.
                    let size = console::Term::stdout().size_checked().filter(|_| redraw);
                    let columns = size.map_or(usize::MAX, |(_, columns)| usize::from(columns).max(1));
                    let picture = picture(&devices, &warnings, columns);
                    let up = if redraw && drawn > 0 { format!("\x1b[{drawn}A\x1b[J") } else { String::new() };
                    drawn = rows(&picture, columns);
                    print(&format!("{up}{picture}"))?;
                }
                warnings.retain(|warning| {
                    devices.iter().any(|one| is_low(one) && warning.starts_with(&one.device))
                });
                samples += 1;
            }
            MemoryEvent::Warning { text, .. } => warnings.push(text),
            MemoryEvent::Model(event) => warnings.push(event.text),
        }
        if args.samples.is_some_and(|wanted| samples >= wanted) {
            break;
        }
    }
    Ok(())
}

/// Whether a warning about the device still holds.
fn is_low(device: &MemorySample) -> bool {
    device.total_bytes.zip(device.free_bytes).is_some_and(|(total, free)| free < total / 8)
}

/// Rows that a text takes on a terminal of so many columns.
fn rows(text: &str, columns: usize) -> usize {
    text.lines().map(|line| line.chars().count().div_ceil(columns).max(1)).sum()
}

/// A bar for each device: `#` is ours, `=` is others', `.` is free; then ours by purpose. Where a terminal has too few
/// columns, figures go below their bar, and bars are shorter.
fn picture(devices: &[MemorySample], warnings: &[String], columns: usize) -> String {
    let mut lines = String::new();
    let names = devices.iter().map(|device| device.device.len()).max().unwrap_or(0);
    for device in devices {
        let size = |bytes_: Option<u64>| bytes_.map_or_else(|| "?".to_owned(), bytes);
        let figures = format!(
            "total {}, free {}, ours {}, others {}",
            size(device.total_bytes),
            size(device.free_bytes),
            bytes(device.ours_bytes),
            size(device.others_bytes),
        );
        let width = WIDTH.min(columns.saturating_sub(names + 3)).max(1);
        let bar = format!("{:names$} [{}]", device.device, bar(device, width));
        let apart = bar.len() + 1 + figures.len() > columns;
        lines += &format!("{bar}{}{figures}\n", if apart { "\n  " } else { " " });
        for (purpose, held) in &device.ours {
            lines += &format!("{:names$}   {purpose}: {}\n", "", bytes(*held));
        }
    }
    for warning in warnings {
        lines += &format!("warning: {warning}\n");
    }
    lines
}

fn bar(device: &MemorySample, width: usize) -> String {
    let Some(total) = device.total_bytes.filter(|&total| total > 0) else {
        return "?".repeat(width);
    };
    let share =
        |bytes: u64| ((u128::from(bytes) * width as u128).div_ceil(u128::from(total)) as usize).min(width);
    let ours = share(device.ours_bytes);
    let others = share(device.others_bytes.unwrap_or(0)).min(width - ours);
    let rest = if device.free_bytes.is_some() { "." } else { "?" };
    "#".repeat(ours) + &"=".repeat(others) + &rest.repeat(width - ours - others)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(total: Option<u64>, ours: u64, free: Option<u64>) -> MemorySample {
        let others = total.zip(free).map(|(total, free)| total - free - ours);
        MemorySample {
            device: "wgpu:0".into(),
            total_bytes: total,
            free_bytes: free,
            ours: [("weights".to_owned(), ours)].into(),
            ours_bytes: ours,
            others_bytes: others,
            source: "a test".into(),
        }
    }

    #[test]
    fn bars_show_shares() {
        let quarters = bar(&sample(Some(4 << 30), 1 << 30, Some(2 << 30)), 40);
        assert_eq!(quarters, format!("{}{}{}", "#".repeat(10), "=".repeat(10), ".".repeat(20)));
        // A little is seen, and full is full.
        assert!(bar(&sample(Some(4 << 30), 1, Some(2 << 30)), 40).starts_with("#="));
        assert_eq!(bar(&sample(Some(100), 60, Some(0)), 40), format!("{}{}", "#".repeat(24), "=".repeat(16)));
        assert_eq!(bar(&sample(None, 1, None), 40), "?".repeat(40));
    }

    #[test]
    fn a_picture_has_a_line_for_each_thing() {
        let devices = [sample(Some(4 << 30), 1 << 30, Some(2 << 30))];
        let picture = picture(&devices, &["wgpu:0 is running short".into()], 200);
        let lines: Vec<&str> = picture.lines().collect();
        assert_eq!(lines.len(), 3, "{picture}");
        assert!(lines[0].ends_with("total 4.0 GiB, free 2.0 GiB, ours 1.0 GiB, others 1.0 GiB"), "{picture}");
        assert_eq!(lines[1].trim(), "weights: 1.0 GiB");
        assert_eq!(lines[2], "warning: wgpu:0 is running short");
    }

    #[test]
    fn a_narrow_terminal_has_figures_below_short_bars() {
        let devices = [sample(Some(4 << 30), 1 << 30, Some(2 << 30))];
        let lines = |columns| picture(&devices, &[], columns).lines().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!((lines(107).len(), lines(106).len()), (2, 3));
        let narrow = lines(60);
        assert_eq!(narrow[0], format!("wgpu:0 [{}{}{}]", "#".repeat(10), "=".repeat(10), ".".repeat(20)));
        assert_eq!(narrow[1], "  total 4.0 GiB, free 2.0 GiB, ours 1.0 GiB, others 1.0 GiB");
        assert_eq!(lines(17)[0], "wgpu:0 [##==....]");
        // What is wider still is wrapped by the terminal, and those rows count.
        assert_eq!(rows(&picture(&devices, &[], 60), 60), 3);
        assert_eq!(rows(&picture(&devices, &[], 30), 30), 4);
        assert_eq!(rows("\n", 30), 1);
        assert!(lines(1).iter().all(|line| !line.is_empty()));
    }
}
