//! NVIDIA GPUs through CUDA; and, to test their kernels without one, CubeCL's wgpu runtime as `cube:0` and `cube:1`.

use crate::devices::Found;
use crate::options::LoadOptions;
use halfbyte_backend::{Backend, DeviceInfo, DeviceKind};

/// Opens the CUDA devices that are `wanted`, each with the limit that it was given.
#[cfg(feature = "cuda")]
pub(crate) fn open_cuda(wanted: &dyn Fn(&str, DeviceKind) -> bool, options: &LoadOptions, found: &mut Found) {
    use halfbyte_cuda::{CubeBackend, CudaRuntime, cuda_devices};
    // The driver counts what CUDA_VISIBLE_DEVICES lets through.
    let count = match cuda_devices() {
        Ok(count) => count,
        Err(absent) => return found.absent.push(absent),
    };
    for index in 0..count {
        let name = format!("cuda:{index}");
        if !wanted(&name, DeviceKind::DiscreteGpu) {
            continue;
        }
        match CubeBackend::<CudaRuntime>::open(index) {
            Ok(backend) => {
                found.backends.push(std::rc::Rc::new(backend.with_budget(options.budget_of(&name))));
            }
            Err(fault) => found.failed.push((name, fault)),
        }
    }
}

/// Says that there are none.
#[cfg(not(feature = "cuda"))]
pub(crate) fn open_cuda(
    _wanted: &dyn Fn(&str, DeviceKind) -> bool,
    _options: &LoadOptions,
    found: &mut Found,
) {
    let absent = "built without the feature `cuda`: an NVIDIA GPU is used through Vulkan, as wgpu:N";
    found.absent.push(absent.to_owned());
}

/// Opens `cube:0` if it is `wanted`: the kernels of `cuda:N` on wgpu's best adapter. `cube:1`, a second device, is for
/// who gives it memory.
#[cfg(feature = "cube")]
pub(crate) fn open_cube(wanted: &dyn Fn(&str, DeviceKind) -> bool, options: &LoadOptions, found: &mut Found) {
    use halfbyte_cuda::{CubeBackend, WgpuRuntime};
    for index in 0..2 {
        let name = format!("cube:{index}");
        let budget = options.budget_of(&name);
        if !wanted(&name, DeviceKind::Software) || (index > 0 && budget.is_none()) {
            continue;
        }
        match CubeBackend::<WgpuRuntime>::open_nth(index) {
            Ok(backend) => found.backends.push(std::rc::Rc::new(backend.with_budget(budget))),
            Err(fault) => found.failed.push((name, fault)),
        }
    }
}

/// There is none.
#[cfg(not(feature = "cube"))]
pub(crate) fn open_cube(
    _wanted: &dyn Fn(&str, DeviceKind) -> bool,
    _options: &LoadOptions,
    _found: &mut Found,
) {
}

/// The CUDA device that is the same card as `other`, a device of another backend.
pub(crate) fn twin<'a>(
    backends: impl IntoIterator<Item = &'a dyn Backend>,
    other: &DeviceInfo,
) -> Option<&'a DeviceInfo> {
    let mut infos = backends.into_iter().map(Backend::info);
    infos.find(|info| {
        info.name.starts_with("cuda:") && !other.name.starts_with("cuda:") && same_card(info, other)
    })
}

/// Whether `CUDA_VISIBLE_DEVICES` (`visible`) keeps `info`, one of NVIDIA's cards under wgpu, from whoever does not name
/// it: CUDA works, or was told to show nothing, and does not show the card.
///
/// Who hides a card from CUDA wants it left alone, whatever the way to it. `opened` are the CUDA devices here, `failed`
/// those that did not open: a card may be one of these.
pub(crate) fn hidden(info: &DeviceInfo, visible: Option<&str>, opened: usize, failed: usize) -> bool {
    let Some(visible) = visible.filter(|_| cfg!(feature = "cuda")) else { return false };
    let nothing = matches!(visible.trim(), "" | "-1");
    info.name.starts_with("wgpu:")
        && info.kind == DeviceKind::DiscreteGpu
        && info.adapter.contains("NVIDIA")
        && (nothing || (opened > 0 && failed == 0))
}

/// Whether two devices are one card: by their places on the PCI bus, or, where one does not tell, by name.
fn same_card(a: &DeviceInfo, b: &DeviceInfo) -> bool {
    let place = |info: &DeviceInfo| {
        let place = info.limits.iter().find(|(name, _)| name == "pci_bus_id").map(|(_, place)| place);
        // Drivers write the domain with four digits or with eight.
        place.map(|place| place.trim_start_matches('0').to_lowercase())
    };
    match (place(a), place(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a.kind == DeviceKind::DiscreteGpu && a.kind == b.kind && a.adapter == b.adapter,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, adapter: &str, place: Option<&str>) -> DeviceInfo {
        DeviceInfo {
            name: name.into(),
            adapter: adapter.into(),
            driver: String::new(),
            kind: DeviceKind::DiscreteGpu,
            limits: place.map(|place| ("pci_bus_id".to_owned(), place.to_owned())).into_iter().collect(),
        }
    }

    #[test]
    fn one_card_under_two_drivers() {
        let h200 = "NVIDIA H200";
        let cuda = device("cuda:0", h200, Some("00000000:3B:00.0"));
        assert!(same_card(&cuda, &device("wgpu:0", h200, Some("0000:3b:00.0"))));
        // Two of a kind are told apart by their places, and where one does not tell, by nothing.
        assert!(!same_card(&cuda, &device("wgpu:1", h200, Some("0000:86:00.0"))));
        assert!(same_card(&cuda, &device("wgpu:1", h200, None)));
        assert!(!same_card(&cuda, &device("wgpu:1", "NVIDIA L4", None)));
    }
    #[cfg(feature = "cuda")]
    #[test]
    fn a_card_that_is_hidden_from_cuda_is_left_alone() {
        let second = device("wgpu:1", "NVIDIA L4", None);
        // One of two is shown.
        assert!(hidden(&second, Some("0"), 1, 0));
        assert!(hidden(&second, Some(""), 0, 0) && hidden(&second, Some("-1"), 0, 0));
        // Nobody hides it; CUDA does not work here; it may be the card that did not open; it is nobody's of NVIDIA.
        assert!(!hidden(&second, None, 1, 0));
        assert!(!hidden(&second, Some("0"), 0, 0));
        assert!(!hidden(&second, Some("0,1"), 1, 1));
        assert!(!hidden(&device("wgpu:1", "AMD Radeon Pro W7900", None), Some("0"), 1, 0));
        assert!(!hidden(&device("cuda:1", "NVIDIA L4", None), Some("0,1"), 2, 0));
    }
}
