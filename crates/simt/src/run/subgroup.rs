//! Subgroup operations: neighbours by local index, as many as the adapter says.

use super::arithmetic::combine;
use super::machine::Machine;
use crate::code::{Binary, Extent, Gather, Row};
use crate::finding::{Kind, Place};
use crate::lanes::Lanes;

impl Machine<'_> {
    /// The lanes of each subgroup that has live ones; a part of a subgroup alone is a finding.
    fn subgroups(&mut self, live: &Lanes, at: Place) -> Vec<std::ops::Range<usize>> {
        let (size, lanes) = (self.grid.subgroup, self.all.count());
        let mut found = Vec::new();
        for first in (0..lanes).step_by(size) {
            let range = first..(first + size).min(lanes);
            let here = range.clone().filter(|&lane| live.has(lane)).count();
            if here == 0 {
                continue;
            }
            if here < range.len() {
                let (all, workgroup) = (range.len(), self.workgroup);
                self.findings.add(self.source, at, Kind::DivergentSubgroup, || {
                    format!("{here} of {all} lanes from {first} on, workgroup {workgroup}")
                });
            }
            found.push(range);
        }
        found
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn collect(
        &mut self,
        f: Binary,
        extent: Extent,
        empty: u32,
        to: Row,
        a: Row,
        live: &Lanes,
        at: Place,
    ) {
        for range in self.subgroups(live, at) {
            let mut sum = empty;
            for lane in range.clone().filter(|&lane| live.has(lane)) {
                let before = sum;
                sum = combine(f, sum, self.rows[a as usize][lane]);
                match extent {
                    Extent::All => {}
                    Extent::Inclusive => self.rows[to as usize][lane] = sum,
                    Extent::Exclusive => self.rows[to as usize][lane] = before,
                }
            }
            if extent == Extent::All {
                for lane in range.filter(|&lane| live.has(lane)) {
                    self.rows[to as usize][lane] = sum;
                }
            }
        }
    }

    pub(super) fn ballot(&mut self, to: &[Row; 4], a: Option<Row>, live: &Lanes, at: Place) {
        for range in self.subgroups(live, at) {
            let mut words = [0u32; 4];
            for (within, lane) in range.clone().enumerate().filter(|&(_, lane)| live.has(lane)) {
                let set = a.is_none_or(|a| self.rows[a as usize][lane] != 0);
                words[within / 32] |= u32::from(set) << (within % 32);
            }
            for lane in range.filter(|&lane| live.has(lane)) {
                for (&row, word) in to.iter().zip(words) {
                    self.rows[row as usize][lane] = word;
                }
            }
        }
    }

    pub(super) fn gather(&mut self, from: Gather, to: Row, a: Row, live: &Lanes, at: Place) {
        for range in self.subgroups(live, at) {
            let values: Vec<u32> = self.rows[a as usize][range.clone()].to_vec();
            let lowest = range.clone().find(|&lane| live.has(lane)).map_or(0, |lane| lane - range.start);
            for lane in range.clone().filter(|&lane| live.has(lane)) {
                let own = lane - range.start;
                let word = |row: Row| self.rows[row as usize][lane] as usize;
                let (source, must) = match from {
                    Gather::First => (lowest, true),
                    Gather::Broadcast(row) | Gather::Shuffle(row) => (word(row), true),
                    Gather::Xor(row) => (own ^ word(row), true),
                    // The ends of a shift have no source; what they get must not be used.
                    Gather::Down(row) => (own.wrapping_add(word(row)), false),
                    Gather::Up(row) => (own.wrapping_sub(word(row)), false),
                    Gather::QuadBroadcast(row) => (own / 4 * 4 + word(row), true),
                    Gather::QuadSwap(mask) => (own ^ mask as usize, true),
                };
                let present = source < values.len() && live.has(range.start + source);
                if !present && must {
                    let workgroup = self.workgroup;
                    self.findings.add(self.source, at, Kind::AbsentLane, || {
                        format!("lane {lane} of workgroup {workgroup} reads lane {source} of its subgroup")
                    });
                }
                // A NaN, and an index far out of bounds.
                self.rows[to as usize][lane] = if present { values[source] } else { 0x7fc0_dead };
            }
        }
    }
}
