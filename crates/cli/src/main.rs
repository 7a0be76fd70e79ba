//! The `halfbyte` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    halfbyte_cli::main()
}
