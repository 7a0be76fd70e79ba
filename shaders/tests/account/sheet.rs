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
    /// Bytes between the same load of neighbouring lanes (`None`: uneven), and how many loads are that far apart.
    pub strides: BTreeMap<Option<i64>, usize>,
    /// How often a lane loads a byte.
    pub times: f64,
    /// Reads of tables by a weight's code, for each weight.
    pub table_reads: f64,
    /// Reads of tables by a scale's code, for each weight.
    pub scale_reads: f64,
}

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
        let bound =
            module.global_variables.iter().find(|(_, variable)| variable.name.as_deref() == Some("weights"));
        Sheet {
            weights: bound.map(|(handle, _)| {
                Weights::of(name, &traces, flags.has(Flag::Q4), |read| read.variable == handle)
            }),
            barriers: traces[0].1.barriers,
            buffers,
            workgroup: workgroup_bytes(&module),
            threads: module.entry_points[0].workgroup_size.iter().product(),
        }
    }
}

impl Weights {
    fn of(name: &str, traces: &[(u32, Trace)], four_bits: bool, mine: impl Fn(&Read) -> bool) -> Weights {
        let loads: Vec<(u32, Vec<Read>)> = traces
            .iter()
            .map(|(lane, trace)| (*lane, trace.reads.iter().copied().filter(|read| mine(read)).collect()))
            .collect();
        let (first_lane, first) = &loads[0];
        let mut strides = BTreeMap::new();
        for (lane, other) in &loads[1..] {
            assert_eq!(
                other.len(),
                first.len(),
                "{name}: lanes {first_lane} and {lane} load differently often"
            );
            for (a, b) in first.iter().zip(other) {
                let distance = i64::from(b.at) - i64::from(a.at);
                let apart = i64::from(lane - first_lane);
                let stride = (distance % apart == 0).then_some(distance / apart);
                *strides.entry(stride).or_insert(0) += 1;
            }
        }
        let bytes: BTreeSet<u32> = first.iter().flat_map(|read| read.at..read.at + read.bytes).collect();
        let loaded: u32 = first.iter().map(|read| read.bytes).sum();
        let weights = bytes.len() as f64 * if four_bits { 2.0 } else { 0.5 };
        let reads = &traces[0].1.reads;
        let by_code = reads.iter().filter(|read| read.by.codes).count() + traces[0].1.asked;
        let by_scale = reads.iter().filter(|read| read.by.scales && !read.by.codes).count();
        Weights {
            widths: first.iter().map(|read| read.bytes).collect(),
            strides,
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
            let uneven = || "uneven".to_owned();
            let strides =
                weights.strides.keys().map(|stride| stride.map_or_else(uneven, |bytes| bytes.to_string()));
            let strides: Vec<String> = strides.collect();
            write!(f, "loads of {} bytes {} apart", widths.join("|"), strides.join("|"))?;
            write!(f, ", each {:.2} times", weights.times)?;
            write!(f, ", {:.3} table reads and {:.3} scale reads", weights.table_reads, weights.scale_reads)?;
            write!(f, " a weight; ")?;
        }
        write!(f, "{} barriers, {} buffers, ", self.barriers, self.buffers)?;
        write!(f, "{} bytes of workgroup memory for {} threads", self.workgroup, self.threads)
    }
}
