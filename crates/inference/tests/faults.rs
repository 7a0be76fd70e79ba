//! A device that is watched, and that fails when it is told to: what overlaps, and what remains after.

mod fixture;

use fixture::{Fixture, exact};
use halfbyte_backend::{
    Answer, Backend, Caps, DeviceInfo, Fault, Fut, Input, Layout, Ledger, Memory, Output, Program, Purpose,
    Rows, Slot, Stretch, Ticket, Want, WeightSource,
};
use halfbyte_cpu::CpuBackend;
use halfbyte_inference::{Engine, Flow, GenerateOptions, Generation, ModelError, Session, generate};
use pollster::block_on;
use std::cell::RefCell;
use std::rc::Rc;

/// What happened, in order: steps and tickets are numbered from 0.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Event {
    /// A step of so many rows; whether it took the token that the device had chosen.
    Submitted { step: usize, rows: usize, chosen: bool },
    /// A step's answer was read.
    Read(usize),
    /// A step that only fills the cache had ended.
    Ended(usize),
}

#[derive(Default)]
struct Log {
    events: Vec<Event>,
    steps: usize,
    /// The step whose answer is a failure.
    fails_at: Option<usize>,
}

/// The reference backend, watched.
struct Watched {
    backend: CpuBackend,
    log: Rc<RefCell<Log>>,
}

struct WatchedProgram {
    program: Box<dyn Program>,
    log: Rc<RefCell<Log>>,
}

impl Backend for Watched {
    fn info(&self) -> &DeviceInfo {
        self.backend.info()
    }

    fn layout(&self) -> &dyn Layout {
        self.backend.layout()
    }

    fn memory(&self) -> Memory {
        self.backend.memory()
    }

    fn ledger(&self) -> &Ledger {
        self.backend.ledger()
    }

    fn reserve<'a>(&'a self, wants: &'a [Want]) -> Fut<'a, Vec<Slot>> {
        self.backend.reserve(wants)
    }

    fn upload<'a>(&'a self, slot: Slot, want: &'a Want, source: &'a dyn WeightSource) -> Fut<'a, ()> {
        self.backend.upload(slot, want, source)
    }

    fn release(&self, slots: &[Slot]) {
        self.backend.release(slots);
    }

    fn compile<'a>(
        &'a self,
        stretch: &'a Stretch,
        slots: &'a [Slot],
        caps: Caps,
    ) -> Fut<'a, Box<dyn Program>> {
        Box::pin(async move {
            let program = self.backend.compile(stretch, slots, caps).await?;
            Ok(Box::new(WatchedProgram { program, log: Rc::clone(&self.log) }) as Box<dyn Program>)
        })
    }
}

impl Program for WatchedProgram {
    fn submit(&mut self, rows: &Rows<'_>) -> Result<Ticket, Fault> {
        let mut log = self.log.borrow_mut();
        let step = log.steps;
        log.steps += 1;
        let chosen = matches!(rows.input, Input::Chosen);
        log.events.push(Event::Submitted { step, rows: rows.places.len(), chosen });
        let ticket = self.program.submit(rows)?;
        let silent = matches!(rows.output, Output::Nothing);
        let log = Rc::clone(&self.log);
        Ok(Box::pin(async move {
            let answer: Answer = ticket.await?;
            let mut log = log.borrow_mut();
            if log.fails_at == Some(step) {
                return Err(Fault::OutOfMemory {
                    device: "cpu".into(),
                    name: "a test".into(),
                    wanted: 1,
                    free: None,
                    what: Purpose::Scratch,
                });
            }
            log.events.push(if silent { Event::Ended(step) } else { Event::Read(step) });
            Ok(answer)
        }))
    }

    fn drain(&mut self) -> Fut<'_, ()> {
        self.program.drain()
    }

    fn counts(&self) -> (u64, u64) {
        self.program.counts()
    }
}

fn watched(fixture: &Fixture, caps: Caps) -> (Engine, Rc<RefCell<Log>>) {
    let log = Rc::new(RefCell::new(Log::default()));
    let backend = Watched { backend: CpuBackend::scalar(), log: Rc::clone(&log) };
    let blueprint = fixture.blueprint(&exact(None));
    let blocks = 0..blueprint.blocks.len();
    (fixture.load_on(blueprint, vec![(Rc::new(backend), blocks)], caps), log)
}

fn run(
    engine: &mut Engine,
    session: &mut Session,
    prompt: &[u32],
    max_new_tokens: usize,
    streamed: &mut Vec<u32>,
) -> Result<Generation, ModelError> {
    let options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
    let mut on_token = |token| {
        streamed.push(token);
        Flow::Continue
    };
    block_on(generate(engine, session, prompt, &options, &mut on_token))
}

#[test]
fn the_next_step_is_submitted_before_the_last_is_read() {
    let fixture = Fixture::open("models/llama_mha");
    let (mut engine, log) = watched(&fixture, Caps { rows: 10, outputs: 1 });
    let input = fixture.input();
    let text = run(&mut engine, &mut Session::new(0), &input, 6, &mut Vec::new()).unwrap();
    assert_eq!(text.tokens, fixture.ids("greedy16")[..6]);

    let submitted = |step, rows, chosen| Event::Submitted { step, rows, chosen };
    let wanted = [
        // The prompt of 24 tokens: a chunk is submitted before the one before it has ended.
        submitted(0, 10, false),
        submitted(1, 10, false),
        Event::Ended(0),
        submitted(2, 4, false),
        Event::Ended(1),
        Event::Read(2),
        // Five further tokens in five steps: the device has always one more to do.
        submitted(3, 1, true),
        submitted(4, 1, true),
        Event::Read(3),
        submitted(5, 1, true),
        Event::Read(4),
        submitted(6, 1, true),
        Event::Read(5),
        submitted(7, 1, true),
        Event::Read(6),
        Event::Read(7),
    ];
    assert_eq!(log.borrow().events, wanted);
}

#[test]
fn a_session_survives_a_failed_step() {
    let fixture = Fixture::open("models/llama_mha");
    let input = fixture.input();
    let greedy = fixture.ids("greedy16");
    // In the prompt's first, middle and last chunk, and in the first, a middle and the last step.
    for fails_at in [0, 1, 2, 3, 7, 17] {
        let (mut engine, log) = watched(&fixture, Caps { rows: 10, outputs: 1 });
        log.borrow_mut().fails_at = Some(fails_at);
        let mut session = Session::new(0);
        let mut streamed = Vec::new();
        let error = run(&mut engine, &mut session, &input, 16, &mut streamed).unwrap_err();
        assert!(matches!(error, ModelError::Fault(Fault::OutOfMemory { .. })), "{error}");
        assert_eq!(streamed, greedy[..streamed.len()]);
        assert_eq!(streamed.len(), fails_at.saturating_sub(2), "failed at {fails_at}");

        // What the session says that it holds, it holds.
        let mut prompt = input.clone();
        prompt.extend(&streamed);
        assert!(prompt.starts_with(session.tokens()), "failed at {fails_at}");
        let left = 16 - streamed.len();
        let rest = run(&mut engine, &mut session, &prompt, left, &mut Vec::new()).unwrap();
        assert_eq!(rest.tokens, greedy[streamed.len()..], "failed at {fails_at}");
    }
}
