//! Development tasks: test, check, bench.
fn main() {}
