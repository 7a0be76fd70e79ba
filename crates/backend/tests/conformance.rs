//! The table itself: it can be passed, it covers what there is, and every mutant is caught.

mod oracle;

use halfbyte_backend::conformance::run;
use oracle::Oracle;
use pollster::block_on;
use std::time::Instant;

#[test]
fn the_oracle_passes_against_itself() {
    let mut start = Instant::now();
    let report = block_on(run(&Oracle::new(), &Oracle::new(), &mut |outcome| {
        println!("{:>5} ms  {outcome}", start.elapsed().as_millis());
        start = Instant::now();
    }));
    assert_eq!((report.failed(), report.unsupported()), (0, 0), "{report}");
    assert!(report.outcomes.iter().all(|outcome| outcome.error == 0.0));
}
