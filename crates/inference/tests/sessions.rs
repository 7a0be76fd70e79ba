//! Sessions: prefixes that are kept, chunks, limits, and what remains after a text was cut off.

mod fixture;

use fixture::{Fixture, WHOLE, distance, exact, nf4};
use halfbyte_backend::{Caps, SampleParams};
use halfbyte_inference::{
    Came, Engine, Finish, Flow, GenerateOptions, Generation, ModelError, Score, Session, Settings, generate,
    generate_heard, logits, score,
};
use pollster::block_on;

const CHUNKED: Caps = Caps { rows: 5, outputs: 1 };

/// The last row of `[tokens, vocab]`.
fn last(engine: &Engine, logits: &[f32]) -> Vec<f32> {
    logits[logits.len() - engine.blueprint().vocab..].to_vec()
}

fn run(
    engine: &mut Engine,
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
    stop_after: usize,
) -> Generation {
    let mut received = 0;
    let mut on_token = |_| {
        received += 1;
        if received == stop_after { Flow::Stop } else { Flow::Continue }
    };
    block_on(generate(engine, session, prompt, options, &mut on_token)).unwrap()
}

#[test]
fn chunks_give_the_logits_of_the_whole() {
    for model in ["llama_gqa_tied_llama3rope", "mistral_sw8", "gemma3_text"] {
        let fixture = Fixture::open(&format!("models/{model}"));
        let mut whole = fixture.engine(nf4(true), WHOLE);
        let mut chunked = fixture.engine(nf4(true), CHUNKED);
        let input = fixture.input();
        let wanted = block_on(logits(&mut whole, 0, &input)).unwrap();
        let rows = block_on(logits(&mut chunked, 0, &input)).unwrap();
        assert!(distance(&rows, &wanted) < 1e-6, "{model}");
        let found = block_on(Session::new(0).extend(&mut chunked, &input)).unwrap();
        assert!(distance(&found, &last(&whole, &wanted)) < 1e-6, "{model}");
    }
}

#[test]
fn a_prompt_that_is_stopped_between_chunks_is_gone_on_with() {
    let options = GenerateOptions { max_new_tokens: 6, ..GenerateOptions::default() };
    // With whole caches and with rings of eight positions.
    for model in ["llama_mha", "mistral_sw8"] {
        let fixture = Fixture::open(&format!("models/{model}"));
        let input = fixture.input();
        let settings = Settings { rows: Some(CHUNKED.rows), ..exact(nf4(true)) };
        let engine = || fixture.load(fixture.blueprint(&settings), CHUNKED);
        let wanted = run(&mut engine(), &mut Session::new(0), &input, &options, 0).tokens;
        let chunks = input.len().div_ceil(CHUNKED.rows);
        for stop in 1..chunks {
            let (mut engine, mut session) = (engine(), Session::new(0));
            let mut heard = Vec::new();
            let mut listen = |came| {
                heard.push(came);
                if heard.len() == stop { Flow::Stop } else { Flow::Continue }
            };
            let text = block_on(generate_heard(&mut engine, &mut session, &input, &options, &mut listen));
            let text = text.unwrap();
            let done = stop * CHUNKED.rows;
            assert_eq!((text.finish, text.tokens.len()), (Finish::Cancelled, 0), "{model}");
            assert_eq!((text.timings.prefill_tokens, session.tokens()), (done, &input[..done]), "{model}");
            let chunk = |index| Came::Prompt((index + 1) * CHUNKED.rows);
            assert_eq!(heard, (0..stop).map(chunk).collect::<Vec<_>>(), "{model}");

            let rest = run(&mut engine, &mut session, &input, &options, 0);
            assert_eq!(rest.timings.prefill_tokens, input.len() - done, "{model}");
            assert_eq!(rest.tokens, wanted, "{model} after {stop} of {chunks} chunks");
        }
    }
}

#[test]
fn a_second_turn_computes_only_what_is_new() {
    let fixture = Fixture::open("models/llama_mha");
    let mut engine = fixture.engine(None, CHUNKED);
    let input = fixture.input();
    let wanted = last(&engine, &fixture.floats("logits"));

    let mut session = Session::new(0);
    let mut other = input[..15].to_vec();
    other.extend([7, 8, 9]);
    block_on(session.extend(&mut engine, &other)).unwrap();
    assert_eq!(session.reusable(&engine, &input), 15);
    let found = block_on(session.extend(&mut engine, &input)).unwrap();
    assert!(distance(&found, &wanted) < 2e-5);
    assert_eq!(session.tokens(), input);

    // The same again computes the last token, and a shorter prompt its own last.
    assert_eq!(session.reusable(&engine, &input), input.len() - 1);
    let (_, before) = engine.counts();
    let again = block_on(session.extend(&mut engine, &input)).unwrap();
    assert_eq!(engine.counts().1 - before, 1);
    assert!(distance(&again, &wanted) < 2e-5);
    assert_eq!(session.reusable(&engine, &input[..4]), 3);

    // Another engine knows nothing of it.
    let mut rebuilt = fixture.engine(None, CHUNKED);
    assert_eq!(session.reusable(&rebuilt, &input), 0);
    let found = block_on(session.extend(&mut rebuilt, &input)).unwrap();
    assert!(distance(&found, &wanted) < 2e-5);
}

#[test]
fn other_caps_keep_weights_and_caches() {
    let fixture = Fixture::open("models/llama_mha");
    let mut engine = fixture.engine(None, WHOLE);
    let input = fixture.input();
    let wanted = last(&engine, &fixture.floats("logits"));
    let mut session = Session::new(0);
    block_on(session.extend(&mut engine, &input[..20])).unwrap();
    let before = engine.footprints().unwrap().remove(0);
    block_on(engine.set_caps(Caps { rows: 2, outputs: 0 })).unwrap();
    assert_eq!(engine.caps(), Caps { rows: 2, outputs: 1 });
    let after = engine.footprints().unwrap().remove(0);
    assert_eq!(after.planned, after.measured);
    assert!(after.measured.total() < before.measured.total());
    assert_eq!(session.reusable(&engine, &input), 20);
    let found = block_on(session.extend(&mut engine, &input)).unwrap();
    assert!(distance(&found, &wanted) < 2e-5);
}

#[test]
fn a_text_that_is_cut_off_leaves_a_session_to_go_on_with() {
    let fixture = Fixture::open("models/llama_mha");
    let mut engine = fixture.engine(None, CHUNKED);
    let greedy = fixture.ids("greedy16");
    let options = GenerateOptions { max_new_tokens: 16, ..GenerateOptions::default() };
    for sampled in [false, true] {
        // A penalty that does nothing to these tokens goes the way of sampling: no feedback on the device.
        let sample =
            SampleParams { top_k: 1, temperature: if sampled { 1.0 } else { 0.0 }, ..Default::default() };
        let options = GenerateOptions { sample, ..options.clone() };
        for cut in [1, 2, 9] {
            let mut session = Session::new(0);
            let cut_off = run(&mut engine, &mut session, &fixture.input(), &options, cut);
            assert_eq!(cut_off.finish, Finish::Cancelled);
            assert_eq!(cut_off.tokens, greedy[..cut]);
            assert_eq!(cut_off.timings.decode_tokens, cut - 1);

            let mut prompt = fixture.input();
            prompt.extend(&cut_off.tokens);
            assert!(prompt.starts_with(session.tokens()));
            assert!(session.tokens().len() + 1 >= prompt.len());
            let rest = run(&mut engine, &mut session, &prompt, &options, 16 - cut);
            assert_eq!(rest.tokens, greedy[cut..], "after {cut}");
            assert!(rest.timings.prefill_tokens <= 2);
        }
    }
}

#[test]
fn texts_end_for_a_reason() {
    let fixture = Fixture::open("models/llama_mha");
    let input = fixture.input();
    let greedy = fixture.ids("greedy16");
    let context = Some(input.len() + 3);
    let settings = Settings { context, ..exact(None) };
    let mut engine = fixture.load(fixture.blueprint(&settings), CHUNKED);
    let options = GenerateOptions { max_new_tokens: 16, ..GenerateOptions::default() };

    // The last token needs no position of its own.
    let full = run(&mut engine, &mut Session::new(0), &input, &options, 99);
    assert_eq!((full.finish, full.tokens.as_slice()), (Finish::ContextFull, &greedy[..4]));

    let sampled = SampleParams { temperature: 1.0, top_k: 1, ..SampleParams::default() };
    let full = GenerateOptions { sample: sampled, ..options.clone() };
    let full = run(&mut engine, &mut Session::new(0), &input, &full, 99);
    assert_eq!((full.finish, full.tokens.as_slice()), (Finish::ContextFull, &greedy[..4]));

    let none = GenerateOptions { max_new_tokens: 0, ..options.clone() };
    let none = run(&mut engine, &mut Session::new(0), &input, &none, 99);
    assert_eq!((none.finish, none.tokens.len()), (Finish::MaxTokens, 0));

    let mut engine = fixture.engine(None, CHUNKED);
    // 34 is the eighth; 109 the first.
    for (stop, kept) in [(greedy[7], 7), (greedy[0], 0)] {
        let options = GenerateOptions { stop: vec![stop], ..options.clone() };
        let mut session = Session::new(0);
        let text = run(&mut engine, &mut session, &input, &options, 99);
        assert_eq!((text.finish, text.tokens.as_slice()), (Finish::Stop(stop), &greedy[..kept]));
        assert!(session.tokens().starts_with(&input));
        let wanted = block_on(Session::new(0).extend(&mut engine, &input)).unwrap();
        let found = block_on(session.extend(&mut engine, &input)).unwrap();
        assert!(distance(&found, &wanted) < 1e-6);
    }
}

#[test]
fn sampling_is_the_same_whatever_the_chunks() {
    let fixture = Fixture::open("models/llama_mha");
    let sample = SampleParams { temperature: 0.8, top_k: 40, top_p: 0.95, repetition_penalty: 1.2, seed: 11 };
    let options = GenerateOptions { max_new_tokens: 12, sample, stop: Vec::new() };
    let text = |caps| {
        let mut engine = fixture.engine(None, caps);
        run(&mut engine, &mut Session::new(0), &fixture.input(), &options, 99).tokens
    };
    let wanted = text(WHOLE);
    assert_eq!(text(CHUNKED), wanted);
    let other = GenerateOptions { sample: SampleParams { seed: 12, ..sample }, ..options.clone() };
    let mut engine = fixture.engine(None, WHOLE);
    assert_ne!(run(&mut engine, &mut Session::new(0), &fixture.input(), &other, 99).tokens, wanted);
}

#[test]
fn sequences_do_not_see_each_other() {
    let fixture = Fixture::open("models/mistral_sw8");
    let settings = Settings { sequences: 2, ..exact(None) };
    let mut engine = fixture.load(fixture.blueprint(&settings), CHUNKED);
    let input = fixture.input();
    let reversed: Vec<u32> = input.iter().rev().copied().collect();
    let wanted = last(&engine, &fixture.floats("logits"));
    let (mut first, mut second) = (Session::new(0), Session::new(1));
    block_on(first.extend(&mut engine, &input[..20])).unwrap();
    block_on(second.extend(&mut engine, &reversed)).unwrap();
    let found = block_on(first.extend(&mut engine, &input)).unwrap();
    assert!(distance(&found, &wanted) < 2e-5);
    // What else uses a sequence takes it away, and the session notices.
    assert_eq!(first.reusable(&engine, &input), input.len() - 1);
    block_on(logits(&mut engine, 0, &reversed)).unwrap();
    assert_eq!(first.reusable(&engine, &input), 0);
    let found = block_on(first.extend(&mut engine, &input)).unwrap();
    assert!(distance(&found, &wanted) < 2e-5);
    block_on(Session::new(0).extend(&mut engine, &reversed)).unwrap();
    assert_eq!(first.reusable(&engine, &input), 0);
    assert_eq!(second.reusable(&engine, &reversed), reversed.len() - 1);
    let error = block_on(Session::new(2).extend(&mut engine, &input)).unwrap_err();
    assert!(matches!(error, ModelError::Invalid(_)), "{error}");
}

#[test]
fn impossible_prompts_are_refused_with_numbers() {
    let fixture = Fixture::open("models/llama_mha");
    let settings = Settings { context: Some(10), ..exact(None) };
    let mut engine = fixture.load(fixture.blueprint(&settings), CHUNKED);
    let mut session = Session::new(0);
    let error = block_on(session.extend(&mut engine, &[])).unwrap_err();
    assert!(matches!(error, ModelError::EmptyPrompt), "{error}");
    let error = block_on(session.extend(&mut engine, &[1; 11])).unwrap_err();
    assert!(error.to_string().contains("11 tokens") && error.to_string().contains("holds 10"), "{error}");
    let error = block_on(session.extend(&mut engine, &[1, 320])).unwrap_err();
    assert!(error.to_string().contains("320"), "{error}");
    assert!(block_on(session.extend(&mut engine, &[1; 10])).is_ok());

    let sample = SampleParams { temperature: f32::NAN, ..SampleParams::default() };
    let options = GenerateOptions { sample, ..GenerateOptions::default() };
    let error =
        block_on(generate(&mut engine, &mut session, &[1], &options, &mut |_| Flow::Continue)).unwrap_err();
    assert!(error.to_string().contains("temperature"), "{error}");
}

#[test]
fn windows_score_every_token_once() {
    let fixture = Fixture::open("models/mistral_sw8");
    let input = fixture.input();
    let mut whole = fixture.engine(None, CHUNKED);
    let wanted = block_on(score(&mut whole, 0, &input)).unwrap();
    assert_eq!(wanted.tokens, input.len() - 1);

    // By hand, from the reference's logits.
    let rows = fixture.floats("logits");
    let by_hand: f64 = rows
        .chunks(320)
        .zip(&input[1..])
        .map(|(row, &target)| {
            let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
            sum.ln() - f64::from(row[target as usize])
        })
        .sum();
    assert!((wanted.negative_log_likelihood - by_hand).abs() < 1e-3);

    let settings = Settings { context: Some(10), ..exact(None) };
    let mut short = fixture.load(fixture.blueprint(&settings), Caps { rows: 4, outputs: 3 });
    let windows = block_on(score(&mut short, 0, &input)).unwrap();
    assert_eq!(windows.tokens, wanted.tokens);
    // Windows by hand: each continues where the last ended, five tokens back.
    let mut total = Score::default();
    let mut next = 1;
    for begin in [0, 5, 10, 15] {
        let window = &input[begin..(begin + 10).min(input.len())];
        let rows = block_on(logits(&mut whole, 0, window)).unwrap();
        for target in next..begin + window.len() {
            let row = &rows[(target - 1 - begin) * 320..][..320];
            let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
            let negative_log_likelihood = sum.ln() - f64::from(row[input[target] as usize]);
            total.merge(Score { negative_log_likelihood, tokens: 1 });
        }
        next = begin + window.len();
    }
    assert_eq!(total.tokens, windows.tokens);
    let difference = total.negative_log_likelihood - windows.negative_log_likelihood;
    assert!(difference.abs() < 1e-3, "{total:?} {windows:?}");
}
