//! The `halfbyte` command.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: halfbyte::Allocator = halfbyte::Allocator;

fn main() -> ExitCode {
    quiet_headless_vulkan();
    halfbyte::share_arenas();
    halfbyte_cli::main()
}

/// Without a desktop session, Mesa's device-select layer tries to reach a Wayland server all the same and
/// complains on stderr for every device that is opened. It has nothing to select there.
fn quiet_headless_vulkan() {
    let unset = |name| std::env::var_os(name).is_none();
    if cfg!(target_os = "linux") && unset("XDG_RUNTIME_DIR") && unset("NODEVICE_SELECT") {
        // SAFETY: this is the first statement of the process; no other thread reads the environment.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}
