//! Loads and stores, and what they may not do.

use super::arithmetic::combine;
use super::machine::Machine;
use super::shadow::{Actor, Fault, StorageWord};
use crate::code::{Atomic, Bound as Limit, Pointer, Root, Row};
use crate::finding::{Kind, Place};
use crate::lanes::Lanes;

/// A buffer's contents.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) words: Vec<u32>,
    /// Empty until a shader may write to the buffer; then as long as it.
    pub(crate) shadow: Vec<StorageWord>,
    /// Its label.
    pub(crate) name: String,
}

impl<'a> Machine<'a> {
    /// Computes the addresses of `pointer`; gives the lanes in which they are within bounds. Bindings are at
    /// least as large as their types, so that only indices can go beyond.
    fn locate(&mut self, pointer: &Pointer, live: &Lanes, at: Place) -> Lanes {
        let range = live.range();
        let mut valid = *live;
        self.address[range.clone()].fill(pointer.offset);
        for term in &pointer.terms {
            let limit = match term.bound {
                Limit::Fixed(limit) => limit,
                Limit::Length { buffer, first, stride } => {
                    self.bound[buffer].words.saturating_sub(first) / stride
                }
            };
            let index = &self.rows[term.index as usize];
            let largest = index[range.clone()].iter().fold(0, |most, &i| most.max(i));
            if largest >= limit {
                let beyond = live.filter(|lane| index[lane] >= limit);
                if let Some(lane) = beyond.lowest() {
                    valid = valid.without(&beyond);
                    let (index, workgroup) = (index[lane], self.workgroup);
                    self.findings.add(self.source, at, Kind::OutOfBounds, || {
                        let name = &pointer.name;
                        format!("element {index} of {limit} of {name}, {beyond} of workgroup {workgroup}")
                    });
                }
            }
            for (address, &index) in self.address[range.clone()].iter_mut().zip(&index[range.clone()]) {
                *address = address.wrapping_add(index.wrapping_mul(term.stride));
            }
        }
        valid
    }

    fn actor(&self, lane: usize) -> Actor {
        Actor { workgroup: self.workgroup, epoch: self.storage_epoch, lane: lane as u16 }
    }

    /// Reports a fault of workgroup memory.
    #[cold]
    fn shared_fault(&mut self, fault: Fault, what: &str, word: u32, lane: usize, at: Place) {
        let code = self.code;
        let variable = code.shared.iter().rfind(|variable| variable.first <= word);
        let (name, word) = variable.map_or(("?", word), |found| (found.name.as_str(), word - found.first));
        let workgroup = self.workgroup;
        let (kind, other) = match fault {
            Fault::Unwritten => (Kind::Uninitialized, "not written by this workgroup".to_owned()),
            Fault::Race(Some(other)) => (Kind::WorkgroupRace, format!("and lane {other} in one epoch")),
            Fault::Race(None) => (Kind::WorkgroupRace, "and several lanes in one epoch".to_owned()),
        };
        self.findings.add(self.source, at, kind, || {
            format!("word {word} of {name}, {what} by lane {lane} of workgroup {workgroup}, {other}")
        });
    }

    #[cold]
    fn storage_fault(
        &mut self,
        other: String,
        what: &str,
        word: u32,
        pointer: &Pointer,
        lane: usize,
        at: Place,
    ) {
        let workgroup = self.workgroup;
        let buffer = match pointer.root {
            Root::Buffer(buffer) => self.stores[self.bound[buffer].store].name.as_str(),
            _ => "",
        };
        self.findings.add(self.source, at, Kind::StorageRace, || {
            let name = &pointer.name;
            format!(
                "word {word} of {name} (`{buffer}`), {what} by lane {lane} of workgroup {workgroup}, {other}"
            )
        });
    }

    /// One word of workgroup memory.
    fn read_shared(&mut self, word: u32, lane: usize, atomic: bool, at: Place) -> u32 {
        let shadow = &mut self.shadow[word as usize];
        let (epoch, first) = (self.epoch, self.first_epoch);
        let fault = if atomic {
            shadow.atomic(epoch, first, lane as u64, true)
        } else {
            shadow.read(epoch, first, lane as u64)
        };
        if let Some(fault) = fault.filter(|&fault| fault != Fault::Unwritten || !self.grid.zeroed) {
            self.shared_fault(fault, "read", word, lane, at);
        }
        self.shared[word as usize]
    }

    fn write_shared(&mut self, word: u32, value: u32, lane: usize, atomic: bool, at: Place) {
        let shadow = &mut self.shadow[word as usize];
        let fault = if atomic {
            shadow.atomic(self.epoch, self.first_epoch, lane as u64, false)
        } else {
            shadow.write(self.epoch, lane as u64)
        };
        if let Some(fault) = fault {
            self.shared_fault(fault, "written", word, lane, at);
        }
        self.shared[word as usize] = value;
    }

    fn read_buffer(&mut self, buffer: usize, word: u32, lane: usize, pointer: &Pointer, at: Place) -> u32 {
        let bound = self.bound[buffer];
        let (place, actor, serial) = ((bound.first + word) as usize, self.actor(lane), self.grid.serial);
        let store = &mut self.stores[bound.store];
        let value = store.words[place];
        if let Some(shadow) = store.shadow.get_mut(place) {
            let other =
                if pointer.atomic { shadow.atomic(serial, &actor) } else { shadow.read(serial, &actor) };
            if let Some(other) = other {
                self.storage_fault(other, "read", word, pointer, lane, at);
            }
        }
        value
    }

    fn write_buffer(
        &mut self,
        buffer: usize,
        word: u32,
        value: u32,
        lane: usize,
        pointer: &Pointer,
        at: Place,
    ) {
        let bound = self.bound[buffer];
        let (place, actor, serial) = ((bound.first + word) as usize, self.actor(lane), self.grid.serial);
        let store = &mut self.stores[bound.store];
        let changes = std::mem::replace(&mut store.words[place], value) != value;
        if let Some(shadow) = store.shadow.get_mut(place) {
            let other = if pointer.atomic {
                shadow.atomic(serial, &actor)
            } else {
                shadow.write(serial, &actor, changes)
            };
            if let Some(other) = other {
                self.storage_fault(other, "written", word, pointer, lane, at);
            }
        }
    }

    pub(super) fn load(&mut self, to: &[Row], parts: &[u32], from: &Pointer, live: &Lanes, at: Place) {
        let valid = self.locate(from, live, at);
        let address = std::mem::take(&mut self.address);
        for (&row, &part) in to.iter().zip(parts) {
            let mut out = std::mem::take(&mut self.rows[row as usize]);
            match &from.root {
                Root::Own(rows) => valid.each(|lane| {
                    out[lane] = self.rows[rows[(address[lane] + part) as usize] as usize][lane];
                }),
                Root::Workgroup => valid.each(|lane| {
                    out[lane] = self.read_shared(address[lane] + part, lane, from.atomic, at);
                }),
                Root::Buffer(buffer) => {
                    let bound = self.bound[*buffer];
                    let store = &self.stores[bound.store];
                    if store.shadow.is_empty() {
                        let words = &store.words[bound.first as usize..(bound.first + bound.words) as usize];
                        valid.each(|lane| {
                            out[lane] = words.get((address[lane] + part) as usize).copied().unwrap_or(0);
                        });
                    } else {
                        valid.each(|lane| {
                            out[lane] = self.read_buffer(*buffer, address[lane] + part, lane, from, at);
                        });
                    }
                }
                Root::Immediate => valid.each(|lane| {
                    out[lane] = self.immediates.get((address[lane] + part) as usize).copied().unwrap_or(0);
                }),
            }
            self.rows[row as usize] = out;
        }
        self.address = address;
        // As robust implementations do.
        let beyond = live.without(&valid);
        if !beyond.is_empty() {
            for &row in to {
                let out = &mut self.rows[row as usize];
                beyond.each(|lane| out[lane] = 0);
            }
        }
    }

    pub(super) fn store(&mut self, to: &Pointer, parts: &[u32], from: &[Row], live: &Lanes, at: Place) {
        let valid = self.locate(to, live, at);
        let address = std::mem::take(&mut self.address);
        for (&row, &part) in from.iter().zip(parts) {
            let values = std::mem::take(&mut self.rows[row as usize]);
            match &to.root {
                Root::Own(rows) => valid.each(|lane| {
                    let own = rows[(address[lane] + part) as usize] as usize;
                    self.rows[own][lane] = values[lane];
                }),
                Root::Workgroup => valid.each(|lane| {
                    self.write_shared(address[lane] + part, values[lane], lane, to.atomic, at);
                }),
                Root::Buffer(buffer) => valid.each(|lane| {
                    self.write_buffer(*buffer, address[lane] + part, values[lane], lane, to, at);
                }),
                // naga's validator lets nobody write there.
                Root::Immediate => {}
            }
            self.rows[row as usize] = values;
        }
        self.address = address;
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn pick(
        &mut self,
        to: &[Row],
        from: &[Row],
        index: Row,
        bound: u32,
        what: &str,
        live: &Lanes,
        at: Place,
    ) {
        let mut indices = std::mem::take(&mut self.address);
        indices.copy_from_slice(&self.rows[index as usize]);
        let beyond = live.filter(|lane| indices[lane] >= bound);
        if let Some(lane) = beyond.lowest() {
            let (index, workgroup) = (indices[lane], self.workgroup);
            self.findings.add(self.source, at, Kind::OutOfBounds, || {
                format!("element {index} of {bound} of {what}, {beyond} of workgroup {workgroup}")
            });
        }
        for (part, &row) in to.iter().enumerate() {
            let mut out = std::mem::take(&mut self.rows[row as usize]);
            live.each(|lane| {
                let source = from.get(indices[lane] as usize * to.len() + part);
                out[lane] = source.map_or(0, |&row| self.rows[row as usize][lane]);
            });
            self.rows[row as usize] = out;
        }
        self.address = indices;
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn atomic(
        &mut self,
        f: Atomic,
        pointer: &Pointer,
        value: Row,
        old: Option<Row>,
        exchanged: Option<Row>,
        live: &Lanes,
        at: Place,
    ) {
        let valid = self.locate(pointer, live, at);
        let address = std::mem::take(&mut self.address);
        valid.each(|lane| {
            let word = address[lane];
            let before = match &pointer.root {
                Root::Workgroup => self.read_shared(word, lane, true, at),
                Root::Buffer(buffer) => self.read_buffer(*buffer, word, lane, pointer, at),
                Root::Own(_) | Root::Immediate => return,
            };
            let value = self.rows[value as usize][lane];
            let (after, swapped) = match f {
                Atomic::Combine(f) => (combine(f, before, value), true),
                Atomic::Exchange => (value, true),
                Atomic::CompareExchange(wanted) => {
                    let same = before == self.rows[wanted as usize][lane];
                    (if same { value } else { before }, same)
                }
            };
            match &pointer.root {
                Root::Workgroup => self.write_shared(word, after, lane, true, at),
                Root::Buffer(buffer) => self.write_buffer(*buffer, word, after, lane, pointer, at),
                Root::Own(_) | Root::Immediate => {}
            }
            if let Some(old) = old {
                self.rows[old as usize][lane] = before;
            }
            if let Some(exchanged) = exchanged {
                self.rows[exchanged as usize][lane] = swapped.into();
            }
        });
        self.address = address;
    }
}
