//! The sizes of an attention dispatch, chosen to fit 16 KiB of workgroup memory.

use crate::kv_plan::{KvPlan, Record};
use crate::layout::Bounds;
use halfbyte_backend::{Attend, Fault, Kind, KvType, Pre, Reg, Step, Stretch};

/// Threads of a workgroup.
pub(crate) const THREADS: usize = 128;
/// Keys below which a context is not split further.
pub(crate) const SPLIT_KEYS: usize = 256;
/// The most splits of a context: the product that merges them reads all.
const MAX_SPLITS: usize = 8;
/// Words of workgroup memory: WebGPU's default, less small arrays.
const WORDS: usize = 4096 - 112;
/// Queries that one workgroup holds at most.
const MAX_QUERIES: usize = 16;
/// Their features at most: 16 for each thread.
const MAX_FEATURES: usize = 16 * THREADS;

/// The sizes of one attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AttendPlan {
    pub(crate) record: Record,
    /// Workgroups that share the query heads of a key-value head.
    pub(crate) pieces: usize,
    /// Query heads of a workgroup.
    pub(crate) heads_here: usize,
    /// Rows that a workgroup can take in prompts.
    pub(crate) tile_rows: usize,
    /// Slices of the context in decode.
    pub(crate) splits: usize,
    /// Whether the output stays in splits in decode, for the product that reads it.
    pub(crate) parts: bool,
}

impl AttendPlan {
    /// The sizes for step `index` of `stretch`.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] if a head is too wide.
    pub(crate) fn new(
        stretch: &Stretch,
        index: usize,
        attend: &Attend,
        bounds: &Bounds,
    ) -> Result<Self, Fault> {
        let (record, capacity) = match attend.cache {
            Some(id) => {
                let Kind::Kv(shape) = &stretch.want(id)?.kind else {
                    return Err(Fault::Internal("attention over something that is no cache".into()));
                };
                (KvPlan::new(shape, bounds)?.record, shape.capacity)
            }
            None => (Record::new(KvType::F32, attend.head_dim), 0),
        };
        let group = attend.heads / attend.kv_heads;
        // Tiles of fewer than 8 keys would be all barriers: rather fewer heads in a workgroup.
        let fits = |queries: usize, least: usize| {
            queries <= MAX_QUERIES
                && queries * attend.head_dim <= MAX_FEATURES
                && keys(queries, attend.head_dim, record.words).is_some_and(|(keys, _)| keys >= least)
        };
        let cut = |least: usize| {
            (1..=group).find(|&pieces| group.is_multiple_of(pieces) && fits(group / pieces, least))
        };
        let (pieces, least) = (cut(8), 8);
        let (pieces, least) = if pieces.is_some() { (pieces, least) } else { (cut(1), 1) };
        let Some(pieces) = pieces else {
            return Err(Fault::Unsupported {
                device: bounds.device.clone(),
                what: format!(
                    "heads of {} features exceed its workgroup memory; run this model on the CPU",
                    attend.head_dim
                ),
            });
        };
        let heads_here = group / pieces;
        let tile_rows =
            (1..=MAX_QUERIES).take_while(|&rows| fits(rows * heads_here, least)).last().unwrap_or(1);
        let parts = attend.cache.is_some() && mergeable(stretch, index, attend);
        let splits = if parts { capacity.div_ceil(SPLIT_KEYS).clamp(1, MAX_SPLITS) } else { 1 };
        Ok(Self { record, pieces, heads_here, tile_rows, splits, parts })
    }
}

/// Keys of a tile for `queries` queries and the threads that share a score; none if not even one fits.
pub(crate) fn keys(queries: usize, head_dim: usize, record_words: usize) -> Option<(usize, usize)> {
    let fixed = (queries + 2) * head_dim + 2 * record_words;
    [32, 24, 16, 8, 4, 2, 1].into_iter().find_map(|keys| {
        let pairs = queries * keys;
        let lanes = (THREADS / pairs).max(1);
        // A power of two that divides the work evenly.
        let lanes = if lanes.is_power_of_two() { lanes } else { lanes.next_power_of_two() / 2 };
        let words = fixed + keys * (head_dim + 1) + pairs * lanes.max(2);
        (words <= WORDS).then_some((keys, lanes))
    })
}

/// Whether the register that step `index` writes can stay in splits: it is written by nothing else and
/// read by products without a prologue only.
fn mergeable(stretch: &Stretch, index: usize, attend: &Attend) -> bool {
    let reg = attend.out;
    if stretch.outputs.contains(&reg) || stretch.inputs.contains(&reg) {
        return false;
    }
    let pre_reads = |pre: &Pre| pre.residual == Some(reg) || pre.emit.is_some_and(|emit| emit.to == reg);
    stretch.steps.iter().enumerate().all(|(other, step)| match step {
        Step::Embed(embed) => embed.out != reg,
        Step::Linear(linear) => {
            let plain = linear.input != reg || linear.pre == Pre::default();
            plain && linear.out != reg && linear.residual != Some(reg) && !pre_reads(&linear.pre)
        }
        Step::Attend(step) => {
            let same_shape = (step.heads, step.head_dim, step.cache.is_some())
                == (attend.heads, attend.head_dim, true)
                && capacity(stretch, step) == capacity(stretch, attend);
            step.qkv != reg && (other == index || step.out != reg || same_shape)
        }
        Step::Moe(moe) => {
            moe.input != reg && moe.out != reg && moe.residual != Some(reg) && !pre_reads(&moe.pre)
        }
        Step::Head(head) => head.input != reg && !pre_reads(&head.pre),
    })
}

fn capacity(stretch: &Stretch, attend: &Attend) -> Option<usize> {
    match &stretch.want(attend.cache?).ok()?.kind {
        Kind::Kv(shape) => Some(shape.capacity),
        _ => None,
    }
}

/// The attention that leaves `reg` in splits, if one does.
pub(crate) fn parts_of<'a>(
    attends: &'a std::collections::BTreeMap<usize, AttendPlan>,
    stretch: &'a Stretch,
    reg: Reg,
) -> Option<(&'a Attend, &'a AttendPlan)> {
    attends.iter().find_map(|(&index, plan)| match &stretch.steps[index] {
        Step::Attend(attend) if attend.out == reg && plan.parts => Some((attend, plan)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_heads_fit_with_whole_tiles() {
        for (queries, head_dim) in [(1, 128), (4, 128), (8, 128), (16, 64), (4, 256), (7, 64), (1, 80)] {
            let record = Record::new(KvType::F16, head_dim);
            let (keys, lanes) = keys(queries, head_dim, record.words).unwrap();
            assert!(keys >= 8, "{queries} queries of {head_dim}: {keys} keys");
            assert!(queries * keys * lanes <= 512);
        }
    }
}
