//! Opening CUDA devices (feature `cuda`).

use crate::CubeBackend;
use crate::graph::{CudaRecorder, Way};
use crate::guard::caught;
use cubecl::cuda::{CudaDevice, CudaRuntime, install};
use cubecl::prelude::*;
use cudarc::driver::result as driver;
use halfbyte_backend::{DeviceInfo, DeviceKind, Fault};
use std::rc::Rc;

/// What is said where there is no driver.
const NO_DRIVER: &str = "CUDA was not found: there is no NVIDIA driver (libcuda) on this machine";

/// Whether NVIDIA's driver can be loaded: whatever asks it for more panics where it cannot.
fn driver_is_present() -> bool {
    // SAFETY: loads the driver's library by name and closes it again; its initializers are NVIDIA's.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

/// How many CUDA devices there are, of those that `CUDA_VISIBLE_DEVICES` lets through.
///
/// # Errors
/// A sentence for people, if there is none: no driver, or a driver without a device.
pub fn cuda_devices() -> Result<usize, String> {
    if !driver_is_present() {
        return Err(NO_DRIVER.to_owned());
    }
    let count = caught("cuda", || driver::init().and_then(|()| driver::device::get_count()));
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let absent = |why: &str| Err(absence(why, visible.as_deref()));
    match count {
        Ok(Ok(count)) if count > 0 => Ok(count as usize),
        Ok(Ok(_)) => absent("NVIDIA's driver has no device"),
        Ok(Err(error)) => absent(&format!("NVIDIA's driver failed: {error}")),
        Err(fault) => absent(&fault.to_string()),
    }
}

/// A sentence on why there is no device. The driver numbers only those that `CUDA_VISIBLE_DEVICES` (`visible`) lets
/// through, and calls it an error where that are none.
fn absence(why: &str, visible: Option<&str>) -> String {
    let through = visible.map(|visible| format!(" (CUDA_VISIBLE_DEVICES is `{visible}`)"));
    format!("CUDA was not found: {why}{}", through.unwrap_or_default())
}

impl CubeBackend<CudaRuntime> {
    /// Opens the CUDA device `index` (`cuda:0` is 0).
    ///
    /// # Errors
    /// [`Fault::Unsupported`] saying what is missing: NVIDIA's driver, the device, NVRTC, or the toolkit's
    /// headers. [`Fault::Lost`] if the driver is there and fails.
    pub fn open(index: usize) -> Result<Self, Fault> {
        let name = format!("cuda:{index}");
        let missing = |what: &str| Fault::Unsupported { device: name.clone(), what: what.to_owned() };
        if !driver_is_present() {
            return Err(missing(NO_DRIVER));
        }
        // SAFETY: loads NVRTC by name and closes it again; its initializers are NVIDIA's.
        if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
            return Err(missing(
                "CUDA's runtime compiler was not found: install NVRTC (libnvrtc) of CUDA 12 or 13",
            ));
        }
        // CubeCL compiles with the toolkit's headers (cuda_runtime.h) and panics where it has no path there.
        if !install::cuda_path().is_some_and(|path| path.join("include").is_dir()) {
            return Err(missing(
                "CUDA's headers were not found: install them and set CUDA_PATH to the toolkit",
            ));
        }
        let device =
            caught(&name, || device(index)).and_then(|device| device.map_err(|what| missing(&what)))?;
        let client = caught(&name, || CudaRuntime::client(&CudaDevice { index }))?;
        let hardware = &client.properties().hardware;
        let limits = vec![
            (
                "streaming_multiprocessors".to_owned(),
                hardware.num_streaming_multiprocessors.unwrap_or(0).to_string(),
            ),
            ("shared_memory_per_cube".to_owned(), hardware.max_shared_memory_size.to_string()),
            ("largest_buffer".to_owned(), client.properties().memory.max_page_size.to_string()),
            ("pci_bus_id".to_owned(), device.place),
        ];
        let info = DeviceInfo {
            name: name.clone(),
            adapter: device.adapter,
            driver: device.driver,
            kind: DeviceKind::DiscreteGpu,
            limits,
        };
        let backend = Self::on(client, info, name.clone(), Box::new(move || free_and_total(index)));
        let way = Way::wanted(std::env::var("HALFBYTE_CUDA_LAUNCH").ok().as_deref());
        if way == Way::Cubecl {
            return Ok(backend);
        }
        match CudaRecorder::open(&name, index, backend.client(), way) {
            Ok(recorder) => Ok(backend.with_recorder(Rc::new(recorder))),
            // Without it the device works, slower.
            Err(fault) if way == Way::Trial => {
                tracing::warn!("{fault}: kernels are launched through CubeCL");
                Ok(backend)
            }
            Err(fault) => Err(fault),
        }
    }
}

/// What the driver says of a device.
struct Device {
    adapter: String,
    driver: String,
    /// Its place on the PCI bus, as in `0000:3b:00.0`.
    place: String,
}

fn device(index: usize) -> Result<Device, String> {
    let describe = |error: cudarc::driver::DriverError| format!("CUDA's driver failed: {error}");
    driver::init().map_err(describe)?;
    let count = driver::device::get_count().map_err(describe)?;
    let ordinal = i32::try_from(index).ok().filter(|&ordinal| ordinal < count);
    let ordinal = ordinal.ok_or_else(|| format!("there are {count} CUDA devices"))?;
    let device = driver::device::get(ordinal).map_err(describe)?;
    let adapter = driver::device::get_name(device).map_err(describe)?;
    let mut version = 0;
    // SAFETY: the driver is loaded and writes one integer.
    unsafe { cudarc::driver::sys::cuDriverGetVersion(&raw mut version) }.result().map_err(describe)?;
    let mut place = [0; 32];
    // SAFETY: the driver writes at most as many characters as it is told, the last one a zero.
    unsafe { cudarc::driver::sys::cuDeviceGetPCIBusId(place.as_mut_ptr(), place.len() as i32, device) }
        .result()
        .map_err(describe)?;
    let place = place.iter().take_while(|&&letter| letter != 0).map(|&letter| letter as u8 as char).collect();
    Ok(Device { adapter, driver: format!("CUDA {}.{}", version / 1000, version % 1000 / 10), place })
}

/// Free and total bytes of a device, by `cuMemGetInfo` in its primary context, which CubeCL uses too.
fn free_and_total(index: usize) -> Option<(u64, u64)> {
    let ask = || -> Result<(u64, u64), cudarc::driver::DriverError> {
        let device = driver::device::get(i32::try_from(index).unwrap_or(i32::MAX))?;
        // SAFETY: `device` comes from the driver. The context is retained and released in pairs, and CubeCL's
        // own reference keeps it alive; making it current affects this thread only.
        let (free, total) = unsafe {
            let context = driver::primary_ctx::retain(device)?;
            let info = driver::ctx::set_current(context).and_then(|()| driver::mem_get_info());
            driver::primary_ctx::release(device)?;
            info?
        };
        Ok((free as u64, total as u64))
    };
    ask().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hides_all_devices_is_told() {
        let why = "NVIDIA's driver has no device";
        assert_eq!(absence(why, None), "CUDA was not found: NVIDIA's driver has no device");
        assert!(absence(why, Some("-1")).ends_with("(CUDA_VISIBLE_DEVICES is `-1`)"));
    }

    #[test]
    fn a_machine_without_a_device_gets_a_reason() {
        // No machine has a thousand: whatever is missing here, it is said and nothing panics.
        let Err(Fault::Unsupported { device, what }) = CubeBackend::<CudaRuntime>::open(1000) else {
            panic!("opened device 1000, or failed otherwise");
        };
        assert_eq!(device, "cuda:1000");
        assert!(what.contains("CUDA"), "{what}");
    }
}
