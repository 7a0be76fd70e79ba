//! What one variant does, in figures.

use crate::checked::checked;
use crate::machine::{Machine, Read, Thread, Trace};
use crate::settings::Settings;
use halfbyte_shaders::{Flag, Flags, Variant};
use naga::back::pipeline_constants::process_overrides;
use naga::proc::Layouter;
use naga::{AddressSpace, Module, ShaderStage};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A variant's account.
#[derive(Debug, Clone, PartialEq)]
pub struct Sheet {
    /// How weights are loaded, if there are any.
    pub weights: Option<Weights>,
    /// How keys are loaded, if they are; values go the same way.
    pub keys: Option<Keys>,
    /// Barriers that a thread meets.
    pub barriers: usize,
    /// Storage buffers that are bound.
    pub buffers: usize,
    /// Bytes of workgroup memory.
    pub workgroup: u32,
    /// Threads of a workgroup.
    pub threads: u32,
}

/// Loads of the weights' binding.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// Bytes of a load: all that occur.
    pub widths: BTreeSet<u32>,
    pub strides: Strides,
    /// How often a lane loads a byte.
    pub times: f64,
    /// Reads of tables by a weight's code, for each weight.
    pub table_reads: f64,
    /// Reads of tables by a scale's code, for each weight.
    pub scale_reads: f64,
}

/// Loads of the cached keys' binding.
#[derive(Debug, Clone, PartialEq)]
pub struct Keys {
    /// How often the first lane loads so many bytes.
    pub widths: BTreeMap<u32, usize>,
    /// As those of [`Weights`], of the widest loads.
    pub strides: Strides,
}

/// Bytes between the same load of neighbouring lanes (`None`: uneven), and how many loads are that far apart.
pub type Strides = BTreeMap<Option<i64>, usize>;

impl Sheet {
    /// The account of a variant.
    pub fn of(variant: Variant, settings: &Settings) -> Sheet {
        let source = variant.wgsl().unwrap_or_else(|error| panic!("{}: {error}", variant.name()));
        Self::of_source(&variant.name(), &source, variant.flags, settings)
    }

    /// The account of a shader with these flags.
    pub fn of_source(name: &str, source: &str, flags: Flags, settings: &Settings) -> Sheet {
        let (module, info) = checked(name, source, flags);
        let has =
            |constant: &str| module.overrides.iter().any(|(_, one)| one.name.as_deref() == Some(constant));
        let constants = settings.constants.iter().filter(|(constant, _)| has(constant));
        let constants = constants.map(|&(constant, value)| (constant.to_owned(), value)).collect();
        let buffers = module.global_variables.iter().filter(|(_, variable)| is_storage(variable)).count();
        let stage = Some((ShaderStage::Compute, "main"));
        let (module, _) = process_overrides(&module, &info, stage, &constants)
            .unwrap_or_else(|error| panic!("{name}: {error}"));

        let lanes = [0, 1, 2, settings.lanes.saturating_sub(1).max(3)];
        let contents = |buffer: &str, at: u32| settings.word(buffer, at);
        let traces = lanes.map(|index| {
            let thread = Thread { index, workgroup: [0, 0, 0], subgroup_size: 32 };
            (index, Machine::run(&module, &contents, thread))
        });
        let bound = |wanted: &str| {
            let mut variables = module.global_variables.iter();
            let found = variables.find(|(_, variable)| variable.name.as_deref() == Some(wanted));
            found.map(|(handle, _)| move |read: &Read| read.variable == handle)
        };
        Sheet {
            weights: bound("weights").map(|mine| Weights::of(name, &traces, flags.has(Flag::Q4), mine)),
            keys: bound("keys").and_then(|mine| Keys::of(&traces, mine)),
            barriers: traces[0].1.barriers,
            buffers,
            workgroup: workgroup_bytes(&module),
            threads: module.entry_points[0].workgroup_size.iter().product(),
        }
    }
}

/// The reads that are `mine`, of each lane.
fn reads(traces: &[(u32, Trace)], mine: impl Fn(&Read) -> bool) -> Vec<(u32, Vec<Read>)> {
    let mine = |trace: &Trace| trace.reads.iter().copied().filter(|read| mine(read)).collect();
    traces.iter().map(|(lane, trace)| (*lane, mine(trace))).collect()
}

/// How far the loads of the others are from the first one's, as far as both have them.
fn strides(loads: &[(u32, Vec<Read>)]) -> Strides {
    let (first_lane, first) = &loads[0];
    let mut strides = Strides::new();
    for (lane, other) in &loads[1..] {
        for (a, b) in first.iter().zip(other) {
            let distance = i64::from(b.at) - i64::from(a.at);
            let apart = i64::from(lane - first_lane);
            let stride = (distance % apart == 0).then_some(distance / apart);
            *strides.entry(stride).or_insert(0) += 1;
        }
    }
    strides
}

impl Keys {
    /// None if there are no loads.
    fn of(traces: &[(u32, Trace)], mine: impl Fn(&Read) -> bool) -> Option<Keys> {
        let mut widths = BTreeMap::new();
        for read in traces[0].1.reads.iter().filter(|read| mine(read)) {
            *widths.entry(read.bytes).or_insert(0) += 1;
        }
        let (&widest, _) = widths.last_key_value()?;
        let wide = reads(traces, |read| mine(read) && read.bytes == widest);
        Some(Keys { widths, strides: strides(&wide) })
    }
}

impl Weights {
    fn of(name: &str, traces: &[(u32, Trace)], four_bits: bool, mine: impl Fn(&Read) -> bool) -> Weights {
        let loads = reads(traces, mine);
        let (first_lane, first) = &loads[0];
        for (lane, other) in &loads[1..] {
            assert_eq!(
                other.len(),
                first.len(),
                "{name}: lanes {first_lane} and {lane} load differently often"
            );
        }
        let bytes: BTreeSet<u32> = first.iter().flat_map(|read| read.at..read.at + read.bytes).collect();
        let loaded: u32 = first.iter().map(|read| read.bytes).sum();
        let weights = bytes.len() as f64 * if four_bits { 2.0 } else { 0.5 };
        let reads = &traces[0].1.reads;
        let by_code = reads.iter().filter(|read| read.by.codes).count() + traces[0].1.asked;
        let by_scale = reads.iter().filter(|read| read.by.scales && !read.by.codes).count();
        Weights {
            widths: first.iter().map(|read| read.bytes).collect(),
            strides: strides(&loads),
            times: f64::from(loaded) / bytes.len() as f64,
            table_reads: by_code as f64 / weights,
            scale_reads: by_scale as f64 / weights,
        }
    }
}

fn is_storage(variable: &naga::GlobalVariable) -> bool {
    matches!(variable.space, AddressSpace::Storage { .. })
}

fn workgroup_bytes(module: &Module) -> u32 {
    let mut layouter = Layouter::default();
    layouter.update(module.to_ctx()).unwrap();
    let workgroup = module.global_variables.iter().filter(|(_, one)| one.space == AddressSpace::WorkGroup);
    workgroup.map(|(_, variable)| layouter[variable.ty].size.next_multiple_of(16)).sum()
}

impl fmt::Display for Sheet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(weights) = &self.weights {
            let widths: Vec<String> = weights.widths.iter().map(u32::to_string).collect();
            write!(f, "loads of {} bytes {} apart", widths.join("|"), Apart(&weights.strides))?;
            write!(f, ", each {:.2} times", weights.times)?;
            write!(f, ", {:.3} table reads and {:.3} scale reads", weights.table_reads, weights.scale_reads)?;
            write!(f, " a weight; ")?;
        }
        if let Some(keys) = &self.keys {
            let widths: Vec<String> =
                keys.widths.iter().map(|(bytes, count)| format!("{count} loads of {bytes} bytes")).collect();
            write!(f, "{} of keys {} apart; ", widths.join(" and "), Apart(&keys.strides))?;
        }
        write!(f, "{} barriers, {} buffers, ", self.barriers, self.buffers)?;
        write!(f, "{} bytes of workgroup memory for {} threads", self.workgroup, self.threads)
    }
}

/// The distances in words.
struct Apart<'a>(&'a Strides);

impl fmt::Display for Apart<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uneven = || "uneven".to_owned();
        let strides = self.0.keys().map(|stride| stride.map_or_else(uneven, |bytes| bytes.to_string()));
        f.write_str(&strides.collect::<Vec<_>>().join("|"))
    }
}
