//! One dispatch: what is bound is checked, then every workgroup runs, in a shuffled order.

use super::bindings::Part;
use super::commands::Dispatch;
use super::device::Shared;
use crate::run::{Bound, Grid, Machine, Store};
use std::sync::{Arc, PoisonError};

/// Runs a dispatch.
///
/// # Errors
/// What breaks WebGPU's rules; nothing has run then.
pub(super) fn run(device: &Shared, dispatch: &Dispatch, serial: u32) -> Result<(), String> {
    let Some(pipeline) = &dispatch.pipeline.0 else {
        return Err("a dispatch of an invalid pipeline".into());
    };
    let (kernel, layout) = &**pipeline;
    let name = &kernel.source.name;
    let mut parts: Vec<(u32, &Part)> = Vec::new();
    for (index, wanted) in layout.groups.iter().enumerate() {
        let Some(wanted) = wanted else { continue };
        let group = dispatch.groups.get(&(index as u32)).and_then(|group| group.0.as_ref());
        let Some(group) = group else {
            return Err(format!("{name}: group {index} is not set or invalid"));
        };
        if group.0 != *wanted {
            return Err(format!("{name}: group {index} has another layout than the pipeline"));
        }
        parts.extend(group.1.iter().map(|part| (index as u32, part)));
    }
    for (_, part) in &parts {
        if let Some(busy) = part.buffer.busy() {
            return Err(format!("{name}: {busy}"));
        }
    }
    check_usage(name, &parts)?;

    // Each buffer once, however often it is bound.
    let mut stores: Vec<Store> = Vec::new();
    let mut owners: Vec<&Part> = Vec::new();
    let mut bound = Vec::new();
    for used in &kernel.code.buffers {
        let part = parts.iter().find(|(group, part)| (*group, part.binding) == (used.group, used.binding));
        let Some((_, part)) = part else {
            return Err(format!("{name}: `{}` is not bound", used.name));
        };
        if part.size < used.least {
            return Err(format!("{name}: `{}` has {} bytes bound of {}", used.name, part.size, used.least));
        }
        let same = |owner: &&Part| Arc::ptr_eq(&owner.buffer.0, &part.buffer.0);
        let store = match owners.iter().position(same) {
            Some(store) => store,
            None => {
                owners.push(part);
                stores.push(std::mem::take(&mut *part.buffer.store()));
                stores.len() - 1
            }
        };
        let words = stores[store].words.len();
        if used.writable && stores[store].shadow.is_empty() {
            stores[store].shadow.resize(words, Default::default());
        }
        bound.push(Bound { store, first: (part.offset / 4) as u32, words: (part.size / 4) as u32 });
    }

    let mut immediates: Vec<u32> = bytemuck::pod_collect_to_vec(&dispatch.immediates);
    immediates.resize(immediates.len().max(kernel.code.immediate_bytes.div_ceil(4) as usize), 0);
    let settings = &device.adapter.settings;
    let grid = Grid {
        size: dispatch.grid,
        serial,
        subgroup: settings.subgroup.map_or(1, |(_, size)| size as usize).max(1),
        zeroed: kernel.zeroed,
    };
    let mut findings = device.adapter.findings.lock().unwrap_or_else(PoisonError::into_inner);
    let mut machine =
        Machine::new(&kernel.code, &kernel.source, &mut findings, &mut stores, &bound, &immediates, grid);
    for id in shuffled(dispatch.grid, settings.seed ^ u64::from(serial)) {
        // A finding says why it stopped.
        if machine.run(id).is_err() {
            break;
        }
    }
    let operations = machine.operations();
    drop(findings);
    *device.adapter.operations.lock().unwrap_or_else(PoisonError::into_inner) += operations;
    for (owner, store) in owners.into_iter().zip(stores) {
        *owner.buffer.store() = store;
    }
    Ok(())
}

/// A buffer that a dispatch may write to must not be bound a second time for reading, nor may what is
/// writable overlap.
fn check_usage(name: &str, parts: &[(u32, &Part)]) -> Result<(), String> {
    for (index, (_, first)) in parts.iter().enumerate() {
        for (_, second) in &parts[index + 1..] {
            let same = Arc::ptr_eq(&first.buffer.0, &second.buffer.0);
            let overlap =
                first.offset < second.offset + second.size && second.offset < first.offset + first.size;
            let (reads, writes) = (!first.writable || !second.writable, first.writable || second.writable);
            if same && writes && (reads || overlap) {
                return Err(format!(
                    "{name}: buffer `{}` is bound at {} and {}, to be written to",
                    first.buffer.0.label, first.binding, second.binding
                ));
            }
        }
    }
    Ok(())
}

/// All workgroups of a grid in an order that `seed` decides (Fisher and Yates' shuffle).
fn shuffled(grid: [u32; 3], seed: u64) -> Vec<[u32; 3]> {
    let [x, y, z] = grid;
    let mut ids: Vec<[u32; 3]> =
        (0..z).flat_map(|k| (0..y).flat_map(move |j| (0..x).map(move |i| [i, j, k]))).collect();
    let mut state = seed;
    for last in (1..ids.len()).rev() {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        ids.swap(last, (word % (last as u64 + 1)) as usize);
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::shuffled;

    #[test]
    fn every_workgroup_comes_once_and_not_in_order() {
        let ordered = |mut ids: Vec<[u32; 3]>| {
            ids.sort_unstable();
            ids
        };
        let (first, second) = (shuffled([5, 3, 2], 1), shuffled([5, 3, 2], 2));
        assert_ne!(first, second);
        assert_eq!(ordered(first.clone()), ordered(second));
        assert_eq!(first, shuffled([5, 3, 2], 1));
        let mut unique = ordered(first);
        unique.dedup();
        assert_eq!(unique.len(), 30);
    }
}
