//! The devices as a whole: their order in the stack, their pools, and the time that placements take.

use crate::account::Account;
use crate::device::rates;
use crate::{Costs, Device, DeviceClass};
use std::collections::HashMap;
use std::ops::Range;

/// What handing hidden states from one stage to the next costs a token, in seconds: a submission and a
/// read-back. It keeps the planner from using a second device for nothing.
pub const HANDOVER_SECONDS: f64 = 2e-4;

/// Ranges of blocks and the device of each, in the order of the model.
pub(crate) type Arrangement = Vec<(usize, Range<usize>)>;

/// Devices and costs, with what is derived from them once.
#[derive(Clone)]
pub(crate) struct Machine<'a> {
    pub(crate) devices: &'a [Device],
    pub(crate) costs: &'a dyn Costs,
    /// Devices in the order in which they take blocks: disks, CPUs, GPUs as listed.
    pub(crate) stack: Vec<usize>,
    /// The number of each device's pool among those that several devices share.
    shared: Vec<Option<usize>>,
    /// How many pools are shared.
    pub(crate) shared_pools: usize,
    /// Bytes a second of each device, stated or assumed.
    rates: Vec<f64>,
    /// `read_before[device][block]`: bytes that one token reads from the blocks before `block`.
    read_before: Vec<Vec<u64>>,
}

impl<'a> Machine<'a> {
    pub(crate) fn new(devices: &'a [Device], costs: &'a dyn Costs) -> Self {
        let mut stack: Vec<usize> = (0..devices.len()).collect();
        stack.sort_by_key(|&device| devices[device].kind);

        let mut members: HashMap<&str, usize> = HashMap::new();
        for device in devices {
            *members.entry(&device.pool).or_default() += 1;
        }
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let shared: Vec<_> = devices
            .iter()
            .map(|device| {
                let number = numbers.len();
                (members[device.pool.as_str()] > 1)
                    .then(|| *numbers.entry(device.pool.as_str()).or_insert(number))
            })
            .collect();

        let read_before = (0..devices.len())
            .map(|device| {
                let mut sum = 0_u64;
                let mut before = vec![0];
                for block in 0..costs.blocks() {
                    // A block that the device cannot run is never placed there, whatever it reads.
                    sum = sum.saturating_add(costs.reads(device, block).unwrap_or(0));
                    before.push(sum);
                }
                before
            })
            .collect();

        let shared_pools = numbers.len();
        Self { devices, costs, stack, shared, shared_pools, rates: rates(devices), read_before }
    }

    /// The number of a device's pool, if other devices share it.
    pub(crate) fn shared_pool(&self, device: usize) -> Option<usize> {
        self.shared[device]
    }

    /// The processor whose memory a disk's blocks take; `None` for what is no disk, or a disk without one.
    pub(crate) fn host_of(&self, device: usize) -> Option<usize> {
        let disk = &self.devices[device];
        let is_host = |other: &Device| other.kind == DeviceClass::Cpu && other.pool == disk.pool;
        self.devices.iter().position(is_host).filter(|_| disk.kind == DeviceClass::Disk)
    }

    /// Seconds that `device` takes to read `blocks` once.
    pub(crate) fn seconds(&self, device: usize, blocks: &Range<usize>) -> f64 {
        let before = &self.read_before[device];
        (before[blocks.end] - before[blocks.start]) as f64 / self.rates[device]
    }

    /// Tokens a second of an arrangement, if the rates of all its devices are known.
    pub(crate) fn tokens_per_second(&self, arrangement: &Arrangement) -> Option<f64> {
        let known = arrangement.iter().all(|(device, _)| self.known_rate(*device).is_some());
        let seconds = self.token_seconds(arrangement);
        (known && seconds > 0.0).then(|| seconds.recip())
    }

    /// Seconds of a token, by stated or assumed rates.
    pub(crate) fn token_seconds(&self, arrangement: &Arrangement) -> f64 {
        let handovers = HANDOVER_SECONDS * arrangement.len().saturating_sub(1) as f64;
        handovers + arrangement.iter().map(|(device, blocks)| self.seconds(*device, blocks)).sum::<f64>()
    }

    /// The rate of a device in bytes a second: stated, or of a disk that nobody could measure, a part of its host's.
    pub(crate) fn known_rate(&self, device: usize) -> Option<f64> {
        let one = &self.devices[device];
        let host = self.host_of(device).is_some_and(|host| self.devices[host].stated_rate().is_some());
        one.stated_rate().or_else(|| host.then_some(self.rates[device]))
    }

    /// Bytes that an arrangement takes on each device, or what a device lacks: `(device, why)`.
    pub(crate) fn held(
        &self,
        account: &Account<'_>,
        arrangement: &Arrangement,
    ) -> Result<Vec<u64>, (usize, String)> {
        let mut held = vec![0_u64; self.devices.len()];
        for (device, blocks) in arrangement {
            let total = account.total(*device, blocks.clone()).map_err(|why| (*device, why))?;
            held[*device] = held[*device].saturating_add(total);
        }
        Ok(held)
    }

    /// What is left for `device` when every device holds `held`: its budget and those of the devices
    /// in its pool that hold anything, less what these others hold.
    pub(crate) fn available(&self, device: usize, held: &[u64]) -> u64 {
        let mut limit = self.devices[device].budget;
        let mut others = 0_u64;
        for (other, &bytes) in held.iter().enumerate() {
            if other != device && bytes > 0 && self.devices[other].pool == self.devices[device].pool {
                limit = limit.min(self.devices[other].budget);
                others = others.saturating_add(bytes);
            }
        }
        limit.saturating_sub(others)
    }

    /// Whether an arrangement keeps within every budget and every pool.
    pub(crate) fn fits(&self, account: &Account<'_>, arrangement: &Arrangement) -> bool {
        self.fits_beside(account, arrangement, &[])
    }

    /// [`fits`](Self::fits) beside bytes that devices hold for something else.
    pub(crate) fn fits_beside(
        &self,
        account: &Account<'_>,
        arrangement: &Arrangement,
        others: &[(usize, u64)],
    ) -> bool {
        let mut read = vec![0_u64; self.devices.len()];
        for (device, blocks) in arrangement {
            read[*device] = read[*device].saturating_add(account.mapped(*device, blocks.clone()));
        }
        let readable = self.devices.iter().zip(read).all(|(device, bytes)| device.may_read(bytes));
        readable
            && self.held(account, arrangement).is_ok_and(|mut held| {
                for &(device, bytes) in others {
                    held[device] = held[device].saturating_add(bytes);
                }
                (0..held.len())
                    .all(|device| held[device] == 0 || held[device] <= self.available(device, &held))
            })
    }

    /// The same machine without its disks; `None` if it has none, or nothing else.
    pub(crate) fn without_disks(&self) -> Option<Self> {
        let is_disk = |&device: &usize| self.devices[device].kind == DeviceClass::Disk;
        let stack: Vec<usize> = self.stack.iter().copied().filter(|device| !is_disk(device)).collect();
        (!stack.is_empty() && stack.len() < self.stack.len()).then(|| Self { stack, ..self.clone() })
    }

    /// The number of a device among the GPUs, as accelerate's maps write it.
    pub(crate) fn nth_gpu(&self, number: usize) -> Option<usize> {
        let mut gpus = (0..self.devices.len()).filter(|&d| self.devices[d].kind == DeviceClass::Gpu);
        gpus.nth(number)
    }
}
