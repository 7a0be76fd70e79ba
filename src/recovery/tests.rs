use crate::attempts::Attempts;
use crate::loading::Loaded;
use crate::{CausalLm, ComputeDtype, Error, LoadOptions, ModelSource, Silent};
use halfbyte_backend::{Fault, KvType, Purpose};
use halfbyte_inference::{Flow, GenerateOptions, ModelError, Session};
use std::time::Instant;

/// `stories` on the CPU.
fn stories() -> Loaded {
    let options =
        LoadOptions { device_map: "cpu".parse().unwrap(), kv_cache: KvType::F32, ..LoadOptions::default() };
    let model = ModelSource::named("stories").open(&options, &mut Silent).unwrap();
    Loaded::load(&model, &options, &mut Silent, Instant::now()).unwrap()
}

fn out_of_memory() -> ModelError {
    let (device, name) = ("cpu".to_owned(), "a buffer".to_owned());
    Fault::OutOfMemory { device, name, wanted: 100, free: Some(60), what: Purpose::Scratch }.into()
}

fn lost() -> ModelError {
    Fault::Lost { device: "cpu".into(), reason: "a test".into() }.into()
}

const PROMPT: [u32; 6] = [1, 260, 918, 365, 340, 448];

/// Generates `tokens` tokens. After each `every` of them an allocation fails.
fn text(loaded: &mut Loaded, tokens: usize, every: usize) -> Result<Vec<u32>, Error> {
    let (mut attempts, mut session) = (Attempts::new(&PROMPT), Session::new(0));
    let mut streamed = Vec::new();
    let mut so_far = 0;
    let generation = loaded.ask_in_parts(PROMPT.len() + tokens, &mut |engine, pause| {
        so_far = tokens.min(so_far + every);
        let options = GenerateOptions { max_new_tokens: so_far, ..GenerateOptions::default() };
        let mut on_token = |token| {
            streamed.push(token);
            Flow::Continue
        };
        let generation = attempts.go_on(engine, &mut session, &options, &mut on_token, pause)?;
        if so_far < tokens { Err(out_of_memory()) } else { Ok(generation) }
    })?;
    assert_eq!(streamed, generation.tokens, "each token once");
    Ok(generation.tokens)
}

#[test]
fn memory_that_fails_again_and_again_in_a_text_does_not_change_it() {
    let mut loaded = stories();
    let wanted = text(&mut loaded, 40, 40).unwrap();
    assert_eq!((wanted.len(), loaded.events().len()), (40, 0));
    let found = text(&mut loaded, 40, 7).unwrap();
    assert_eq!(found, wanted);
    let texts: Vec<&str> = loaded.events().iter().map(|event| event.text.as_str()).collect();
    assert_eq!(texts.len(), 5, "{texts:#?}");
    // The same again, fewer rows at once, then less context, but enough for this text.
    assert!(texts[0].contains("released caches and scratch"), "{texts:#?}");
    assert!(texts[1..4].iter().all(|text| text.contains("smaller chunks")), "{texts:#?}");
    assert!(texts[4].contains("a context of") && loaded.context() >= 46, "{texts:#?}");
    for row in loaded.memory() {
        assert_eq!(row.planned_bytes, row.measured_bytes);
    }
    assert_eq!(text(&mut loaded, 40, 40).unwrap(), wanted);
}

#[test]
fn a_ladder_without_end_ends_in_a_refusal_and_the_model_can_be_asked_again() {
    let mut loaded = stories();
    let wanted = text(&mut loaded, 8, 8).unwrap();
    for fault in [out_of_memory, lost] {
        let mut asked = 0;
        let refused = loaded.ask::<()>(100, &mut |_| {
            asked += 1;
            Err(fault())
        });
        println!("asked {asked} times: {}", refused.as_ref().unwrap_err());
        assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
        assert!((3..30).contains(&asked), "{asked}");
        let last = loaded.events().last().unwrap();
        assert!(last.text.contains("nothing else fits"), "{last:?}");
        let held: u64 = loaded.memory().iter().map(|row| row.measured_bytes).sum();
        assert!(held < 1 << 20, "a refusal frees what was loaded, but {held} bytes are held");
        assert_eq!(text(&mut loaded, 8, 8).unwrap(), wanted);
        assert_eq!(loaded.context(), 512, "as at first");
    }
}

/// The logits of many tokens take more than a small model: where the host has no room for both, blocks go to the disk
/// first, and where they cannot, that is said before anything is computed.
#[test]
fn logits_make_way_for_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<u32> = (0..500).map(|at| at * 7 % 300 + 3).collect();
    let load = |memory: Option<u64>, disk: u64| {
        let limits = [("wgpu:0".to_owned(), 0), ("disk".to_owned(), disk)].into();
        let options = LoadOptions {
            max_memory: limits,
            pretend_memory: memory.map(|bytes| ("cpu".to_owned(), bytes)).into_iter().collect(),
            compute_dtype: ComputeDtype::Float32,
            // No smaller chunks are tried: what they free would do.
            chunk: 8,
            cache_dir: Some(folder.path().to_path_buf()),
            ..LoadOptions::default()
        };
        CausalLm::load(&ModelSource::named("stories"), &options, &mut Silent).unwrap()
    };
    let mut roomy = load(None, 0);
    let wanted = roomy.logits(&ids).unwrap();
    let (held, answer) = (roomy.memory()[0].measured_bytes, size_of_val(&wanted[..]) as u64);
    assert!(roomy.events().is_empty());
    drop(roomy);
    // Room for the model and its headroom, and for two thirds of the answer.
    let memory = Some(held * 11 / 10 + answer * 2 / 3);
    let mut small = load(memory, 1 << 40);
    let before = small.blocks_on("cpu");
    assert_eq!(small.logits(&ids).unwrap(), wanted);
    println!("{:#?}", small.events());
    assert!(small.blocks_on("cpu") < before, "{:?}", small.device_map());
    assert!(small.events()[0].text.contains("the logits of 500 tokens take"), "{:?}", small.events());
    drop(small);
    let mut stuck = load(memory, 0);
    let refused = stuck.logits(&ids).unwrap_err().to_string();
    assert!(refused.contains("nothing can move out: ask for fewer tokens"), "{refused}");
    assert_eq!(stuck.logits(&ids[..50]).unwrap().len(), wanted.len() / 10);
}
