//! Columns in panels, so that the inputs of one stay in the first-level cache while its weights stream by.
//!
//! Sixteen rows of 4096 columns in 4 bits are 32 KiB, as much as such a cache holds: by the next sixteen the inputs have
//! left it. A thread that multiplies from memory then reads a third less a second (`account`: 19 GB/s instead of 27 to 30,
//! the change is between 3072 and 3584 columns). So of a matrix with more columns, some of the columns of some groups of
//! rows lie together, then others of the same groups.

use crate::lines::Line;
use halfbyte_quant::threads::each;
use std::ops::Range;

/// Groups whose panels lie behind each other before the next groups begin: inputs are fetched again after so many. A thread
/// takes whole spans where it can: a part of one lies in as many pieces as there are panels. 2, 4, 8 and 16 measured the
/// same (`benches/README.md`).
const SPAN: usize = 8;

/// Where blocks of columns lie in a matrix of groups of rows: `[spans, panels, groups of a span, blocks of a panel]`. Their
/// scales lie between them, as the matrix has it.
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

    /// Groups that lie in one piece.
    pub fn grain(&self) -> usize {
        if self.count() > 1 { SPAN } else { 1 }
    }

    /// The blocks of a row that lie in `panel`.
    pub fn blocks(&self, panel: usize) -> Range<usize> {
        panel * self.width..self.blocks.min((panel + 1) * self.width)
    }

    /// The panel of a row's `block`.
    pub fn of(&self, block: usize) -> usize {
        block / self.width
    }

    /// Where the blocks of `group` in `panel` lie in memory in which `lines(blocks)` lines hold so many blocks of a group: as
    /// many for some of them as for the fours and what is left over.
    pub fn run(&self, panel: usize, group: usize, lines: impl Fn(usize) -> usize) -> Range<usize> {
        let len = lines(self.blocks(panel).len());
        let first = group / SPAN * SPAN;
        let panels = SPAN.min(self.groups - first) * lines(panel * self.width);
        let start = first * lines(self.blocks) + panels + group % SPAN * len;
        start..start + len
    }

    /// Lines of such memory.
    pub fn lines(&self, lines: impl Fn(usize) -> usize) -> usize {
        self.groups * lines(self.blocks)
    }

    /// The order of memory: calls `work(panel, group)` for each of some groups and every panel.
    #[inline(always)]
    pub fn walk(&self, groups: Range<usize>, mut work: impl FnMut(usize, usize)) {
        let mut first = groups.start;
        while first < groups.end {
            let end = groups.end.min((first / SPAN + 1) * SPAN);
            for panel in 0..self.count() {
                // Loops: closures of iterators are compiled without the instructions of kernels.
                for group in first..end {
                    work(panel, group);
                }
            }
            first = end;
        }
    }

    /// Calls `fill(panel, group, lines)` for each panel of each group in such memory.
    pub fn fill(
        &self,
        memory: &mut [Line],
        lines: impl Fn(usize) -> usize + Sync,
        fill: impl Fn(usize, usize, &mut [Line]) + Sync,
    ) {
        let spans = memory.chunks_mut((SPAN * lines(self.blocks)).max(1));
        each(spans.enumerate(), |(span, mut memory)| {
            self.walk(span * SPAN..self.groups.min((span + 1) * SPAN), |panel, group| {
                let run = lines(self.blocks(panel).len());
                let Some(run) = memory.split_off_mut(..run) else { return };
                fill(panel, group, run);
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_has_a_place_of_its_own_and_panels_are_about_as_wide_as_wanted() {
        for (groups, blocks) in
            [(1, 1), (2, 18), (9, 32), (2, 47), (2, 48), (11, 64), (2, 88), (8, 172), (2, 260), (3, 0)]
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
                    for seen in &mut seen[run] {
                        assert!(!std::mem::replace(seen, true), "{groups} {blocks}: {group}");
                    }
                }
            }
            assert!(seen.iter().all(|&seen| seen));
            // Memory is walked and filled in its order.
            let mut at = 0;
            panels.walk(0..groups, |panel, group| {
                let run = panels.run(panel, group, lines);
                assert_eq!(std::mem::replace(&mut at, run.end), run.start);
            });
            let mut memory = vec![Line::default(); seen.len()];
            panels.fill(&mut memory, lines, |panel, group, run| {
                run.fill(Line([(panel * 16 + group) as u8; 64]));
            });
            for (panel, group) in (0..panels.count()).flat_map(|panel| (0..groups).map(move |at| (panel, at)))
            {
                let run = &memory[panels.run(panel, group, lines)];
                assert!(run.iter().all(|line| line.0[5] == (panel * 16 + group) as u8));
            }
            let widths: Vec<usize> = (0..panels.count()).map(|panel| panels.blocks(panel).len()).collect();
            assert_eq!(widths.iter().sum::<usize>(), blocks);
            assert!(widths.iter().all(|&width| (1..48).contains(&width)), "{blocks}: {widths:?}");
            assert!(widths.iter().rev().skip(1).all(|width| width.is_multiple_of(4)), "{blocks}: {widths:?}");
        }
    }
}
