//! One file for each command.

pub mod bench;
pub mod chat;
pub mod classify;
pub mod devices;
pub mod doctor;
pub mod interrupt;
pub mod logits;
pub mod perplexity;
pub mod plan;
pub mod quantize;
pub mod report;
pub mod run;
mod watch;

use crate::table::Table;
use halfbyte::Error;
use std::io::Write;

/// Prints one JSON object on stdout.
pub fn print_json(value: &serde_json::Value) -> Result<(), Error> {
    print(&format!("{value}\n"))
}

/// Prints on stdout. A reader that has gone away (`| head`) ends the process quietly.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Error::Usage(format!("stdout: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Prints a table on stdout.
pub fn print_table(table: &Table) -> Result<(), Error> {
    print(&table.on(&console::Term::stdout()))
}

/// Prints a table on stderr.
pub fn say_table(table: &Table) {
    say(table.on(&console::Term::stderr()).trim_end());
}

/// Prints on stderr; nobody there is no error.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
