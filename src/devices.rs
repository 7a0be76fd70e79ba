//! The devices of this machine, and how much of each may be used.

use crate::cuda_devices::{hidden, open_cube, open_cuda, twin};
use crate::options::{DeviceMap, LoadOptions};
use crate::pressure::read_pretended;
use crate::rates::Rated;
use crate::{Error, human_bytes, rates};
use halfbyte_backend::{Backend, DeviceKind, Fault, Limit, Limited};
use halfbyte_cpu::{CpuBackend, CpuOptions};
use halfbyte_placement::{Device, DeviceClass};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A device as `halfbyte devices` lists it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct DeviceReport {
    /// As device maps name it: `cpu`, `wgpu:0`.
    pub device: String,
    /// The maker's name for it.
    pub adapter: String,
    /// API and driver.
    pub driver: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Bytes in all, where known.
    pub total_bytes: Option<u64>,
    /// Bytes free now, where known.
    pub free_bytes: Option<u64>,
    /// Bytes that this process's backend holds: what it needs before any model.
    pub held_bytes: u64,
    /// Where these figures come from.
    pub memory_source: String,
    /// Limits and features worth knowing, by name.
    pub limits: BTreeMap<String, String>,
}

impl DeviceReport {
    /// The kind in words.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            DeviceKind::DiscreteGpu => "discrete GPU",
            DeviceKind::IntegratedGpu => "integrated GPU",
            DeviceKind::Cpu => "CPU",
            DeviceKind::Software => "software GPU",
            DeviceKind::Disk => "disk",
        }
    }
}

/// All devices, and what is not there.
#[derive(Debug, Clone, serde::Serialize)]
pub struct DevicesReport {
    /// The devices.
    pub devices: Vec<DeviceReport>,
    /// Kinds of device that were looked for and not found, a sentence each.
    pub absent: Vec<String>,
}

/// Lists the devices of this machine.
///
/// # Errors
/// If the CPU backend cannot be had (a forced instruction set that the processor lacks).
pub fn devices() -> Result<DevicesReport, Error> {
    let found = pollster::block_on(open_all(&LoadOptions::default()))?;
    let devices = found
        .backends
        .iter()
        .map(|backend| {
            let info = backend.info();
            let memory = backend.memory();
            DeviceReport {
                device: info.name.clone(),
                adapter: info.adapter.clone(),
                driver: info.driver.clone(),
                kind: info.kind,
                total_bytes: memory.total,
                free_bytes: memory.free,
                held_bytes: backend.ledger().footprint().total(),
                memory_source: memory.source,
                limits: info.limits.iter().cloned().collect(),
            }
        })
        .collect();
    let failed = found.failed.iter().map(|(_, fault)| fault.to_string());
    let absent = failed.chain(found.absent.iter().cloned()).collect();
    Ok(DevicesReport { devices, absent })
}

/// Every backend that opened, the CPU first.
pub(crate) struct Found {
    pub(crate) backends: Vec<Rc<dyn Backend>>,
    pub(crate) absent: Vec<String>,
    /// Devices that are there but did not open, and why.
    pub(crate) failed: Vec<(String, Fault)>,
}

/// Opens every device that has memory of its own.
pub(crate) async fn open_all(options: &LoadOptions) -> Result<Found, Fault> {
    open(&|_, kind| kind != DeviceKind::Disk, options).await
}

/// Opens the CPU, and the device of this name, if there is one.
pub(crate) async fn open_named(name: &str, options: &LoadOptions) -> Result<Found, Fault> {
    open(&|other, _| other == name, options).await
}

/// Opens the CPU, and the disk and the GPUs for which `wanted` says yes to their name and kind.
async fn open(wanted: &dyn Fn(&str, DeviceKind) -> bool, options: &LoadOptions) -> Result<Found, Fault> {
    let memory_limit = options.pretend_memory.get("cpu").copied();
    let cpu = CpuBackend::with(CpuOptions {
        memory_limit,
        math: Some(options.arithmetic()?),
        threads: options.working_threads()?,
        ..CpuOptions::default()
    })?;
    let disk = wanted(DISK, DeviceKind::Disk).then(|| Rc::new(cpu.disk()) as Rc<dyn Backend>);
    let mut found = Found { backends: vec![Rc::new(cpu)], absent: Vec::new(), failed: Vec::new() };
    found.backends.extend(disk);
    let any =
        |kind: &str| (0..MAX_GPUS).any(|index| wanted(&format!("{kind}:{index}"), DeviceKind::DiscreteGpu));
    // Before wgpu's: where a card has both drivers, CUDA comes first.
    if any("cuda") {
        open_cuda(wanted, options, &mut found);
    }
    open_cube(wanted, options, &mut found);
    if any("wgpu") {
        open_wgpu(wanted, options, &mut found).await;
    }
    Ok(found)
}

/// The device whose weights stay in their files.
pub(crate) const DISK: &str = "disk";
/// More GPUs than any machine has.
const MAX_GPUS: usize = 64;

/// Address space that a GPU driver must find: it takes much more than it uses, and where it finds too little,
/// Mesa's software Vulkan was seen to end the process.
#[cfg(feature = "wgpu")]
const DRIVER_ADDRESS_SPACE: u64 = 3 << 29;

/// Opens the GPUs that are `wanted`, each with the limit that it was given.
#[cfg(feature = "wgpu")]
async fn open_wgpu(wanted: &dyn Fn(&str, DeviceKind) -> bool, options: &LoadOptions, found: &mut Found) {
    use halfbyte_wgpu::{Options, WgpuBackend};
    if let Some(left) = halfbyte_cpu::address_space_left().filter(|&left| left < DRIVER_ADDRESS_SPACE) {
        return found.absent.push(format!(
            "no GPU driver is loaded into {} of address space: some crash below {} (ulimit -v)",
            human_bytes(left),
            human_bytes(DRIVER_ADDRESS_SPACE)
        ));
    }
    let adapters = match WgpuBackend::all().await {
        Ok(adapters) => adapters,
        Err(fault) => return found.absent.push(fault.to_string()),
    };
    for (index, adapter) in adapters.iter().enumerate() {
        if !wanted(&adapter.name, adapter.kind) {
            continue;
        }
        let budget = options.budget_of(&adapter.name);
        match WgpuBackend::open(index, Options { budget, ..Options::default() }).await {
            Ok(backend) => {
                // A software adapter is for tests, which leave nothing behind.
                if let Some(dir) = pipeline_dir(options).filter(|_| adapter.kind != DeviceKind::Software) {
                    backend.keep_in(&dir);
                }
                found.backends.push(Rc::new(backend));
            }
            Err(fault) => found.failed.push((adapter.name.clone(), fault)),
        }
    }
}

/// Where compiled pipelines and measured shapes of kernels are kept from one start to the next: beside models in
/// 4 bits. `None` where nothing is to be kept.
#[cfg(feature = "wgpu")]
fn pipeline_dir(options: &LoadOptions) -> Option<std::path::PathBuf> {
    use halfbyte_checkpoint::hub::{HubOptions, four_bit_cache_dir};
    if options.four_bit_cache == crate::FourBitCache::Never
        || std::env::var("HALFBYTE_CACHE").is_ok_and(|text| text == "never")
    {
        return None;
    }
    let hub = HubOptions { cache_dir: options.cache_dir.clone(), ..HubOptions::default() };
    Some(four_bit_cache_dir(&hub)?.join("pipelines"))
}

/// Says that there are none.
#[cfg(not(feature = "wgpu"))]
async fn open_wgpu(_wanted: &dyn Fn(&str, DeviceKind) -> bool, _options: &LoadOptions, found: &mut Found) {
    found.absent.push("built without the feature `wgpu`: no GPUs".to_owned());
}

/// Opens a device that was lost once more.
pub(crate) async fn reopen(
    name: &str,
    options: &LoadOptions,
    limit: Option<&Limit>,
) -> Result<Rc<dyn Backend>, Fault> {
    let found = open_named(name, options).await?;
    let is = |backend: &Rc<dyn Backend>| backend.info().name == name;
    match found.backends.into_iter().find(is) {
        Some(backend) => Ok(match limit {
            Some(limit) => Rc::new(Limited::new(backend, Rc::clone(limit))),
            None => backend,
        }),
        None => Err(found.failed.into_iter().map(|(_, fault)| fault).next().unwrap_or_else(|| Fault::Lost {
            device: name.to_owned(),
            reason: "it is not there any more".into(),
        })),
    }
}

/// A backend that may be used, with its budget.
pub(crate) struct Candidate {
    pub(crate) backend: Rc<dyn Backend>,
    pub(crate) device: Device,
    /// What a watched file of `--pretend-memory` says that it has.
    pub(crate) limit: Option<Limit>,
    /// Who says how fast it is.
    pub(crate) rated: Rated,
}

impl Candidate {
    /// Bytes that may be held on it if no limit is given.
    pub(crate) fn unlimited(&self) -> u64 {
        budget(&*self.backend, None).0
    }
}

/// Part of the free memory that is left to others.
const HEADROOM: f64 = 0.10;

/// Opens what the options may use and gives each device its budget.
///
/// `cpu` alone does not touch any GPU driver. A software GPU is slower than the CPU that emulates it: it
/// is used only where the options name it.
pub(crate) async fn candidates(options: &LoadOptions) -> Result<Vec<Candidate>, Error> {
    // A device that a watched file names is opened without its limit, which may grow.
    let watched = options.pretend_memory_file.as_deref().map(read_pretended).transpose()?.unwrap_or_default();
    let opened_with = options;
    let mut pretended = options.clone();
    pretended.pretend_memory.extend(watched.iter().map(|(name, &bytes)| (name.clone(), bytes)));
    let options = &pretended;
    let named_by_map = |name: &str| match &options.device_map {
        DeviceMap::Only(only) => only == name,
        DeviceMap::Given(map) => map.values().any(|device| device == name),
        _ => false,
    };
    let named = |name: &str| is_limited(options, name) || named_by_map(name);
    let mapped = |name: &str| match &options.device_map {
        DeviceMap::Only(_) | DeviceMap::Given(_) => named_by_map(name),
        _ => true,
    };
    // A GPU that may hold nothing is not even opened, unless it is named: that takes time and memory. One of CUDA's is: it
    // says which of the others is the same card.
    let forbidden = |name: &str| {
        let closed = name == DISK || (name.starts_with("wgpu:") && !named_by_map(name));
        closed && holds_nothing(options, name)
    };
    let wanted =
        |name: &str, kind| mapped(name) && !forbidden(name) && (kind != DeviceKind::Software || named(name));
    let found = open(&wanted, opened_with).await?;
    check_named(options, &found)?;

    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let cuda = |name: &str| name.starts_with("cuda:");
    let opened = found.backends.iter().filter(|backend| cuda(&backend.info().name)).count();
    let failed = found.failed.iter().filter(|(name, _)| cuda(name)).count();
    let mut candidates = Vec::new();
    for backend in &found.backends {
        let name = &backend.info().name;
        // A card that CUDA drives is used through CUDA, and one that is hidden from CUDA not at all; named, it is used as
        // it is named, its memory counted once.
        let twin = twin(found.backends.iter().map(|backend| &**backend), backend.info());
        let apart = twin.is_none() && !hidden(backend.info(), visible.as_deref(), opened, failed);
        if mapped(name) && (apart || named(name)) {
            let limit = watched.get(name).map(|&bytes| Limit::new(Cell::new(bytes)));
            let backend = match &limit {
                Some(limit) => Rc::new(Limited::new(Rc::clone(backend), Rc::clone(limit))) as Rc<dyn Backend>,
                None => Rc::clone(backend),
            };
            let mut device = device(&*backend, options);
            if let Some(twin) = twin {
                device.pool.clone_from(&twin.name);
            }
            candidates.push(Candidate { backend, device, limit, rated: Rated::default() });
        }
    }
    share_host_memory(&mut candidates, options);
    rates::tell(&mut candidates, options).await?;
    Ok(candidates)
}

/// Whether the options say how much a device may hold, or has.
fn is_limited(options: &LoadOptions, name: &str) -> bool {
    options.max_memory.contains_key(name) || options.pretend_memory.contains_key(name)
}

/// Whether the options forbid a device by its limit.
fn holds_nothing(options: &LoadOptions, name: &str) -> bool {
    options.max_memory.get(name) == Some(&0)
}

impl Found {
    /// Why there is no device `name`.
    pub(crate) fn lacks(&self, name: &str) -> Error {
        if let Some((_, fault)) = self.failed.iter().find(|(failed, _)| failed == name) {
            return fault.clone().into();
        }
        // Rather what is said of its own kind.
        let (kind, _) = name.split_once(':').unwrap_or((name, ""));
        let own = self.absent.iter().find(|why| why.to_lowercase().contains(kind));
        let why = own.or(self.absent.first()).map(|why| format!(" ({why})")).unwrap_or_default();
        // Not all that is there was looked at, so that none is named.
        Error::Usage(format!("there is no {name} here; `halfbyte devices` lists what there is{why}"))
    }
}

/// What the options name must be there. A limit for a device that the map leaves out limits nothing, and a
/// device that cannot even be opened within its limit is one that holds nothing.
fn check_named(options: &LoadOptions, found: &Found) -> Result<(), Error> {
    let names: Vec<&String> = match &options.device_map {
        DeviceMap::Only(only) => vec![only],
        DeviceMap::Given(map) => map.values().collect(),
        _ => {
            let limits = options.max_memory.keys().chain(options.pretend_memory.keys());
            limits.filter(|name| *name != DISK && !holds_nothing(options, name)).collect()
        }
    };
    let must_open = matches!(options.device_map, DeviceMap::Only(_) | DeviceMap::Given(_));
    for name in names {
        if found.backends.iter().any(|backend| backend.info().name == *name) {
            continue;
        }
        match found.failed.iter().find(|(failed, _)| failed == name) {
            Some((_, fault)) if must_open => return Err(fault.clone().into()),
            Some((_, fault)) => tracing::warn!("{fault}: not used"),
            None => return Err(found.lacks(name)),
        }
    }
    Ok(())
}

/// A device as the planner sees it.
fn device(backend: &dyn Backend, options: &LoadOptions) -> Device {
    let info = backend.info();
    // A disk's memory is the host's.
    let memory = if info.kind == DeviceKind::Disk { "cpu" } else { info.name.as_str() };
    let (budget, mut budget_source) = budget(backend, options.max_memory.get(memory).copied());
    if options.pretend_memory.contains_key(memory) && budget_source != "--max-memory" {
        budget_source = format!("--pretend-memory less {:.0} %", HEADROOM * 100.0);
    }
    Device {
        name: info.name.clone(),
        pool: backend.memory().pool,
        budget,
        budget_source,
        kind: match info.kind {
            DeviceKind::Disk => DeviceClass::Disk,
            DeviceKind::Cpu => DeviceClass::Cpu,
            _ => DeviceClass::Gpu,
        },
        emulated: info.kind == DeviceKind::Software,
        rate: None,
        upload: None,
        products: None,
        files: options.max_memory.get(DISK).copied().filter(|_| info.kind == DeviceKind::Disk),
    }
}

/// Bytes that may be held, what the backend holds already included, and who says so.
fn budget(backend: &dyn Backend, limit: Option<u64>) -> (u64, String) {
    let memory = backend.memory();
    let held = backend.ledger().footprint().total();
    // Part of the free memory is left to others.
    let free = memory.free.map(|free| held + (free as f64 * (1.0 - HEADROOM)) as u64);
    match (limit, free) {
        // A backend that was opened with its limit counts that as all there is.
        (Some(limit), Some(_)) if memory.free.is_some_and(|free| held + free >= limit) => {
            (limit, "--max-memory".into())
        }
        (Some(limit), None) => (limit, "--max-memory".into()),
        (_, Some(free)) => (free, format!("{} less {:.0} %", memory.source, HEADROOM * 100.0)),
        // Nothing tells: half of what there is, or whatever the allocations will show.
        (None, None) => match memory.total {
            Some(total) => (total / 2, format!("half of {}, free memory unknown", human_bytes(total))),
            None => (1 << 46, "unknown, found by trying".into()),
        },
    }
}

/// A device with a limit of its own that lives in the host's memory: its limit is taken from the host's
/// budget once, and then each is counted by itself.
fn share_host_memory(candidates: &mut [Candidate], options: &LoadOptions) {
    let Some(host) = candidates.iter().find(|one| is_host(one)) else { return };
    let (pool, host_limited) = (host.device.pool.clone(), options.max_memory.contains_key("cpu"));
    let mut taken = 0;
    for candidate in candidates.iter_mut() {
        let device = &mut candidate.device;
        let limited = is_limited(options, &device.name);
        if device.kind == DeviceClass::Gpu && device.pool == pool && limited {
            device.pool = device.name.clone();
            taken += device.budget;
        }
    }
    let host_free = budget_of_host(candidates);
    for candidate in candidates.iter_mut().filter(|one| is_host(one)) {
        let left = host_free.saturating_sub(taken);
        if taken > 0 && (!host_limited || candidate.device.budget > left) {
            candidate.device.budget = candidate.device.budget.min(left);
        }
    }
}

/// What the host has free, less headroom, whatever limits were given.
fn budget_of_host(candidates: &[Candidate]) -> u64 {
    candidates.iter().find(|one| is_host(one)).map_or(0, Candidate::unlimited)
}

/// Whether a device's memory is the host's: the CPU's, and what layers on the disk take.
fn is_host(candidate: &Candidate) -> bool {
    matches!(candidate.device.kind, DeviceClass::Cpu | DeviceClass::Disk)
}
