//! The KV cache: its shape, the meaning of its element types, and the form in which parts of it travel.

use crate::Fault;
use half::f16;
use std::ops::Range;

/// Element type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KvType {
    /// 32 bits: exact.
    F32,
    /// 16 bits: the default.
    F16,
    /// 8.5 bits: blocks of 32 features, `scale = f16(absmax / 127)`, codes rounded to nearest even.
    Q8,
    /// 4.5 bits: blocks of 32 features, `scale = f16(absmax / 7)`, codes -7..=7.
    Q4,
}

/// Features that share a scale in [`KvType::Q8`] and [`KvType::Q4`]; the last block of a head may be
/// shorter.
pub const KV_BLOCK: usize = 32;

/// The cache of one layer: keys and values, each `[sequences, kv_heads, slots, head_dim]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KvShape {
    /// Sequences at once.
    pub sequences: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Positions of each sequence.
    pub capacity: usize,
    /// Slots of each sequence where there are fewer than positions, since attention sees a window of them: position `p`
    /// is in slot `p % ring`. None has a slot for every position.
    pub ring: Option<usize>,
    /// Element type.
    pub dtype: KvType,
}

impl KvShape {
    /// Bytes of one head's key (or value) at one position, scales included.
    pub fn head_bytes(&self) -> u64 {
        Record::of(self).canonical().0 as u64
    }

    /// Slots of each sequence.
    pub fn slots(&self) -> usize {
        self.ring.unwrap_or(self.capacity)
    }

    /// Where `positions` lie, in order and no more than there are slots: a range of slots, or two of a ring.
    pub fn places(&self, positions: &Range<usize>) -> impl Iterator<Item = Range<usize>> + Clone + use<> {
        let slots = self.slots().max(1);
        let (start, len) = (positions.start % slots, positions.len());
        let first = len.min(slots - start);
        [start..start + first, 0..len - first].into_iter().filter(|range| !range.is_empty())
    }

    /// The last of `positions`, as many as there are slots.
    pub fn kept(&self, positions: Range<usize>) -> Range<usize> {
        positions.start.max(positions.end.saturating_sub(self.slots()))..positions.end
    }

    /// The most rows of a sequence that a submission may bring where attention has `window`: they are all stored before
    /// the first of them looks at its window.
    pub fn most_rows(&self, window: Option<usize>) -> usize {
        match (self.ring, window) {
            (None, _) => usize::MAX,
            (Some(slots), Some(window)) => (slots + 1).saturating_sub(window),
            (Some(_), None) => 0,
        }
    }

    /// The same, with as few slots as serve attention with `window` in submissions of at most `rows` rows of a sequence.
    #[must_use]
    pub fn with_window(self, window: usize, rows: usize) -> Self {
        let slots = window.saturating_add(rows).saturating_sub(1).max(1);
        Self { ring: (slots < self.capacity).then_some(slots), ..self }
    }

    /// Bytes of keys and values together, without any backend's padding.
    pub fn bytes(&self) -> u64 {
        2 * (self.sequences * self.kv_heads * self.slots()) as u64 * self.head_bytes()
    }
}

/// What GPUs keep of one head's key or value: words of 4 bytes, codes first, then for the quantized types one f16
/// scale per block, two a word. Where the words of many records lie is each backend's own affair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Record {
    /// Element type.
    pub dtype: KvType,
    /// Features.
    pub head_dim: usize,
}

impl Record {
    /// That of a cache.
    pub fn of(shape: &KvShape) -> Self {
        Self { dtype: shape.dtype, head_dim: shape.head_dim }
    }

    /// Features of a word.
    pub fn per_word(self) -> usize {
        match self.dtype {
            KvType::F32 => 1,
            KvType::F16 => 2,
            KvType::Q8 => 4,
            KvType::Q4 => 8,
        }
    }

    /// Bytes of the same in [`KvRows`], and of the codes that begin it.
    pub(crate) fn canonical(self) -> (usize, usize) {
        let codes = match self.dtype {
            KvType::F32 => return (self.head_dim * 4, self.head_dim * 4),
            KvType::F16 => return (self.head_dim * 2, self.head_dim * 2),
            KvType::Q8 => self.head_dim,
            KvType::Q4 => self.head_dim.div_ceil(2),
        };
        (codes + self.head_dim.div_ceil(KV_BLOCK) * 2, codes)
    }

    /// Words that hold codes.
    pub fn code_words(self) -> usize {
        self.head_dim.div_ceil(self.per_word())
    }

    /// Words that hold scales.
    pub fn scale_words(self) -> usize {
        match self.dtype {
            KvType::F32 | KvType::F16 => 0,
            KvType::Q8 | KvType::Q4 => self.head_dim.div_ceil(KV_BLOCK).div_ceil(2),
        }
    }

    /// All words.
    pub fn words(self) -> usize {
        self.code_words() + self.scale_words()
    }
}

/// Consecutive positions of one sequence of a cache. Of a ring, what was stored last in their slots: whether that is
/// theirs, who wrote it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvSpan {
    /// The sequence.
    pub sequence: usize,
    /// Its positions.
    pub positions: Range<usize>,
}

/// The keys and values of a [`KvSpan`] in the form that every backend reads and writes, whatever its own is: each
/// `[kv_heads, positions]` records of [`KvShape::head_bytes`].
///
/// A record is `head_dim` little-endian numbers (F32, F16), or codes followed by one f16 scale for each block of
/// [`KV_BLOCK`] features (Q8, Q4). Q8 codes are signed bytes. Q4 codes are offset by 8; of a block of `n` features,
/// byte `i` holds feature `i` in its low nibble and feature `i + n.div_ceil(2)` in the high one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KvRows {
    /// Keys.
    pub keys: Vec<u8>,
    /// Values.
    pub values: Vec<u8>,
}

impl KvSpan {
    /// Bytes of its keys, and as many of its values, in a cache of `shape`.
    ///
    /// # Errors
    /// [`Fault::Invalid`] if the cache does not reach that far.
    pub fn bytes(&self, shape: &KvShape) -> Result<usize, Fault> {
        let Range { start, end } = self.positions;
        if self.sequence >= shape.sequences
            || start > end
            || end > shape.capacity
            || end - start > shape.slots()
        {
            return Err(Fault::Invalid(format!(
                "positions {start}..{end} of sequence {} in a cache of {} sequences of {} positions, {} at once",
                self.sequence,
                shape.sequences,
                shape.capacity,
                shape.slots()
            )));
        }
        Ok(shape.kv_heads * (end - start) * shape.head_bytes() as usize)
    }

    /// Checks that `rows` are the keys and values of this span.
    ///
    /// # Errors
    /// [`Fault::Invalid`] saying what is too long or too short.
    pub fn check(&self, shape: &KvShape, rows: &KvRows) -> Result<(), Fault> {
        let bytes = self.bytes(shape)?;
        for (name, found) in [("keys", rows.keys.len()), ("values", rows.values.len())] {
            if found != bytes {
                return Err(Fault::Invalid(format!("{name} of {found} bytes where {bytes} are due")));
            }
        }
        Ok(())
    }
}

/// What a head's key or value `[head_dim]` reads back as after it was stored: the one definition that
/// every backend follows.
pub fn round_trip(dtype: KvType, head: &mut [f32]) {
    match dtype {
        KvType::F32 => {}
        KvType::F16 => head.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32()),
        KvType::Q8 => head.chunks_mut(KV_BLOCK).for_each(|block| round_block(block, 127.0)),
        KvType::Q4 => head.chunks_mut(KV_BLOCK).for_each(|block| round_block(block, 7.0)),
    }
}

fn round_block(block: &mut [f32], levels: f32) {
    let absmax = block.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let scale = f16::from_f32(absmax / levels).to_f32();
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for value in block {
        *value = (*value * inverse).round_ties_even().clamp(-levels, levels) * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_hold_a_window_and_a_submission() {
        let shape =
            KvShape { sequences: 1, kv_heads: 1, head_dim: 4, capacity: 100, ring: None, dtype: KvType::F32 };
        let ring = shape.with_window(20, 11);
        assert_eq!((ring.slots(), ring.most_rows(Some(20))), (30, 11));
        assert_eq!(shape.with_window(90, 11), shape);
        assert_eq!(shape.with_window(usize::MAX, 2), shape);
        let places = |shape: &KvShape, positions: Range<usize>| -> Vec<(usize, usize)> {
            shape.places(&positions).map(|slots| (slots.start, slots.end)).collect()
        };
        assert_eq!(places(&shape, 28..58), [(28, 58)]);
        assert_eq!(places(&ring, 28..58), [(28, 30), (0, 28)]);
        assert_eq!(places(&ring, 60..90), [(0, 30)]);
        assert_eq!(places(&ring, 31..31), []);
        assert_eq!((ring.kept(3..50), ring.kept(40..50), shape.kept(3..50)), (20..50, 40..50, 3..50));
        let span = |positions| KvSpan { sequence: 0, positions };
        assert!(span(0..31).bytes(&ring).is_err() && span(90..101).bytes(&ring).is_err());
        assert_eq!(span(70..100).bytes(&ring), Ok(30 * 16));
    }

    #[test]
    fn q8_and_q4_stay_within_half_a_level() {
        let head: Vec<f32> = (0..45).map(|i| ((i * 37 % 91) as f32 - 45.0) / 9.0).collect();
        for (dtype, levels) in [(KvType::Q8, 127.0), (KvType::Q4, 7.0)] {
            let mut stored = head.clone();
            round_trip(dtype, &mut stored);
            for (block, kept) in head.chunks(KV_BLOCK).zip(stored.chunks(KV_BLOCK)) {
                let absmax = block.iter().fold(0.0f32, |max, value| max.max(value.abs()));
                for (value, kept) in block.iter().zip(kept) {
                    assert!((value - kept).abs() <= absmax / levels * 0.51, "{value} became {kept}");
                }
            }
        }
        let mut zero = [0.0; 8];
        round_trip(KvType::Q4, &mut zero);
        assert_eq!(zero, [0.0; 8]);
    }
}
