//! The same greedy text in 32 bits, however the work is cut: prompts in chunks of any size, texts alone or
//! in a batch, contexts in one split or several, and every shape of the kernels.

mod models;

use halfbyte_inference::{Flow, GenerateOptions, Session, generate, generate_batch};
use halfbyte_wgpu::{Options, Tuning};
use models::{device, exact, open};
use pollster::block_on;

fn shapes() -> Vec<(&'static str, Options)> {
    let with = |tuning| Options { tuning: Some(tuning), ..Options::default() };
    let gpu = Tuning::gpu(None);
    vec![
        ("as the adapter has it", Options::default()),
        ("checked", Options { checked: true, ..Options::default() }),
        ("as on a GPU", with(gpu)),
        ("large tiles and teams", with(Tuning { busy: 1, ..gpu })),
        ("the codebook in lanes", with(Tuning { shuffle: true, ..gpu })),
        ("without subgroups", Options { subgroups: Some(false), ..with(gpu) }),
    ]
}

#[test]
fn one_text_in_all_shapes_and_chunks() {
    let checkpoint = open("models/stories");
    let tokenizer = checkpoint.tokenizer().unwrap();
    // Long enough for two splits of 256 positions.
    let text = include_str!("../../../models/stories/heldout.txt");
    let prompt: Vec<u32> = tokenizer.encode(text, true).unwrap().into_iter().take(300).collect();
    let options = GenerateOptions { max_new_tokens: 24, ..GenerateOptions::default() };
    let mut texts = Vec::new();
    for (name, shape) in shapes() {
        // Chunks of 5 rows take the decode product and splits, the others tiles.
        for rows in [256, 37, 5] {
            if rows < 256 && name != "as on a GPU" {
                continue;
            }
            let mut engine = exact(&checkpoint, device(shape), rows);
            let mut session = Session::new(0);
            let mut go_on = |_| Flow::Continue;
            let text = generate(&mut engine, &mut session, &prompt, &options, &mut go_on);
            texts.push((format!("{name}, chunks of {rows}"), block_on(text).unwrap().tokens));
        }
    }
    assert_eq!(texts[0].1.len(), 24);
    for (name, text) in &texts[1..] {
        assert_eq!(*text, texts[0].1, "{name}");
    }
}

#[test]
fn texts_in_a_batch_are_those_alone() {
    let checkpoint = open("models/stories");
    let tokenizer = checkpoint.tokenizer().unwrap();
    let stories = ["Once upon a time", "The dog", "Lily and her mom went to the park. It was"];
    let prompts: Vec<Vec<u32>> = stories.iter().map(|text| tokenizer.encode(text, true).unwrap()).collect();
    let options = GenerateOptions { max_new_tokens: 24, ..GenerateOptions::default() };
    let mut engine = exact(&checkpoint, device(Options::default()), 64);
    let alone: Vec<Vec<u32>> = prompts
        .iter()
        .map(|prompt| {
            let mut session = Session::new(0);
            let mut go_on = |_| Flow::Continue;
            let text = generate(&mut engine, &mut session, prompt, &options, &mut go_on);
            block_on(text).unwrap().tokens
        })
        .collect();
    let mut engine = models::exact_for(&checkpoint, device(Options::default()), 64, 3);
    let together =
        block_on(generate_batch(&mut engine, &prompts, &options, &mut |_, _| Flow::Continue)).unwrap();
    for (alone, together) in alone.iter().zip(together) {
        assert_eq!(*alone, together.tokens);
    }
}
