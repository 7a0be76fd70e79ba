//! Makes sure that the tests find a WebGPU adapter: kernels are checked by running them.

use crate::cargo;
use std::path::Path;
use std::process::{Command, Stdio};

/// Finds an adapter with the command `halfbyte`, or installs Mesa's software Vulkan where that can be done without
/// asking.
pub fn ensure(halfbyte: &Path) -> Result<(), String> {
    if let Some(name) = find(halfbyte)? {
        println!("WebGPU adapter: {name}");
        return Ok(());
    }
    if !(Path::new("/etc/debian_version").exists() && is_root()) {
        return Err(format!("the tests need a WebGPU adapter and found none. {}", advice()));
    }
    println!("no WebGPU adapter: installing Mesa's software Vulkan (mesa-vulkan-drivers, libvulkan1)");
    cargo::run(Command::new("apt-get").args(["update", "-qq"]))?;
    cargo::run(
        Command::new("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends", "mesa-vulkan-drivers", "libvulkan1"])
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    match find(halfbyte)? {
        Some(name) => {
            println!("WebGPU adapter: {name}");
            Ok(())
        }
        None => Err("Mesa's software Vulkan is installed, but no WebGPU adapter was found".into()),
    }
}

/// The first adapter's name, as `halfbyte devices` sees it: the test of the very code that will use it.
fn find(halfbyte: &Path) -> Result<Option<String>, String> {
    let output = Command::new(halfbyte)
        .args(["devices", "--json"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{} could not be started: {error}", halfbyte.display()))?;
    if !output.status.success() {
        return Err(format!("`halfbyte devices --json` failed: {}", output.status));
    }
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("`halfbyte devices --json` printed no JSON: {error}"))?;
    let devices = report["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(devices
        .iter()
        .find(|device| device["device"].as_str().is_some_and(|name| name.starts_with("wgpu")))
        .map(|device| device["adapter"].as_str().unwrap_or("unnamed").to_owned()))
}

fn is_root() -> bool {
    Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim() == "0")
}

fn advice() -> &'static str {
    if cfg!(target_os = "linux") {
        "Install your GPU's Vulkan driver or Mesa's software one: `apt install mesa-vulkan-drivers libvulkan1` \
         (Debian, Ubuntu), `dnf install mesa-vulkan-drivers vulkan-loader` (Fedora), \
         `pacman -S vulkan-swrast vulkan-icd-loader` (Arch)."
    } else if cfg!(target_os = "macos") {
        "Metal should be there on every Mac; in a virtual machine it may not be."
    } else {
        "Install your GPU's driver, with Vulkan or Direct3D 12."
    }
}
