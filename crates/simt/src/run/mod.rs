//! Running [`Code`]: all lanes of a workgroup together, one operation after the other.

mod arithmetic;
mod machine;
mod memory;
mod shadow;
mod subgroup;

pub(crate) use machine::{Bound, Grid, Machine};
pub(crate) use memory::Store;
