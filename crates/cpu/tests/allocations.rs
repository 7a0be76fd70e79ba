//! What is allocated while a program runs: nothing but the answer that is handed over, by any thread.
//!
//! A test of its own binary, for its own allocator. It walks the conformance table, so every kind of step is in it,
//! from the first submission on: buffers are there when a program has been compiled.

mod counting;

use counting::counted;
use halfbyte_backend::conformance::{Outcome, cases, run_case};
use halfbyte_backend::{
    Answer, Backend, Caps, DeviceInfo, Fault, Fut, Layout, Ledger, Memory, Output, Program, Rows, Slot,
    Stretch, Ticket, Want, WeightSource,
};
use halfbyte_cpu::{CpuBackend, CpuOptions, Math, Path};
use pollster::block_on;

/// A backend whose submissions are counted.
struct Watched(CpuBackend);

impl Backend for Watched {
    fn info(&self) -> &DeviceInfo {
        self.0.info()
    }

    fn layout(&self) -> &dyn Layout {
        self.0.layout()
    }

    fn memory(&self) -> Memory {
        self.0.memory()
    }

    fn ledger(&self) -> &Ledger {
        self.0.ledger()
    }

    fn reserve<'a>(&'a self, wants: &'a [Want]) -> Fut<'a, Vec<Slot>> {
        self.0.reserve(wants)
    }

    fn upload<'a>(&'a self, slot: Slot, want: &'a Want, source: &'a dyn WeightSource) -> Fut<'a, ()> {
        self.0.upload(slot, want, source)
    }

    fn release(&self, slots: &[Slot]) {
        self.0.release(slots);
    }

    fn read_bandwidth(&self) -> Fut<'_, f64> {
        self.0.read_bandwidth()
    }

    fn compile<'a>(
        &'a self,
        stretch: &'a Stretch,
        slots: &'a [Slot],
        caps: Caps,
    ) -> Fut<'a, Box<dyn Program>> {
        Box::pin(async move {
            let program = self.0.compile(stretch, slots, caps).await?;
            Ok(Box::new(WatchedProgram(program)) as Box<dyn Program>)
        })
    }
}

struct WatchedProgram(Box<dyn Program>);

impl Program for WatchedProgram {
    fn submit(&mut self, rows: &Rows<'_>) -> Result<Ticket, Fault> {
        let (allocations, ticket) = counted(|| self.0.submit(rows));
        let ticket = ticket?;
        // What a sequence has seen is kept from draw to draw: tokens that are told are copied, and one more is added
        // at each, for which there is no room now and then.
        let grown = match rows.output {
            Output::Sample { draws, .. } if draws.iter().any(|draw| draw.seen.is_some()) => 4 * draws.len(),
            Output::Sample { draws, .. } => draws.len(),
            _ => 0,
        };
        Ok(Box::pin(async move {
            let answer = ticket.await?;
            // The ticket, and the values that it brings.
            let handed = match &answer {
                Answer::Nothing => 1,
                Answer::Hidden(_) | Answer::Logits(_) | Answer::Tokens(_) => 2,
            };
            if (handed..=handed + grown).contains(&allocations) {
                return Ok(answer);
            }
            Err(Fault::Internal(format!("{allocations} allocations, where the answer is {handed}")))
        }))
    }

    fn samples(&self) -> bool {
        self.0.samples()
    }

    fn drain(&mut self) -> Fut<'_, ()> {
        self.0.drain()
    }

    fn counts(&self) -> (u64, u64) {
        self.0.counts()
    }
}

#[test]
fn a_submission_allocates_its_answer_and_nothing_else() {
    let reference = CpuBackend::scalar();
    // Does it count, in other threads too?
    let (found, _) = counted(|| std::thread::spawn(|| vec![1u8; 100]).join());
    assert!(found >= 2, "{found}");
    for math in [Math::Exact, Math::Fast] {
        // Three threads, whatever the machine has.
        let options = CpuOptions { math: Some(math), threads: Some(3), ..CpuOptions::default() };
        let subject = Watched(CpuBackend::with(options).unwrap());
        assert_ne!(subject.0.path(), Path::Scalar);
        let mut warm = false;
        for mut case in cases().into_iter().filter(|case| !case.heavy) {
            // What fast arithmetic computes is for other tests.
            case.tolerance = f64::INFINITY;
            if !std::mem::replace(&mut warm, true) {
                // Threads allocate as they start, which may be after they were asked to.
                block_on(run_case(&case, &reference, &subject.0));
            }
            let outcome: Outcome = block_on(run_case(&case, &reference, &subject));
            let chose_others = outcome.error == f64::INFINITY && math == Math::Fast;
            assert!(outcome.passed() || chose_others, "{math}: {outcome}");
        }
    }
}
