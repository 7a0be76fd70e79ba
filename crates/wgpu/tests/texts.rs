//! The same greedy text in 32 bits, however the work is cut: prompts in chunks of any size, texts alone or
//! in a batch, contexts in one split or several, and every shape of the kernels.

mod models;

use halfbyte_backend::SampleParams;
use halfbyte_checkpoint::Checkpoint;
use halfbyte_inference::{Flow, GenerateOptions, Session, generate, generate_each};
use halfbyte_wgpu::{Options, Tuning, WgpuBackend};
use models::{device, exact, exact_in_rings, open};
use pollster::block_on;

/// Every way of shaping kernels that computes in 32 bits and that this adapter can run, each with another number of
/// splits. Most of a run's time goes into compiling, so several ways share one.
fn shapes() -> Vec<(&'static str, Options)> {
    let with = |splits, tuning| Options { splits, tuning: Some(tuning), ..Options::default() };
    let gpu = Tuning::gpu(None);
    let fine = Tuning { tile_fours: (1, 1), staged: 1024, attend_threads: 32, ..gpu };
    let large = Tuning { busy: 1, threads: 256, ..gpu };
    let teams_of_four = Tuning { lanes: 4, threads: 64, tile_fours: (2, 1), busy: 1, ..gpu };
    let alone = Tuning { lanes: 1, threads: 32, prompt_columns: Some(4), ..gpu };
    let mut shapes = vec![
        ("as the adapter has it", Options::default()),
        ("checked", Options { checked: true, ..Options::default() }),
        ("as on a GPU, one split", with(Some(1), gpu)),
        ("small tiles, more inputs staged, attention by 32 threads, 2 splits", with(Some(2), fine)),
        ("large tiles and workgroups, 3 splits", with(Some(3), large)),
        ("teams of four, tiles of 128 by 32, 5 splits", with(Some(5), teams_of_four)),
        ("a thread a row, prompts by fours, 8 splits", with(Some(8), alone)),
        (
            "no subgroups, shards of 64 KiB, 64 splits",
            Options { subgroups: Some(false), max_binding: Some(64 << 10), ..with(Some(64), gpu) },
        ),
    ];
    if has_subgroups() {
        shapes.push(("the codebook in lanes", with(None, Tuning { shuffle: true, ..gpu })));
    }
    shapes
}

fn has_subgroups() -> bool {
    let devices = block_on(WgpuBackend::all()).unwrap();
    devices.last().unwrap().limits.iter().any(|(name, value)| name == "subgroup" && value != "none")
}

/// A greedy text after the first `len` tokens of a story that the model has not seen.
fn continued(checkpoint: &Checkpoint, len: usize, shape: Options, rows: usize) -> Vec<u32> {
    let tokenizer = checkpoint.tokenizer().unwrap();
    let story = include_str!("../../../models/stories/heldout.txt");
    let prompt: Vec<u32> = tokenizer.encode(story, true).unwrap().into_iter().take(len).collect();
    assert_eq!(prompt.len(), len);
    let options = GenerateOptions { max_new_tokens: 16, ..GenerateOptions::default() };
    let mut engine = exact(checkpoint, device(shape), rows);
    let (mut session, mut go_on) = (Session::new(0), |_| Flow::Continue);
    let text = generate(&mut engine, &mut session, &prompt, &options, &mut go_on);
    block_on(text).unwrap().tokens
}

#[test]
fn one_text_in_all_shapes_and_splits() {
    let checkpoint = open("models/stories");
    let mut texts = shapes().into_iter().map(|(name, shape)| (name, continued(&checkpoint, 100, shape, 128)));
    let (_, first) = texts.next().unwrap();
    assert_eq!(first.len(), 16);
    for (name, text) in texts {
        assert_eq!(text, first, "{name}");
    }
}

/// Long enough for two splits of 256 positions. Chunks of 5 rows take the decode product and splits, the others tiles.
#[test]
fn one_text_in_all_chunks() {
    let checkpoint = open("models/stories");
    let gpu = Options { tuning: Some(Tuning::gpu(None)), ..Options::default() };
    let [first, others @ ..] = [256, 37, 5].map(|rows| continued(&checkpoint, 300, gpu, rows));
    assert_eq!(first.len(), 16);
    assert!(others.iter().all(|text| *text == first), "{first:?} is not always the text: {others:?}");
}

/// Grouped heads, windows, norms per head, interleaved rotation: each with contexts in many slices, and windows in rings
/// of 71 slots, which the text goes around, where slices are more than one.
#[test]
fn other_families_in_any_number_of_splits() {
    for fixture in ["llama_gqa_tied_llama3rope", "mistral_sw8", "gemma3_text", "qwen3_qknorm"] {
        let checkpoint = open(&format!("tests/fixtures/models/{fixture}"));
        let options = GenerateOptions { max_new_tokens: 16, ..GenerateOptions::default() };
        let prompt: Vec<u32> = (0..90).map(|i| 3 + i * 7 % 50).collect();
        let mut texts = Vec::new();
        for splits in [1, 2, 3] {
            let shape = Options { splits: Some(splits), ..Options::default() };
            let load = if splits == 1 { exact } else { exact_in_rings };
            let mut engine = load(&checkpoint, device(shape), 64);
            let mut session = Session::new(0);
            let mut go_on = |_| Flow::Continue;
            let text = generate(&mut engine, &mut session, &prompt, &options, &mut go_on);
            texts.push(block_on(text).unwrap().tokens);
        }
        assert!(!texts[0].is_empty());
        assert!(texts.iter().all(|text| *text == texts[0]), "{fixture}: {texts:?}");
    }
}

/// Draws too, each with parameters of its own: the device draws all tokens of a step in one pass.
#[test]
fn texts_in_a_batch_are_those_alone() {
    let checkpoint = open("models/stories");
    let tokenizer = checkpoint.tokenizer().unwrap();
    let drawn = SampleParams { temperature: 0.8, top_k: 40, seed: 3, ..SampleParams::default() };
    let texts = [
        ("Once upon a time", SampleParams::default()),
        ("The dog", SampleParams { repetition_penalty: 1.2, ..drawn }),
        ("Lily and her mom went to the park. It was", SampleParams { top_p: 0.9, seed: 4, ..drawn }),
    ];
    let texts = texts.map(|(text, sample)| {
        let options = GenerateOptions { max_new_tokens: 24, sample, ..GenerateOptions::default() };
        (tokenizer.encode(text, true).unwrap(), options)
    });
    let mut engine = exact(&checkpoint, device(Options::default()), 64);
    let alone = texts.each_ref().map(|(prompt, options)| {
        let (mut session, mut go_on) = (Session::new(0), |_| Flow::Continue);
        let text = generate(&mut engine, &mut session, prompt, options, &mut go_on);
        block_on(text).unwrap().tokens
    });
    let mut engine = models::exact_for(&checkpoint, device(Options::default()), 64, 3);
    let each = texts.each_ref().map(|(prompt, options)| (prompt.as_slice(), options));
    let together = block_on(generate_each(&mut engine, &each, &mut |_, _| Flow::Continue)).unwrap();
    for (alone, together) in alone.iter().zip(together) {
        assert_eq!(*alone, together.tokens);
    }
}
