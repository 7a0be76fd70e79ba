//! The bytes of stretches at one context, each asked for once.

use crate::{Costs, Device};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

/// A device and the first and last bound of a range of blocks.
type Key = (usize, usize, usize);

/// Bytes of memory, and of mapped files, or what the device lacks.
type Bytes = Result<(u64, u64), String>;

/// Answers of [`Costs::stretch`] at one context, kept.
pub(crate) struct Account<'a> {
    costs: &'a dyn Costs,
    devices: &'a [Device],
    context: usize,
    totals: RefCell<HashMap<Key, Bytes>>,
}

impl<'a> Account<'a> {
    pub(crate) fn new(costs: &'a dyn Costs, devices: &'a [Device], context: usize) -> Self {
        Self { costs, devices, context, totals: RefCell::default() }
    }

    /// Bytes of memory that `blocks` take on `device`; none for no blocks.
    ///
    /// # Errors
    /// What the device lacks.
    pub(crate) fn total(&self, device: usize, blocks: Range<usize>) -> Result<u64, String> {
        self.bytes(device, blocks).map(|(memory, _)| memory)
    }

    /// Bytes of files that `blocks` read on `device`; none where it cannot run them.
    pub(crate) fn mapped(&self, device: usize, blocks: Range<usize>) -> u64 {
        self.bytes(device, blocks).map_or(0, |(_, mapped)| mapped)
    }

    fn bytes(&self, device: usize, blocks: Range<usize>) -> Bytes {
        if blocks.is_empty() {
            return Ok((0, 0));
        }
        let key = (device, blocks.start, blocks.end);
        if let Some(total) = self.totals.borrow().get(&key) {
            return total.clone();
        }
        let total = self
            .costs
            .stretch(device, blocks, self.context)
            .map(|footprint| (footprint.total(), footprint.mapped()));
        self.totals.borrow_mut().insert(key, total.clone());
        total
    }

    /// Whether `device` can run `blocks` within `limit` bytes of memory, and may read their files.
    pub(crate) fn fits(&self, device: usize, blocks: Range<usize>, limit: u64) -> bool {
        self.bytes(device, blocks)
            .is_ok_and(|(memory, mapped)| memory <= limit && self.devices[device].may_read(mapped))
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
