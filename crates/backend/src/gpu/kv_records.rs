//! A head's keys or values between the records of [`KvRows`](crate::KvRows) and those that GPUs keep
//! ([`Record`]): codes from 1 up in fields of a word, then scales in pairs.

use crate::kv::{KV_BLOCK, KvShape, KvSpan, KvType, Record};
use std::ops::Range;

impl Record {
    /// Bytes of a record on a GPU.
    pub fn bytes(self) -> usize {
        self.words() * 4
    }

    /// Where the records of a span of head `head` lie in `[sequences, heads, slots]` of them: offsets and lengths in
    /// bytes, in order.
    pub fn places(
        self,
        shape: &KvShape,
        heads: usize,
        head: usize,
        span: &KvSpan,
    ) -> impl Iterator<Item = (u64, u64)> + use<> {
        let first = (span.sequence * heads + head) * shape.slots();
        let bytes = self.bytes() as u64;
        let place =
            move |slots: Range<usize>| ((first + slots.start) as u64 * bytes, slots.len() as u64 * bytes);
        shape.places(&span.positions).map(place)
    }

    /// Records of a GPU as those of [`KvRows`](crate::KvRows), as many.
    pub fn to_canonical(self, own: &[u8]) -> Vec<u8> {
        let (bytes, codes) = self.canonical();
        let mut out = vec![0; own.len() / self.bytes() * bytes];
        for (own, record) in own.chunks_exact(self.bytes()).zip(out.chunks_exact_mut(bytes)) {
            let (to, scales) = record.split_at_mut(codes);
            match self.dtype {
                KvType::F32 | KvType::F16 => to.copy_from_slice(&own[..codes]),
                // Both signs by 128 up.
                KvType::Q8 => to.iter_mut().zip(own).for_each(|(to, from)| *to = from ^ 0x80),
                KvType::Q4 => {
                    // A block of an odd length ends with a code of 0.
                    to.fill(0x88);
                    for (feature, (byte, high)) in self.nibbles().enumerate() {
                        let code = own[feature / 2] >> (4 * (feature % 2)) & 15;
                        to[byte] = if high { to[byte] & 15 | code << 4 } else { to[byte] & 0xf0 | code };
                    }
                }
            }
            scales.copy_from_slice(&own[self.code_words() * 4..][..scales.len()]);
        }
        out
    }

    /// The way back of [`to_canonical`](Self::to_canonical).
    pub fn from_canonical(self, rows: &[u8]) -> Vec<u8> {
        let (bytes, codes) = self.canonical();
        let mut out = vec![0; rows.len() / bytes * self.bytes()];
        for (record, own) in rows.chunks_exact(bytes).zip(out.chunks_exact_mut(self.bytes())) {
            let (from, scales) = record.split_at(codes);
            match self.dtype {
                KvType::F32 | KvType::F16 => own[..codes].copy_from_slice(from),
                KvType::Q8 => own.iter_mut().zip(from).for_each(|(to, from)| *to = from ^ 0x80),
                KvType::Q4 => {
                    for (feature, (byte, high)) in self.nibbles().enumerate() {
                        let code = if high { from[byte] >> 4 } else { from[byte] & 15 };
                        own[feature / 2] |= code << (4 * (feature % 2));
                    }
                }
            }
            own[self.code_words() * 4..][..scales.len()].copy_from_slice(scales);
        }
        out
    }

    /// Where each feature's 4-bit code lies in a record of [`KvRows`](crate::KvRows): its byte, and whether in the high
    /// nibble.
    fn nibbles(self) -> impl Iterator<Item = (usize, bool)> {
        (0..self.head_dim).map(move |feature| {
            let (block, within) = (feature / KV_BLOCK, feature % KV_BLOCK);
            let half = (self.head_dim - block * KV_BLOCK).min(KV_BLOCK).div_ceil(2);
            (block * KV_BLOCK / 2 + within % half, within >= half)
        })
    }
}
