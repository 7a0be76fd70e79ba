//! Columns in panels, so that the inputs of one stay in the first-level cache while its weights stream by.
//!
//! Sixteen rows of 4096 columns in 4 bits are 32 KiB, as much as such a cache holds: by the next sixteen the inputs have
//! left it. A thread that multiplies from memory then reads a third less a second (`account`: 19 GB/s instead of 27 to 30,
//! the change is between 3072 and 3584 columns). So a matrix with more columns is held as several that lie behind each
//! other, each with some of the columns of all rows.

use std::ops::Range;

/// Where blocks of columns lie in a matrix of groups of rows: `[panels, groups, blocks of a panel]`.
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

    /// The row and the block of it that is canonical block `number`.
    pub fn row_and_block(&self, number: usize) -> (usize, usize) {
        (number / self.blocks, number % self.blocks)
    }

    /// Where the blocks of all groups in `panel` lie among all blocks.
    pub fn all(&self, panel: usize) -> Range<usize> {
        let Range { start, end } = self.blocks(panel);
        start * self.groups..end * self.groups
    }

    /// Where the blocks of `group` in `panel` lie among all blocks.
    pub fn part(&self, panel: usize, group: usize) -> Range<usize> {
        let len = self.blocks(panel).len();
        let start = self.all(panel).start + group * len;
        start..start + len
    }

    /// Where `block` of `group` lies.
    pub fn at(&self, group: usize, block: usize) -> usize {
        let panel = self.of(block);
        self.part(panel, group).start + block - self.blocks(panel).start
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
            let mut seen = vec![false; groups * blocks];
            for group in 0..groups {
                for block in 0..blocks {
                    let at = panels.at(group, block);
                    assert!(panels.part(panels.of(block), group).contains(&at));
                    assert!(!std::mem::replace(&mut seen[at], true), "{groups} {blocks}: {group} {block}");
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
