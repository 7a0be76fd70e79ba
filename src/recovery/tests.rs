use crate::attempts::Attempts;
use crate::loading::Loaded;
use crate::{Error, LoadOptions, ModelSource, Silent};
use halfbyte_backend::{Fault, KvType, Purpose};
use halfbyte_inference::{Came, Flow, GenerateOptions, ModelError, Session};
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
        let mut listen = |came| {
            if let Came::Token(token) = came {
                streamed.push(token);
            }
            Flow::Continue
        };
        let generation = attempts.go_on(engine, &mut session, &options, &mut listen, pause)?;
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
