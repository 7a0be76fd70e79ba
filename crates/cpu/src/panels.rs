//! Columns in panels, so that the inputs of one stay in the first-level cache while its weights stream by.
//!
//! Sixteen rows of 4096 columns in 4 bits are 32 KiB, as much as such a cache holds: by the next sixteen the inputs have
//! left it. A thread that multiplies from memory then reads a third less a second (`account`: 19 GB/s instead of 27 to 30,
//! the change is between 3072 and 3584 columns). So a matrix with more columns is held as several that lie behind each
//! other, each with some of the columns of all rows.

use std::ops::Range;

/// Where blocks of columns lie in a matrix of groups of rows: `[panels, groups, blocks of a panel]`. What lies between blocks,
/// their scales, is the matrix's own affair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Panels {
    groups: usize,
    blocks: usize,
    /// Blocks of every panel but the last: a multiple of four, and the last has no more.
    width: usize,
}

impl Panels {
    /// Panels of about `wanted` of a row's `blocks`.
    pub fn new(groups: usize, blocks: usize, wanted: usize) -> Self {
        let count = ((blocks + wanted / 2) / wanted).max(1);
        Self { groups, blocks, width: blocks.div_ceil(count).next_multiple_of(4) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.blocks.div_ceil(self.width.max(1))
    }

    /// The blocks of a row that lie in `panel`.
    pub fn blocks(&self, panel: usize) -> Range<usize> {
        panel * self.width..self.blocks.min((panel + 1) * self.width)
    }

    /// The panel of a row's `block`.
    pub fn of(&self, block: usize) -> usize {
        block / self.width
    }

    /// Where a panel lies in memory in which `lines(blocks)` lines hold so many blocks of a group.
    pub fn all(&self, panel: usize, lines: impl Fn(usize) -> usize) -> Range<usize> {
        // All panels before this one are of the same width.
        let start = panel * self.groups * lines(self.width);
        start..start + self.groups * lines(self.blocks(panel).len())
    }

    /// Where the blocks of `group` in `panel` lie in such memory.
    pub fn run(&self, panel: usize, group: usize, lines: impl Fn(usize) -> usize) -> Range<usize> {
        let len = lines(self.blocks(panel).len());
        let start = self.all(panel, lines).start + group * len;
        start..start + len
    }

    /// Lines of such memory.
    pub fn lines(&self, lines: impl Fn(usize) -> usize) -> usize {
        (0..self.count()).map(|panel| self.groups * lines(self.blocks(panel).len())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_has_a_place_of_its_own_and_panels_are_about_as_wide_as_wanted() {
        for (groups, blocks) in
            [(1, 1), (2, 18), (3, 32), (2, 47), (2, 48), (5, 64), (2, 88), (1, 172), (2, 260), (3, 0)]
        {
            let panels = Panels::new(groups, blocks, 32);
            // A line more for each four.
            let lines = |blocks: usize| blocks + blocks / 4;
            let mut seen = vec![false; groups * lines(blocks)];
            assert_eq!(panels.lines(lines), seen.len());
            for panel in 0..panels.count() {
                assert!(panels.blocks(panel).all(|block| panels.of(block) == panel));
                for group in 0..groups {
                    let run = panels.run(panel, group, lines);
                    assert_eq!(run.len(), lines(panels.blocks(panel).len()));
                    assert!(run.start >= panels.all(panel, lines).start);
                    assert!(run.end <= panels.all(panel, lines).end);
                    for seen in &mut seen[run] {
                        assert!(!std::mem::replace(seen, true), "{groups} {blocks}: {group}");
                    }
                }
            }
            assert!(seen.iter().all(|&seen| seen));
            let widths: Vec<usize> = (0..panels.count()).map(|panel| panels.blocks(panel).len()).collect();
            assert_eq!(widths.iter().sum::<usize>(), blocks);
            assert!(widths.iter().all(|&width| (1..48).contains(&width)), "{blocks}: {widths:?}");
            assert!(widths.iter().rev().skip(1).all(|width| width.is_multiple_of(4)), "{blocks}: {widths:?}");
        }
    }
}
