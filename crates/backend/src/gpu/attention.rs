//! The sizes of an attention, chosen to fit a workgroup.

use crate::kv::Record;
use crate::{Attend, Fault, Kind, KvType, Pre, Reg, Step, Stretch};
use std::collections::BTreeMap;

/// Keys below which a context is not split further.
pub const SPLIT_KEYS: usize = 256;
/// Queries that one workgroup holds at most.
const MAX_QUERIES: usize = 16;
/// Features of its queries at most, for each thread.
const FEATURES: usize = 16;

/// What bounds a workgroup that attends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttendLimits {
    /// Threads of a workgroup.
    pub threads: usize,
    /// Words of 4 bytes that tiles, queries and scores may take of its shared memory.
    pub words: usize,
    /// Partial scores of a query and a key that shared memory holds at least.
    pub least_partials: usize,
    /// Slices of a context at most: the product that merges them reads all.
    pub max_splits: usize,
    /// Slices of all heads of a row at most, where they are merged.
    pub max_merged: usize,
    /// Features of a head are a multiple of this where the output stays in splits.
    pub merged_features: usize,
    /// Whether queries, keys and scores are kept in fours: features are padded to fours, and a thread scores a few
    /// queries with four keys at once.
    pub fours: bool,
}

/// How a workgroup scores the keys that it holds at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyTile {
    /// Keys at once.
    pub keys: usize,
    /// Queries that a thread scores together: 1, or where keys are in fours 1, 2 or 4.
    pub query_tile: usize,
    /// Threads that share such scores, each with a part of the features.
    pub lanes: usize,
}

impl KeyTile {
    /// The smallest.
    pub const LEAST: Self = Self { keys: 1, query_tile: 1, lanes: 1 };
}

/// The sizes of one attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttendSizes {
    /// How keys and values are kept.
    pub record: Record,
    /// Workgroups that share the query heads of a key-value head.
    pub pieces: usize,
    /// Query heads of a workgroup.
    pub heads_here: usize,
    /// Rows that a workgroup can take in prompts.
    pub tile_rows: usize,
    /// Slices of the context in decode.
    pub splits: usize,
    /// Whether the output stays in splits in decode, for the product that reads it.
    pub parts: bool,
}

impl AttendLimits {
    /// The sizes for step `index` of `stretch`, which is `attend`.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] on `device` if a head is too wide; [`Fault::Internal`] if its cache is none.
    pub fn sizes(
        &self,
        device: &str,
        stretch: &Stretch,
        index: usize,
        attend: &Attend,
    ) -> Result<AttendSizes, Fault> {
        let head_dim = attend.head_dim;
        let (dtype, capacity) = match attend.cache {
            None => (KvType::F32, 0),
            Some(id) => match &stretch.want(id)?.kind {
                Kind::Kv(shape) => (shape.dtype, shape.capacity),
                _ => return Err(Fault::Internal("attention over something that is no cache".into())),
            },
        };
        let record = Record { dtype, head_dim };
        let group = attend.heads / attend.kv_heads;
        // Tiles of fewer than 8 keys would be all barriers: rather fewer heads in a workgroup.
        let fits = |queries: usize, least: usize| {
            queries <= MAX_QUERIES
                && queries * head_dim <= FEATURES * self.threads
                && self.keys(queries, record).is_some_and(|tile| tile.keys >= least)
        };
        let cut = |least: usize| {
            let mut pieces = (1..=group).filter(|&pieces| group.is_multiple_of(pieces));
            pieces.find(|&pieces| fits(group / pieces, least)).map(|pieces| (pieces, least))
        };
        let Some((pieces, least)) = cut(8).or_else(|| cut(1)) else {
            let what = format!(
                "heads of {head_dim} features exceed its workgroup memory; run this model on the CPU"
            );
            return Err(Fault::Unsupported { device: device.to_owned(), what });
        };
        let heads_here = group / pieces;
        let tile_rows =
            (1..=MAX_QUERIES).take_while(|&rows| fits(rows * heads_here, least)).last().unwrap_or(1);
        let parts = attend.cache.is_some()
            && head_dim.is_multiple_of(self.merged_features)
            && mergeable(stretch, index, attend);
        let most = (self.max_merged / attend.heads).clamp(1, self.max_splits);
        let splits = if parts { capacity.div_ceil(SPLIT_KEYS).clamp(1, most) } else { 1 };
        Ok(AttendSizes { record, pieces, heads_here, tile_rows, splits, parts })
    }

    /// As many keys at once as fit beside `queries` queries; none if not even one does.
    pub fn keys(&self, queries: usize, record: Record) -> Option<KeyTile> {
        let tiles: &[usize] = if self.fours { &[4, 2, 1] } else { &[1] };
        [32, 24, 16, 8, 4, 2, 1].into_iter().find_map(|keys| {
            let mut tiles = tiles.iter().filter(|&&tile| tile == 1 || tile <= queries);
            tiles.find_map(|&query_tile| self.tile(queries, keys, query_tile, record))
        })
    }

    /// The tile of `keys` keys where each thread scores `query_tile` queries, if it fits.
    fn tile(&self, queries: usize, keys: usize, query_tile: usize, record: Record) -> Option<KeyTile> {
        let width = if self.fours { 4 } else { 1 };
        let features = record.head_dim.next_multiple_of(width);
        let columns = keys.div_ceil(width);
        let lanes = (self.threads / (queries.div_ceil(query_tile) * columns)).max(1);
        // A power of two that divides the work evenly.
        let mut lanes = if lanes.is_power_of_two() { lanes } else { lanes.next_power_of_two() / 2 };
        // Sums of more parts than eight cost more than the reads that queries share.
        if query_tile > 1 && lanes > 8 || self.fours && features > 4 * self.threads {
            return None;
        }
        let vectors = queries * features + 2 * record.head_dim + 2 * record.words();
        let words = |lanes: usize| {
            let scores = queries * columns * width * lanes.max(self.least_partials);
            vectors + keys * (features + width) + scores
        };
        while self.fours && lanes > 4 && words(lanes) > self.words {
            lanes /= 2;
        }
        (words(lanes) <= self.words).then_some(KeyTile { keys, query_tile, lanes })
    }
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

/// Positions of the cache that `attend` has.
fn capacity(stretch: &Stretch, attend: &Attend) -> Option<usize> {
    match &stretch.want(attend.cache?).ok()?.kind {
        Kind::Kv(shape) => Some(shape.capacity),
        _ => None,
    }
}

/// The attention that leaves `reg` in splits, if one does, and its sizes among `attends`, which are by step.
pub fn parts_of<'a>(
    attends: &'a BTreeMap<usize, AttendSizes>,
    stretch: &'a Stretch,
    reg: Reg,
) -> Option<(&'a Attend, &'a AttendSizes)> {
    attends.iter().find_map(|(&index, sizes)| match stretch.steps.get(index) {
        Some(Step::Attend(attend)) if attend.out == reg && sizes.parts => Some((attend, sizes)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_heads_fit_16_kib_with_whole_tiles() {
        let limits = AttendLimits {
            threads: 128,
            words: 4096 - 112,
            least_partials: 2,
            max_splits: 8,
            max_merged: 512,
            merged_features: 1,
            fours: false,
        };
        for (queries, head_dim) in [(1, 128), (4, 128), (8, 128), (16, 64), (2, 256), (7, 64), (1, 80)] {
            for fours in [false, true] {
                let limits = AttendLimits { fours, ..limits };
                let KeyTile { keys, query_tile, lanes } =
                    limits.keys(queries, Record { dtype: KvType::F16, head_dim }).unwrap();
                assert!(keys >= 8, "{queries} queries of {head_dim}: {keys} keys");
                assert!(queries * keys * lanes <= 512 * query_tile);
            }
        }
    }
}
