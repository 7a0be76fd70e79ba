//! The `halfbyte` command: arguments, tables, progress bars. Everything else is the library's.

#![forbid(unsafe_code)]

pub mod args;
mod commands;
pub mod hub_args;
mod notes;
pub mod progress;
mod prompt_bar;
pub mod table;

use args::{Arguments, Command};
use clap::Parser;
use halfbyte::Error;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Parses the arguments and runs the command. Exit code 1 with one clear line for anything that the user
/// can mend, 2 for arguments that do not parse.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_logging(arguments.verbose);
    let _told = notes::install();
    exit_code(run(arguments.command))
}

/// 0, or 1 with the error on stderr. A closed pipe (`halfbyte run | head`) is no error.
pub fn exit_code(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            commands::say(&format!("error: {}", one_line(&error.to_string())));
            ExitCode::FAILURE
        }
    }
}

/// A message with the control characters escaped that an argument or a path may have brought in: it stays
/// on one line and cannot write to the terminal otherwise.
fn one_line(message: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().collect() } else { c.to_string() };
    message.chars().map(escaped).collect()
}

fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Run(args) => commands::run::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Chat(args) => commands::chat::run(&args),
        Command::Classify(args) => commands::classify::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Logits(args) => commands::logits::run(&args),
        Command::Quantize(args) => commands::quantize::run(&args),
        Command::Perplexity(args) => commands::perplexity::run(&args),
        Command::Devices(args) => commands::devices::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
    }
}

fn start_logging(verbose: u8) {
    let default = match verbose {
        // What a driver or a library complains about comes back as a value, and is said in one line.
        0 => "halfbyte=error",
        1 => "halfbyte=info,warn",
        2 => "halfbyte=debug,info",
        _ => "trace",
    };
    let asked = std::env::var_os("HALFBYTE_LOG").filter(|text| !text.is_empty());
    let filter = asked.and_then(|text| match log_filter(&text.to_string_lossy()) {
        Ok((filter, note)) => {
            note.inspect(|note| commands::say(&one_line(note)));
            Some(filter)
        }
        Err(note) => {
            commands::say(&one_line(&note));
            None
        }
    });
    let filter = filter.unwrap_or_else(|| EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// What `HALFBYTE_LOG` asks for, with a note where it can hardly be meant; why it is none.
fn log_filter(text: &str) -> Result<(EnvFilter, Option<String>), String> {
    let example = "a level (error, warn, info, debug, trace) or, say, halfbyte=debug,warn";
    let filter = EnvFilter::try_new(text)
        .map_err(|error| format!("note: HALFBYTE_LOG={text} is ignored: {error}; it takes {example}"))?;
    // A word that is no level is a filter for the crate of that name, which silences all others.
    let word = !text.contains(['=', ',', ':', '[']);
    let meant = !word || text.starts_with("halfbyte") || text.parse::<LevelFilter>().is_ok();
    let note = format!(
        "note: HALFBYTE_LOG={text} is no level, so only what a crate {text} logs is shown; it takes {example}"
    );
    Ok((filter, (!meant).then_some(note)))
}

#[cfg(test)]
mod tests {
    use super::log_filter;

    #[test]
    fn a_filter_that_is_none_is_told() {
        assert!(log_filter("a=b=c").is_err_and(|note| note.contains("HALFBYTE_LOG=a=b=c is ignored")));
        let note = |text| log_filter(text).unwrap().1;
        assert!(note("jnuk").is_some_and(|note| note.contains("HALFBYTE_LOG=jnuk is no level")));
        for right in ["warn", "DEBUG", "off", "halfbyte", "halfbyte=info,warn", "wgpu=trace"] {
            assert_eq!(note(right), None, "{right}");
        }
    }
}
