//! The Backend trait of fused steps, the memory ledger and the conformance table.
