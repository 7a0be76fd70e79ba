//! Several prompts at once give what each gives alone.

mod fixture;

use fixture::{Fixture, exact, nf4};
use halfbyte_backend::{Caps, SampleParams};
use halfbyte_inference::{
    Finish, Flow, GenerateOptions, Session, Settings, generate, generate_batch, generate_each,
};
use pollster::block_on;

/// Prompts of 1, 24, 9, 17 and 3 tokens; with a window of 8 some go past it.
fn prompts(fixture: &Fixture) -> Vec<Vec<u32>> {
    let input = fixture.input();
    [&input[..1], &input[..], &input[5..14], &input[..17], &input[20..23]].map(<[u32]>::to_vec).into()
}

#[test]
fn texts_of_a_batch_are_those_of_their_prompts_alone() {
    for model in ["mistral_sw8", "gpt2", "gemma3_text"] {
        let fixture = Fixture::open(&format!("models/{model}"));
        let prompts = prompts(&fixture);
        for sample in [
            SampleParams::default(),
            SampleParams {
                temperature: 0.9,
                top_k: 30,
                repetition_penalty: 1.1,
                seed: 5,
                ..Default::default()
            },
        ] {
            let options = GenerateOptions { max_new_tokens: 14, sample, stop: Vec::new() };
            let caps = Caps { rows: 10, outputs: 5 };
            let mut alone = fixture.engine(nf4(true), caps);
            let wanted: Vec<Vec<u32>> = prompts
                .iter()
                .map(|prompt| {
                    let mut session = Session::new(0);
                    let mut go_on = |_| Flow::Continue;
                    block_on(generate(&mut alone, &mut session, prompt, &options, &mut go_on)).unwrap().tokens
                })
                .collect();
            // All together, and where places are fewer than prompts.
            for (sequences, outputs) in [(5, 5), (2, 5), (5, 3), (1, 1)] {
                // Where layers see a window, in rings of 17 slots, each sequence's turned by its own text.
                let settings = Settings { sequences, rows: Some(10), ..exact(nf4(true)) };
                let mut engine = fixture.load(fixture.blueprint(&settings), Caps { rows: 10, outputs });
                let mut streamed = vec![Vec::new(); prompts.len()];
                let mut on_token = |prompt: usize, token| {
                    streamed[prompt].push(token);
                    Flow::Continue
                };
                let found = block_on(generate_batch(&mut engine, &prompts, &options, &mut on_token)).unwrap();
                for (index, text) in found.iter().enumerate() {
                    assert_eq!(text.tokens, wanted[index], "{model} {sequences} {outputs}: prompt {index}");
                    assert_eq!(text.finish, Finish::MaxTokens);
                    assert_eq!(streamed[index], text.tokens);
                }
            }
        }
    }
}

/// Greedy beside draws of several kinds, in one pass; one of the texts is of no tokens at all.
#[test]
fn each_text_of_a_batch_has_options_of_its_own() {
    let fixture = Fixture::open("models/mistral_sw8");
    let prompts = prompts(&fixture);
    let drawn = SampleParams { temperature: 0.9, top_k: 30, seed: 5, ..Default::default() };
    let samples = [
        SampleParams::default(),
        drawn,
        SampleParams { repetition_penalty: 1.3, ..drawn },
        SampleParams { temperature: 0.0, repetition_penalty: 1.3, ..drawn },
        SampleParams { top_p: 0.8, seed: 6, ..drawn },
    ];
    let lengths = [14, 9, 14, 0, 11];
    let options: Vec<GenerateOptions> = samples
        .into_iter()
        .zip(lengths)
        .map(|(sample, max_new_tokens)| GenerateOptions { max_new_tokens, sample, stop: Vec::new() })
        .collect();
    let mut alone = fixture.engine(nf4(true), Caps { rows: 10, outputs: 5 });
    let texts: Vec<(&[u32], &GenerateOptions)> =
        prompts.iter().zip(&options).map(|(prompt, options)| (prompt.as_slice(), options)).collect();
    let mut go_on = |_| Flow::Continue;
    let wanted: Vec<Vec<u32>> = texts
        .iter()
        .map(|(prompt, options)| {
            let mut session = Session::new(0);
            block_on(generate(&mut alone, &mut session, prompt, options, &mut go_on)).unwrap().tokens
        })
        .collect();
    assert_eq!(wanted.iter().map(Vec::len).collect::<Vec<_>>(), lengths);
    for sequences in [5, 2] {
        let settings = Settings { sequences, ..exact(nf4(true)) };
        let mut engine = fixture.load(fixture.blueprint(&settings), Caps { rows: 10, outputs: 5 });
        let found = block_on(generate_each(&mut engine, &texts, &mut |_, _| Flow::Continue)).unwrap();
        let found: Vec<Vec<u32>> = found.into_iter().map(|text| text.tokens).collect();
        assert_eq!(found, wanted, "{sequences} at once");
    }
}

#[test]
fn texts_of_a_batch_end_for_reasons_of_their_own() {
    let fixture = Fixture::open("models/llama_mha");
    let input = fixture.input();
    let greedy = fixture.ids("greedy16");
    let settings = Settings { sequences: 3, context: Some(input.len() + 9), ..exact(None) };
    let mut engine = fixture.load(fixture.blueprint(&settings), Caps { rows: 64, outputs: 3 });
    let mut longer = input.clone();
    longer.extend(&greedy[..7]);
    let prompts = vec![input.clone(), longer, input.clone()];
    let options = GenerateOptions { max_new_tokens: 16, ..GenerateOptions::default() };
    let mut count = 0;
    let mut on_token = |prompt: usize, _| {
        count += usize::from(prompt == 2);
        if prompt == 2 && count == 4 { Flow::Stop } else { Flow::Continue }
    };
    let found = block_on(generate_batch(&mut engine, &prompts, &options, &mut on_token)).unwrap();
    // The last token needs no position of its own.
    assert_eq!((found[0].finish, found[0].tokens.as_slice()), (Finish::ContextFull, &greedy[..10]));
    assert_eq!((found[1].finish, found[1].tokens.as_slice()), (Finish::ContextFull, &greedy[7..10]));
    assert_eq!((found[2].finish, found[2].tokens.as_slice()), (Finish::Cancelled, &greedy[..4]));

    let stop = GenerateOptions { stop: vec![greedy[3]], ..options.clone() };
    let found =
        block_on(generate_batch(&mut engine, &prompts[..1], &stop, &mut |_, _| Flow::Continue)).unwrap();
    let first = greedy.iter().position(|&token| token == greedy[3]).unwrap();
    assert_eq!((found[0].finish, found[0].tokens.as_slice()), (Finish::Stop(greedy[3]), &greedy[..first]));

    // One prompt that cannot be taken refuses all.
    let broken = vec![input, vec![]];
    assert!(block_on(generate_batch(&mut engine, &broken, &options, &mut |_, _| Flow::Continue)).is_err());
    assert!(
        block_on(generate_batch(&mut engine, &[], &options, &mut |_, _| Flow::Continue)).unwrap().is_empty()
    );
}
