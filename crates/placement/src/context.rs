//! The contexts that the planner tries.

use crate::CONTEXT_STEP;

/// Contexts from `low` to `high`: both bounds, and the multiples of [`CONTEXT_STEP`] between them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contexts {
    low: usize,
    high: usize,
}

impl Contexts {
    /// Contexts from `low` to `high`; only `high` if `low` is above it.
    pub(crate) fn new(low: usize, high: usize) -> Self {
        Self { low: low.min(high), high }
    }

    fn len(self) -> usize {
        if self.low == self.high {
            return 1;
        }
        1 + self.high.div_ceil(CONTEXT_STEP) - self.low / CONTEXT_STEP
    }

    fn at(self, index: usize) -> usize {
        if index == 0 {
            return self.low;
        }
        (self.low / CONTEXT_STEP + index).saturating_mul(CONTEXT_STEP).min(self.high)
    }

    /// The largest context that `fits`, given that whatever fits at one fits at every smaller one.
    pub(crate) fn largest(self, mut fits: impl FnMut(usize) -> bool) -> Option<usize> {
        if fits(self.high) {
            return Some(self.high);
        }
        // All contexts before `known` fit, the one at `unfit` does not.
        let (mut known, mut unfit) = (0, self.len() - 1);
        while known < unfit {
            let middle = known + (unfit - known) / 2;
            if fits(self.at(middle)) {
                known = middle + 1;
            } else {
                unfit = middle;
            }
        }
        known.checked_sub(1).map(|index| self.at(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_the_bounds_and_the_multiples_between() {
        let all = |low, high| {
            let contexts = Contexts::new(low, high);
            (0..contexts.len()).map(|index| contexts.at(index)).collect::<Vec<_>>()
        };
        assert_eq!(all(256, 1024), [256, 512, 768, 1024]);
        assert_eq!(all(100, 1000), [100, 256, 512, 768, 1000]);
        assert_eq!(all(300, 310), [300, 310]);
        assert_eq!(all(300, 300), [300]);
        assert_eq!(all(4096, 512), [512]);
    }

    #[test]
    fn the_largest_is_found_at_every_limit() {
        let contexts = Contexts::new(100, 2000);
        let all: Vec<_> = (0..contexts.len()).map(|index| contexts.at(index)).collect();
        for limit in 0..2100 {
            let expected = all.iter().rev().find(|&&context| context <= limit).copied();
            assert_eq!(contexts.largest(|context| context <= limit), expected, "limit {limit}");
        }
    }
}
