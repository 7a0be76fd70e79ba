//! What the GPU backends plan alike, from shapes alone: how far a submission's rows may reach, the tiles that they
//! are cut into, the sizes of an attention, how keys and values lie in their caches, and what a draw is told. Nothing
//! here knows an API; only GPU backends need it.

mod attention;
mod draws;
mod kv_records;
mod reach;
mod tiles;

pub use attention::{AttendLimits, AttendSizes, KeyTile, SPLIT_KEYS, parts_of};
pub use draws::{DRAW_WORDS, draw_words, seen_bits};
pub use reach::Reach;
pub use tiles::{Tile, all_apart, tiles};
