//! Progress bars on stderr; silent where stderr is no terminal.

use console::Term;
use halfbyte::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// What it is of, a bar, bytes there of bytes in all, the rate, the time left, and where it is.
const WIDE: &str = "{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta} {wide_msg}";

/// Where a terminal has fewer columns than [`WIDE_COLUMNS`]: what it is of, as far as there is room, and the figures.
const NARROW: &str = "{wide_msg} {bytes}/{total_bytes} {eta}";

/// What [`WIDE`] takes without a file's name.
const WIDE_COLUMNS: u16 = 80;

/// Draws downloads, one bar a file and one for all of them, and loading and quantizing.
pub struct Bars {
    bars: MultiProgress,
    /// By what they are of.
    open: BTreeMap<String, ProgressBar>,
    terminal: bool,
}

impl Bars {
    /// Bars for this process's stderr.
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bars = MultiProgress::new();
        if !terminal {
            bars.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self { bars, open: BTreeMap::new(), terminal }
    }

    /// Moves the bar of `what`, which is opened at its first call and closed when all is done.
    fn advance(&mut self, what: &str, message: &str, done: u64, total: u64) {
        if !self.terminal {
            return;
        }
        if done >= total {
            self.close(what);
            return;
        }
        let narrow = Term::stderr().size().1 < WIDE_COLUMNS;
        let bars = &self.bars;
        let bar = self.open.entry(what.to_owned()).or_insert_with(|| {
            let bar = ProgressBar::new(total);
            if let Ok(style) = ProgressStyle::with_template(if narrow { NARROW } else { WIDE }) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(what.to_owned());
            bar.set_message(if narrow { what } else { message }.to_owned());
            // What an earlier try left took no time now.
            let bar = bars.add(bar.with_position(done));
            bar.reset_eta();
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        bar.set_length(total);
        bar.set_message(if narrow { what } else { message }.to_owned());
        bar.set_position(done);
    }

    fn close(&mut self, what: &str) {
        if let Some(bar) = self.open.remove(what) {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
    }
}

impl Default for Bars {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress for Bars {
    fn download(&mut self, file: &str, done: u64, total: u64) {
        self.advance(file, "", done, total);
    }

    fn download_all(&mut self, done: u64, total: u64) {
        self.advance("all files", "", done, total);
    }

    fn load(&mut self, name: &str, done: u64, total: u64) {
        self.advance("loading", name, done, total);
    }

    fn quantize(&mut self, name: &str, done: u64, total: u64) {
        self.advance("quantizing", name, done, total);
    }

    fn note(&mut self, text: &str) {
        // Above the bars.
        self.bars.suspend(|| {
            let _ = writeln!(std::io::stderr(), "note: {text}");
        });
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        for bar in std::mem::take(&mut self.open).into_values() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_have_their_styles() {
        for template in [WIDE, NARROW] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
