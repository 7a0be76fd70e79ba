//! The account of every allocation that a backend holds.

use crate::{Footprint, Purpose};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// One allocation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LedgerRow {
    /// What it is, as in `model.layers.0.self_attn.qkv`.
    pub name: String,
    /// What it is for.
    pub purpose: Purpose,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Every allocation of one backend, with what it is for. Backends enter an allocation when it has
/// succeeded and strike it when it is freed; the peak is kept.
#[derive(Debug, Default)]
pub struct Ledger(RefCell<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    rows: BTreeMap<u64, LedgerRow>,
    now: Footprint,
    peak: u64,
}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Self {
        Self::default()
    }

    /// Enters an allocation and returns the ticket to [`strike`](Self::strike) it with.
    pub fn enter(&self, name: &str, purpose: Purpose, bytes: u64) -> u64 {
        let mut state = self.0.borrow_mut();
        let id = state.next;
        state.next += 1;
        state.rows.insert(id, LedgerRow { name: name.to_owned(), purpose, bytes });
        state.now.add(purpose, bytes);
        state.peak = state.peak.max(state.now.total());
        id
    }

    /// Strikes an allocation that was freed; an unknown ticket is ignored.
    pub fn strike(&self, id: u64) {
        let mut state = self.0.borrow_mut();
        if let Some(row) = state.rows.remove(&id) {
            state.now.remove(row.purpose, row.bytes);
        }
    }

    /// Bytes held now, by purpose.
    pub fn footprint(&self) -> Footprint {
        self.0.borrow().now.clone()
    }

    /// The most bytes that were held at once.
    pub fn peak(&self) -> u64 {
        self.0.borrow().peak
    }

    /// All allocations held now, oldest first.
    pub fn rows(&self) -> Vec<LedgerRow> {
        self.0.borrow().rows.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strikes_return_to_zero_and_peak_stays() {
        let ledger = Ledger::new();
        let a = ledger.enter("a", Purpose::Weights, 100);
        let b = ledger.enter("b", Purpose::KvCache, 20);
        assert_eq!(ledger.footprint().total(), 120);
        ledger.strike(a);
        ledger.strike(a);
        assert_eq!(ledger.footprint().get(Purpose::Weights), 0);
        assert_eq!(ledger.footprint().get(Purpose::KvCache), 20);
        ledger.strike(b);
        assert_eq!(ledger.footprint(), Footprint::new());
        assert_eq!(ledger.peak(), 120);
        assert!(ledger.rows().is_empty());
    }
}
