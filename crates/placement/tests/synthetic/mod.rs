//! Models and machines made of numbers.

// Each test program uses its own part.
#![allow(dead_code)]

use halfbyte_backend::{Footprint, Purpose};
use halfbyte_placement::{Costs, Device, DeviceClass};
use std::cell::Cell;
use std::ops::Range;

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// A decoder whose costs are linear, with what real layouts add: a share for a head that is tied to
/// the embedding, activations of the widest block, and bytes held while a device is open.
#[derive(Debug, Clone)]
pub struct Model {
    /// Bytes of each block's weights: embedding, layers, head.
    pub weights: Vec<u64>,
    /// KV bytes a token, of each layer.
    pub kv: u64,
    /// Activation bytes of each block; a stretch takes those of its widest.
    pub activations: Vec<u64>,
    /// Bytes of staging on each device, by index; further devices take none.
    pub resident: Vec<u64>,
    /// Whether head and embedding are one matrix, held once where both are.
    pub tied: bool,
    /// Devices, by index, on which weights stay in their files.
    pub in_files: Vec<usize>,
    /// A device that cannot run a block: `(device, block)`.
    pub cannot: Option<(usize, usize)>,
    /// How often costs were asked for.
    pub asked: Cell<usize>,
}

impl Model {
    /// Llama-2-7B in NF4 with double quantization, 16-bit embedding and head, KV cache of `kv` bytes a
    /// token and layer.
    pub fn llama_2_7b(kv: u64) -> Self {
        let mut weights = vec![100 * MIB; 34];
        weights[0] = 250 * MIB;
        weights[33] = 250 * MIB;
        let mut activations = vec![12 * MIB; 34];
        activations[33] = 13 * MIB;
        let resident = vec![0, 32 * MIB, 32 * MIB];
        Self {
            weights,
            kv,
            activations,
            resident,
            tied: false,
            in_files: Vec::new(),
            cannot: None,
            asked: Cell::new(0),
        }
    }
}

impl Costs for Model {
    fn blocks(&self) -> usize {
        self.weights.len()
    }

    fn name(&self, block: usize) -> String {
        match block {
            0 => "model.embed_tokens".into(),
            _ if block + 1 == self.weights.len() => "lm_head".into(),
            _ => format!("model.layers.{}", block - 1),
        }
    }

    fn stretch(&self, device: usize, blocks: Range<usize>, context: usize) -> Result<Footprint, String> {
        self.asked.set(self.asked.get() + 1);
        assert!(!blocks.is_empty() && blocks.end <= self.blocks(), "asked for {blocks:?}");
        if let Some((_, block)) = self.cannot.filter(|&(who, block)| who == device && blocks.contains(&block))
        {
            return Err(format!("device {device} cannot run {}", self.name(block)));
        }
        let last = self.weights.len() - 1;
        let mut sum = Footprint::new();
        let in_files = self.in_files.contains(&device);
        let held = |purpose| if in_files { Purpose::Mapped } else { purpose };
        sum.add(Purpose::Staging, self.resident.get(device).copied().unwrap_or(0));
        for block in blocks.clone() {
            if block == 0 || block == last {
                if !(self.tied && block == last && blocks.contains(&0)) {
                    sum.add(held(Purpose::Embeddings), self.weights[block]);
                }
            } else {
                sum.add(held(Purpose::Weights), self.weights[block]);
                sum.add(Purpose::KvCache, self.kv * context as u64);
            }
        }
        let widest = blocks.map(|block| self.activations[block]).max().unwrap_or(0);
        sum.add(Purpose::Activations, widest);
        Ok(sum)
    }
}

pub fn device(name: &str, kind: DeviceClass, budget: u64, rate: Option<f64>) -> Device {
    let budget_source = "the test".into();
    Device {
        name: name.into(),
        pool: name.into(),
        budget,
        budget_source,
        kind,
        rate,
        emulated: false,
        upload: None,
        products: None,
        files: None,
    }
}

/// All ways to put `blocks` on `stack` in its order, each device one range or none.
pub fn all_arrangements(stack: &[usize], blocks: Range<usize>) -> Vec<Vec<(usize, Range<usize>)>> {
    let Some((&device, rest)) = stack.split_first() else {
        return if blocks.is_empty() { vec![Vec::new()] } else { Vec::new() };
    };
    let mut all = Vec::new();
    for end in blocks.start..=blocks.end {
        for tail in all_arrangements(rest, end..blocks.end) {
            let mut arrangement = Vec::new();
            if end > blocks.start {
                arrangement.push((device, blocks.start..end));
            }
            arrangement.extend(tail);
            all.push(arrangement);
        }
    }
    all
}

/// Whether stages keep within every budget and every pool, said as the rule says it.
pub fn within(
    devices: &[Device],
    stages: &[(usize, Range<usize>)],
    costs: &dyn Costs,
    context: usize,
) -> bool {
    let mut held: Vec<Option<u64>> = vec![None; devices.len()];
    let mut read = vec![0; devices.len()];
    for (device, blocks) in stages {
        let Ok(footprint) = costs.stretch(*device, blocks.clone(), context) else { return false };
        *held[*device].get_or_insert(0) += footprint.total();
        read[*device] += footprint.get(Purpose::Mapped);
    }
    if devices.iter().zip(&read).any(|(device, &read)| device.files.is_some_and(|limit| read > limit)) {
        return false;
    }
    devices.iter().enumerate().all(|(index, device)| {
        let used = |other: &usize| devices[*other].pool == device.pool && held[*other].is_some();
        let sharers: Vec<usize> = (0..devices.len()).filter(used).collect();
        let together: u64 = sharers.iter().filter_map(|&other| held[other]).sum();
        let least = sharers.iter().map(|&other| devices[other].budget).min();
        held[index].is_none() || least.is_some_and(|least| together <= least)
    })
}

/// The devices in the order of the stack.
pub fn stack(devices: &[Device]) -> Vec<usize> {
    let mut stack: Vec<usize> = (0..devices.len()).collect();
    stack.sort_by_key(|&index| devices[index].kind);
    stack
}
