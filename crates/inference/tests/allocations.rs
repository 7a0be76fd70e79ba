//! What the engine allocates for each token of a text, beside what its backend does.

#[path = "../../cpu/tests/counting/mod.rs"]
mod counting;
mod fixture;

use fixture::{Fixture, nf4};
use halfbyte_backend::{Backend, Caps};
use halfbyte_cpu::CpuBackend;
use halfbyte_inference::{Flow, GenerateOptions, Session, generate};
use pollster::block_on;
use std::rc::Rc;

/// The most that a token may take: a handful of futures, which the trait boxes, and lists of one element.
const MOST: usize = 16;

#[test]
fn a_token_takes_a_handful_of_small_allocations() {
    let fixture = Fixture::open("models/llama_mha");
    let backend: Rc<dyn Backend> = Rc::new(CpuBackend::new().unwrap());
    let blueprint = fixture.blueprint(&fixture::exact(nf4(true)));
    let blocks = 0..blueprint.blocks.len();
    let mut engine = fixture.load_on(blueprint, vec![(backend, blocks)], Caps { rows: 16, outputs: 1 });
    let options = GenerateOptions { max_new_tokens: 24, ..GenerateOptions::default() };
    let (mut session, input) = (Session::new(0), fixture.input());
    let (mut tokens, mut found) = (0, 0);
    let mut count = |_| {
        tokens += 1;
        match tokens {
            4 => counting::start(),
            20 => found = counting::stop(),
            _ => {}
        }
        Flow::Continue
    };
    block_on(generate(&mut engine, &mut session, &input, &options, &mut count)).unwrap();
    let each = found as f64 / 16.0;
    println!("{each} allocations a token");
    // Lists that grow may be asked for anew once.
    assert!(found > 0 && found <= 16 * MOST, "{each} allocations a token");
}
