//! The bytes of stretches at one context, each asked for once.

use crate::Costs;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

/// A device and the first and last bound of a range of blocks.
type Key = (usize, usize, usize);

/// Answers of [`Costs::stretch`] at one context, kept.
pub(crate) struct Account<'a> {
    costs: &'a dyn Costs,
    context: usize,
    totals: RefCell<HashMap<Key, Result<u64, String>>>,
}

impl<'a> Account<'a> {
    pub(crate) fn new(costs: &'a dyn Costs, context: usize) -> Self {
        Self { costs, context, totals: RefCell::default() }
    }

    /// Bytes that `blocks` take on `device`; none for no blocks.
    ///
    /// # Errors
    /// What the device lacks.
    pub(crate) fn total(&self, device: usize, blocks: Range<usize>) -> Result<u64, String> {
        if blocks.is_empty() {
            return Ok(0);
        }
        let key = (device, blocks.start, blocks.end);
        if let Some(total) = self.totals.borrow().get(&key) {
            return total.clone();
        }
        let total = self.costs.stretch(device, blocks, self.context).map(|footprint| footprint.total());
        self.totals.borrow_mut().insert(key, total.clone());
        total
    }

    /// Whether `device` can run `blocks` within `limit` bytes.
    pub(crate) fn fits(&self, device: usize, blocks: Range<usize>, limit: u64) -> bool {
        self.total(device, blocks).is_ok_and(|total| total <= limit)
    }

    /// The furthest end that a stretch from `start` reaches within `limit` bytes, given that it reaches
    /// `known`. Gallops, so that an end near `known` costs two or three questions.
    pub(crate) fn reach(&self, device: usize, start: usize, known: usize, limit: u64) -> usize {
        let blocks = self.costs.blocks();
        let (mut reached, mut step) = (known, 1);
        while step > 0 {
            let end = reached + step;
            if end <= blocks && self.fits(device, start..end, limit) {
                reached = end;
                step *= 2;
            } else {
                break;
            }
        }
        // `reached + step` is out of reach: halve the gap.
        let mut beyond = (reached + step).min(blocks + 1);
        while beyond - reached > 1 {
            let middle = reached + (beyond - reached) / 2;
            if self.fits(device, start..middle, limit) {
                reached = middle;
            } else {
                beyond = middle;
            }
        }
        reached
    }

    /// The earliest start from which a stretch to `end` fits within `limit` bytes; `end` if none does.
    pub(crate) fn earliest(&self, device: usize, end: usize, limit: u64) -> usize {
        let (mut unfit, mut start) = (0, end);
        while unfit < start {
            let middle = unfit + (start - unfit) / 2;
            if self.fits(device, middle..end, limit) {
                start = middle;
            } else {
                unfit = middle + 1;
            }
        }
        start
    }
}
