//! A checksum that takes no longer than reading the bytes.
//!
//! It tells whether what a run wrote is still there after it ended, even by a failing machine: pages that are missing,
//! zero, or of another time. It is no defence against somebody who makes up bytes that fit; whoever can do that can write
//! the journal, too.

/// FNV-1a (Fowler, Noll, Vo) with 64 bits over words instead of bytes, in lanes side by side, so that a step does not wait
/// for the one before it. A step is a bijection of its lane: no change of a single word goes unnoticed.
#[derive(Debug, Clone)]
pub(super) struct Checksum {
    lanes: [u64; LANES],
    bytes: u64,
}

const LANES: usize = 8;

/// Bytes that all lanes take in a step.
const STEP: usize = LANES * 8;

const PRIME: u64 = 0x0000_0100_0000_01b3;

impl Checksum {
    /// Of no bytes.
    pub(super) fn new() -> Self {
        // Lanes begin at different places: the same word in another lane is another change.
        let lanes = std::array::from_fn(|lane| mixed(0xcbf2_9ce4_8422_2325, lane as u64));
        Self { lanes, bytes: 0 }
    }

    /// Of some bytes.
    pub(super) fn of(bytes: &[u8]) -> u64 {
        let mut sum = Self::new();
        sum.update(bytes);
        sum.finish()
    }

    /// Takes more bytes. All pieces but the last have a length that is a multiple of 64.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        debug_assert!(self.bytes.is_multiple_of(STEP as u64), "only the last piece may be of any length");
        self.bytes += bytes.len() as u64;
        let (steps, rest) = bytes.as_chunks::<STEP>();
        steps.iter().for_each(|step| self.step(step));
        if !rest.is_empty() {
            let mut last = [0; STEP];
            last[..rest.len()].copy_from_slice(rest);
            self.step(&last);
        }
    }

    fn step(&mut self, step: &[u8; STEP]) {
        for (lane, word) in self.lanes.iter_mut().zip(step.as_chunks::<8>().0) {
            *lane = mixed(*lane, u64::from_le_bytes(*word));
        }
    }

    /// The sum of all bytes so far. Their number is part of it.
    pub(super) fn finish(&self) -> u64 {
        // The high bits of a product know more than the low ones.
        let turned = self.lanes.iter().map(|lane| lane ^ (lane >> 32));
        turned.fold(self.bytes, |sum, lane| mixed(sum, lane).rotate_left(29))
    }
}

fn mixed(lane: u64, word: u64) -> u64 {
    (lane ^ word).wrapping_mul(PRIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_shows() {
        let bytes: Vec<u8> = (0..1000u32).map(|at| ((at * at) >> 3) as u8).collect();
        let whole = Checksum::of(&bytes);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut other = bytes.clone();
                other[at] ^= 1 << bit;
                assert_ne!(Checksum::of(&other), whole, "bit {bit} of byte {at}");
            }
        }
        // Lengths, zeros for bytes, and words that changed places.
        let sums: std::collections::HashSet<u64> = (0..1000).map(|len| Checksum::of(&vec![0; len])).collect();
        assert_eq!(sums.len(), 1000);
        for (a, b) in [(0, 8), (0, 64), (8, 640), (104, 896)] {
            let mut other = bytes.clone();
            other.copy_within(b..b + 8, a);
            other[b..b + 8].copy_from_slice(&bytes[a..a + 8]);
            assert_ne!(other, bytes);
            assert_ne!(Checksum::of(&other), whole, "{a} and {b}");
        }
    }

    #[test]
    fn pieces_give_the_sum_of_the_whole() {
        let bytes: Vec<u8> = (0..1000u32).map(|at| (at * 7) as u8).collect();
        for piece in [64, 128, 640, 4096] {
            let mut sum = Checksum::new();
            bytes.chunks(piece).for_each(|piece| sum.update(piece));
            assert_eq!(sum.finish(), Checksum::of(&bytes));
        }
    }
}
