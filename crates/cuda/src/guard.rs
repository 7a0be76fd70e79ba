//! CubeCL's panics and errors as values.

use cubecl::server::{IoError, ServerError};
use halfbyte_backend::{Fault, Purpose};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `call`, and turns a panic into [`Fault::Lost`]: CubeCL's client panics where its server's thread
/// did not answer.
pub(crate) fn caught<T>(device: &str, call: impl FnOnce() -> T) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        Fault::Lost { device: device.to_owned(), reason: first_line(message) }
    })
}

/// The fault that a server's error means. `name` is what was being done.
pub(crate) fn fault(device: &str, name: &str, error: &ServerError) -> Fault {
    match error {
        ServerError::Io(IoError::BufferTooBig { size, .. }) => Fault::OutOfMemory {
            device: device.to_owned(),
            name: name.to_owned(),
            wanted: *size,
            free: None,
            what: Purpose::Scratch,
        },
        ServerError::ServerUnhealthy { errors, .. } if !errors.is_empty() => fault(device, name, &errors[0]),
        ServerError::Launch(error) => {
            Fault::Internal(format!("{device}: {name} did not launch: {}", first_line(&error.to_string())))
        }
        other => Fault::Lost {
            device: device.to_owned(),
            reason: format!("{name}: {}", first_line(&other.to_string())),
        },
    }
}

/// Errors of CubeCL end in backtraces; people need what comes before.
fn first_line(message: &str) -> String {
    let cause = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let cause: Vec<&str> = cause.take_while(|line| !line.starts_with("Backtrace")).take(3).collect();
    if cause.is_empty() { "no reason given".to_owned() } else { cause.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_value() {
        let fault = caught("cuda:0", || -> u32 { panic!("driver {}", "gone") }).unwrap_err();
        assert_eq!(fault, Fault::Lost { device: "cuda:0".into(), reason: "driver gone".into() });
    }
}
