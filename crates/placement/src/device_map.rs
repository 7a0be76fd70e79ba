//! Device maps that the user wrote, as accelerate's `device_map`.

use crate::machine::{Arrangement, Machine};
use std::collections::BTreeMap;

/// Every block on one device.
pub(crate) fn only(machine: &Machine<'_>, name: &str) -> Result<Arrangement, String> {
    Ok(vec![(find(machine, name)?, 0..machine.costs.blocks())])
}

/// Every block where `map` says. A device may hold several ranges.
pub(crate) fn given(machine: &Machine<'_>, map: &BTreeMap<String, String>) -> Result<Arrangement, String> {
    let names: Vec<String> = (0..machine.costs.blocks()).map(|block| machine.costs.name(block)).collect();
    for key in map.keys() {
        if !names.iter().any(|name| covers(key, name)) {
            return Err(format!(
                "the device map names {key:?}, but the model has no such block; its blocks are {}",
                abridged(&names)
            ));
        }
    }
    let mut arrangement = Arrangement::new();
    for (block, name) in names.iter().enumerate() {
        let Some((_, target)) =
            map.iter().filter(|(key, _)| covers(key, name)).max_by_key(|(key, _)| key.len())
        else {
            return Err(format!("the device map has no device for {name}; add it, or \"\" for all the rest"));
        };
        let device = find(machine, target)?;
        match arrangement.last_mut() {
            Some((last, range)) if *last == device => range.end = block + 1,
            _ => arrangement.push((device, block..block + 1)),
        }
    }
    Ok(arrangement)
}

/// Whether `key` is `name`, or a prefix of it that ends at a dot.
fn covers(key: &str, name: &str) -> bool {
    key.is_empty() || name.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The device of this name, or the n-th GPU for a number.
fn find(machine: &Machine<'_>, name: &str) -> Result<usize, String> {
    let by_name = machine.devices.iter().position(|device| device.name == name);
    let by_number = || name.parse().ok().and_then(|number| machine.nth_gpu(number));
    by_name.or_else(by_number).ok_or_else(|| {
        let known: Vec<_> = machine.devices.iter().map(|device| device.name.as_str()).collect();
        format!("there is no device {name:?} here, only {}", known.join(", "))
    })
}

fn abridged(names: &[String]) -> String {
    match names {
        [first, second, .., last] if names.len() > 4 => format!("{first}, {second}, …, {last}"),
        _ => names.join(", "),
    }
}
