//! Progress bars on stderr; silent where stderr is no terminal.

use halfbyte::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};

/// Draws downloads and loading as bars.
pub struct Bars {
    bar: Option<ProgressBar>,
    what: String,
    terminal: bool,
}

impl Bars {
    /// Bars for this process's stderr.
    pub fn new() -> Self {
        Self { bar: None, what: String::new(), terminal: std::io::stderr().is_terminal() }
    }

    fn advance(&mut self, verb: &str, what: &str, done: u64, total: u64) {
        if !self.terminal {
            return;
        }
        if self.bar.is_none() || self.what != verb {
            self.finish();
            let bar = ProgressBar::new(total);
            if let Ok(style) = ProgressStyle::with_template(
                "{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta} {wide_msg}",
            ) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(verb.to_owned());
            self.bar = Some(bar);
            self.what = verb.to_owned();
        }
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_message(what.to_owned());
            bar.set_position(done);
            if done >= total {
                self.finish();
            }
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
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
        self.advance(&format!("downloading {file}"), "", done, total);
    }

    fn load(&mut self, name: &str, done: u64, total: u64) {
        self.advance("loading", name, done, total);
    }

    fn quantize(&mut self, name: &str, done: u64, total: u64) {
        self.advance("quantizing", name, done, total);
    }

    fn note(&mut self, text: &str) {
        self.finish();
        let _ = writeln!(std::io::stderr(), "note: {text}");
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.finish();
    }
}
