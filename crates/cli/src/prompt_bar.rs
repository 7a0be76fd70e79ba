//! How much of a long prompt has been computed, on stderr, until the text begins.

use crate::commands::say;
use halfbyte::Heard;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// A bar, tokens computed of tokens in all, and the time left.
const STYLE: &str = "prompt [{bar:30}] {pos}/{len} tokens {eta}";

/// What takes no longer is not worth a bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// A bar that appears where a prompt takes long, and goes when its answer begins.
pub struct PromptBar {
    counts: Counts,
    since: Instant,
    terminal: bool,
    in_line: bool,
    bar: Option<ProgressBar>,
}

impl PromptBar {
    /// For a prompt of so many tokens; whether its text stands on the terminal, in a line without an end.
    pub fn new(tokens: usize, in_line: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { counts: Counts { done: 0, all: tokens }, since: Instant::now(), terminal, in_line, bar: None }
    }

    /// Follows what is heard of the answer. To be called before its text is printed.
    pub fn hear(&mut self, heard: Heard<'_>) {
        if !self.counts.hear(heard) {
            self.close();
            return;
        }
        if !self.terminal || self.since.elapsed() < PATIENCE {
            return;
        }
        let Counts { done, all } = self.counts;
        if self.bar.is_none() && self.in_line {
            // The bar would take the place of the prompt's last line. On stderr: stdout's text stays as it is.
            say("");
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(all as u64), ProgressDrawTarget::stderr())
                .with_elapsed(self.since.elapsed());
            if let Ok(style) = ProgressStyle::with_template(STYLE) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        bar.set_position(done as u64);
    }

    fn close(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for PromptBar {
    fn drop(&mut self) {
        self.close();
    }
}

/// Tokens of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    /// Computed so far.
    done: usize,
    all: usize,
}

impl Counts {
    /// Whether the prompt goes on.
    fn hear(&mut self, heard: Heard<'_>) -> bool {
        let Heard::Prompt { cached } = heard else { return false };
        // After a fault, tokens of the answer are computed again, too.
        self.done = cached.min(self.all);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_counted_until_a_token_comes() {
        let mut counts = Counts { done: 0, all: 10 };
        assert!(counts.hear(Heard::Prompt { cached: 4 }));
        assert_eq!(counts.done, 4);
        assert!(counts.hear(Heard::Prompt { cached: 12 }));
        assert_eq!(counts, Counts { done: 10, all: 10 });
        assert!(!counts.hear(Heard::Token { id: 1, text: None }));
        assert!(!counts.hear(Heard::Rest("?")));
    }

    #[test]
    fn the_bar_has_its_style() {
        assert!(ProgressStyle::with_template(STYLE).is_ok());
    }
}
