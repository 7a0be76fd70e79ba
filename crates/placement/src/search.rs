//! The best split of a stack of blocks over devices: a shortest path over block boundaries.

use crate::DeviceClass;
use crate::account::Account;
use crate::machine::{Arrangement, HANDOVER_SECONDS, Machine};
use std::cmp::Ordering;
use std::ops::Range;

/// What is to be least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Objective {
    /// Nothing: any split that fits will do.
    Any,
    /// Seconds of a token.
    Seconds,
    /// Blocks on disk, then on the CPU, then those that are not on the first GPU, on the second, ….
    Sequential,
    /// Blocks on disk, then on the CPU, then the sum of the squares of the GPUs' bytes.
    Balanced,
}

/// A way to place the blocks before some boundary.
#[derive(Clone)]
struct Label {
    /// What it costs by the objective, compared as a tuple.
    value: Vec<f64>,
    /// For each shared pool, the bytes used and the least budget of the devices that use it.
    pools: Vec<(u64, u64)>,
    /// The index in the arena of the label that it extends, with the stage that extends it.
    last: Option<(usize, usize, Range<usize>)>,
}

impl Label {
    /// Whether every continuation of `other` is possible, and no worse, for this one.
    fn dominates(&self, other: &Label) -> bool {
        compare(&self.value, &other.value) != Ordering::Greater
            && self.pools.iter().zip(&other.pools).all(|(mine, its)| mine.0 <= its.0 && mine.1 >= its.1)
    }

    /// The pools after `device` has taken `bytes`; `None` if they do not hold that.
    fn pools_with(&self, machine: &Machine<'_>, device: usize, bytes: u64) -> Option<Vec<(u64, u64)>> {
        let mut pools = self.pools.clone();
        if let Some(pool) = machine.shared_pool(device) {
            let (used, limit) = &mut pools[pool];
            *used = used.saturating_add(bytes);
            *limit = (*limit).min(machine.devices[device].budget);
            if *used > *limit {
                return None;
            }
        }
        Some(pools)
    }
}

fn compare(a: &[f64], b: &[f64]) -> Ordering {
    a.iter().zip(b).map(|(a, b)| a.total_cmp(b)).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

/// The best arrangement in the order of the stack, if any fits.
///
/// `frontier[boundary]` holds the undominated ways to place all blocks before `boundary` on the
/// devices so far: one, unless devices share a pool. Each device in turn is passed over or takes a
/// range that starts at a boundary.
pub(crate) fn search(
    machine: &Machine<'_>,
    account: &Account<'_>,
    objective: Objective,
) -> Option<Arrangement> {
    let blocks = machine.costs.blocks();
    let start = Label {
        value: zero(machine, objective),
        pools: vec![(0, u64::MAX); machine.shared_pools],
        last: None,
    };
    let mut arena = vec![start];
    let mut frontier: Vec<Vec<usize>> = vec![Vec::new(); blocks + 1];
    frontier[0].push(0);

    for (turn, &device) in machine.stack.iter().enumerate() {
        let budget = machine.devices[device].budget;
        let last = turn + 1 == machine.stack.len();
        // The last device has to end with the last block.
        let earliest = if last { account.earliest(device, blocks, budget) } else { 0 };
        let before = frontier.clone();
        let mut reach = 0;
        for (start, ways) in before.iter().enumerate().take(blocks).skip(earliest) {
            if ways.is_empty() {
                continue;
            }
            reach = if last { blocks } else { account.reach(device, start, reach.max(start), budget) };
            let ends = if last { blocks..=blocks } else { start + 1..=reach };
            for end in ends {
                let step = step_value(machine, account, objective, device, start..end);
                // Only what devices share is part of a label; the rest is known to fit.
                let bytes = match machine.shared_pool(device).map(|_| account.total(device, start..end)) {
                    None => 0,
                    Some(Ok(bytes)) => bytes,
                    Some(Err(_)) => continue,
                };
                for &from in ways {
                    let Some(pools) = arena[from].pools_with(machine, device, bytes) else { continue };
                    let mut value: Vec<f64> =
                        arena[from].value.iter().zip(&step).map(|(a, b)| a + b).collect();
                    if objective == Objective::Seconds && arena[from].last.is_some() {
                        value[0] += HANDOVER_SECONDS;
                    }
                    let label = Label { value, pools, last: Some((from, device, start..end)) };
                    if frontier[end].iter().any(|&other| arena[other].dominates(&label)) {
                        continue;
                    }
                    frontier[end].retain(|&other| !label.dominates(&arena[other]));
                    frontier[end].push(arena.len());
                    arena.push(label);
                }
            }
        }
    }

    let best = frontier[blocks].iter().min_by(|&&a, &&b| compare(&arena[a].value, &arena[b].value))?;
    let mut arrangement = Arrangement::new();
    let mut label = &arena[*best];
    while let Some((from, device, range)) = &label.last {
        arrangement.push((*device, range.clone()));
        label = &arena[*from];
    }
    arrangement.reverse();
    Some(arrangement)
}

/// The value of nothing placed.
fn zero(machine: &Machine<'_>, objective: Objective) -> Vec<f64> {
    match objective {
        Objective::Any => Vec::new(),
        Objective::Seconds => vec![0.0],
        Objective::Sequential => vec![0.0; 2 + machine.devices.len()],
        Objective::Balanced => vec![0.0; 3],
    }
}

/// What placing `blocks` on `device` adds to the value.
fn step_value(
    machine: &Machine<'_>,
    account: &Account<'_>,
    objective: Objective,
    device: usize,
    blocks: Range<usize>,
) -> Vec<f64> {
    let count = blocks.len() as f64;
    let mut value = zero(machine, objective);
    match (objective, machine.devices[device].kind) {
        (Objective::Any, _) => {}
        (Objective::Seconds, _) => value[0] = machine.seconds(device, &blocks),
        (_, DeviceClass::Disk) => value[0] = count,
        (_, DeviceClass::Cpu) => value[1] = count,
        (Objective::Sequential, DeviceClass::Gpu) => value[2 + device] = -count,
        (Objective::Balanced, DeviceClass::Gpu) => {
            // Each block asked for alone: few questions, and equal blocks weigh the same everywhere.
            let bytes: f64 =
                blocks.map(|block| account.total(device, block..block + 1).unwrap_or(0) as f64).sum();
            value[2] = bytes * bytes;
        }
    }
    value
}
