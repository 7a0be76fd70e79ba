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
        Fault::Lost { device: device.to_owned(), reason: cause(message) }
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
            Fault::Internal(format!("{device}: {name} did not launch: {}", cause(&error.to_string())))
        }
        other => Fault::Lost {
            device: device.to_owned(),
            reason: format!("{name}: {}", cause(&other.to_string())),
        },
    }
}

/// The innermost cause in a message of CubeCL's, as one line. Before it stand headings, each ending in `Caused by:`; after
/// it a backtrace, or the source that did not compile.
fn cause(message: &str) -> String {
    let lines =
        message.lines().map(str::trim).filter(|line| !line.is_empty() && *line != "[Compilation Error]");
    let lines: Vec<&str> =
        lines.take_while(|line| !line.starts_with("Backtrace") && !line.starts_with("[Source]")).collect();
    let first = lines.iter().rposition(|&line| line == "Caused by:").map_or(0, |heading| heading + 1);
    match (&lines[first..], lines.first()) {
        ([], heading) => heading.copied().unwrap_or("no reason given").to_owned(),
        ([one], _) => (*one).to_owned(),
        ([one, two, ..], _) => format!("{one} {two}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_value() {
        let fault = caught("cuda:0", || -> u32 { panic!("driver {}", "gone") }).unwrap_err();
        assert_eq!(fault, Fault::Lost { device: "cuda:0".into(), reason: "driver gone".into() });
    }

    #[test]
    fn a_kernel_that_does_not_compile_says_why() {
        let said = "A compilation error happened during launch\nCaused by:\n  An error caused the compilation to fail\nCaused \
                    by:\n  [Compilation Error] \n    mma.h(54): catastrophic error: cannot open source file \"crt/mma.h\"\n\n\
                    [Source]  \n#include <mma.h>\nBacktrace:\n   0: main";
        assert_eq!(cause(said), "mma.h(54): catastrophic error: cannot open source file \"crt/mma.h\"");
        assert_eq!(
            cause("Too many resources\n99 KiB of shared memory"),
            "Too many resources 99 KiB of shared memory"
        );
        assert_eq!(cause("It failed\nCaused by:\n\nBacktrace\n"), "It failed");
        assert_eq!(cause(""), "no reason given");
    }
}
