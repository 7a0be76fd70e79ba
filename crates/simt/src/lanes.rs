//! Sets of a workgroup's invocations.

/// The most invocations of a workgroup: WebGPU's default limit.
pub(crate) const MAX_LANES: usize = 256;

/// A set of lanes, with the range in which they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Lanes {
    bits: [u64; MAX_LANES / 64],
    low: usize,
    high: usize,
    count: usize,
}

impl Lanes {
    /// The lanes `0..count`.
    pub(crate) fn first(count: usize) -> Self {
        let mut bits = [0; MAX_LANES / 64];
        for (index, word) in bits.iter_mut().enumerate() {
            let within = count.saturating_sub(index * 64).min(64);
            *word = if within == 64 { u64::MAX } else { (1 << within) - 1 };
        }
        Self { bits, low: 0, high: count, count }
    }

    fn of(bits: [u64; MAX_LANES / 64]) -> Self {
        let count = bits.iter().map(|word| word.count_ones() as usize).sum();
        let low = bits.iter().position(|&word| word != 0);
        let high = bits.iter().rposition(|&word| word != 0);
        match (low, high) {
            (Some(low), Some(high)) => Self {
                low: low * 64 + bits[low].trailing_zeros() as usize,
                high: high * 64 + 64 - bits[high].leading_zeros() as usize,
                bits,
                count,
            },
            _ => Self::default(),
        }
    }

    /// Those of `self` for which `test` holds.
    pub(crate) fn filter(&self, mut test: impl FnMut(usize) -> bool) -> Self {
        let mut bits = [0; MAX_LANES / 64];
        self.each(|lane| bits[lane / 64] |= u64::from(test(lane)) << (lane % 64));
        Self::of(bits)
    }

    pub(crate) fn or(&self, other: &Self) -> Self {
        Self::of(std::array::from_fn(|i| self.bits[i] | other.bits[i]))
    }

    pub(crate) fn without(&self, other: &Self) -> Self {
        Self::of(std::array::from_fn(|i| self.bits[i] & !other.bits[i]))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn has(&self, lane: usize) -> bool {
        self.bits.get(lane / 64).is_some_and(|word| word >> (lane % 64) & 1 == 1)
    }

    /// The range that holds them all.
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        self.low..self.high
    }

    /// Whether they are all of their range.
    pub(crate) fn is_dense(&self) -> bool {
        self.high - self.low == self.count
    }

    /// The lowest.
    pub(crate) fn lowest(&self) -> Option<usize> {
        (!self.is_empty()).then_some(self.low)
    }

    /// Calls `with` on each, upwards.
    #[inline]
    pub(crate) fn each(&self, mut with: impl FnMut(usize)) {
        if self.is_dense() {
            self.range().for_each(with);
            return;
        }
        for (index, &word) in self.bits.iter().enumerate() {
            let mut left = word;
            while left != 0 {
                with(index * 64 + left.trailing_zeros() as usize);
                left &= left - 1;
            }
        }
    }
}

impl std::fmt::Display for Lanes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.count, self.is_dense()) {
            (0, _) => write!(f, "no lane"),
            (1, _) => write!(f, "lane {}", self.low),
            (_, true) => write!(f, "lanes {} to {}", self.low, self.high - 1),
            (count, false) => write!(f, "{count} lanes of {} to {}", self.low, self.high - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_sets() {
        for count in [0, 1, 63, 64, 65, 128, 200, 256] {
            let all = Lanes::first(count);
            let even = all.filter(|lane| lane % 2 == 0);
            let odd = all.without(&even);
            assert_eq!((even.count(), odd.count()), (count.div_ceil(2), count / 2));
            assert_eq!(even.or(&odd), all);
            assert_eq!(even.without(&odd), even);
            let mut seen = Vec::new();
            odd.each(|lane| seen.push(lane));
            assert_eq!(seen, (0..count).filter(|lane| lane % 2 == 1).collect::<Vec<_>>());
            assert!(seen.iter().all(|&lane| odd.has(lane) && !even.has(lane)));
        }
    }
}
