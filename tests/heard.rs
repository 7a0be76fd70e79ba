//! What the receiver of an answer hears: text that is never empty, every token, and every chunk of a prompt.

use halfbyte::{
    CausalLm, Flow, GenerateOptions, Heard, LoadOptions, ModelSource, SampleParams, Silent, Stop,
};

/// Tokens of a prompt that are computed at once.
const CHUNK: usize = 4;

fn stories() -> CausalLm {
    let device_map = "cpu".parse().unwrap();
    let options = LoadOptions { device_map, chunk: CHUNK, ..LoadOptions::default() };
    CausalLm::load(&ModelSource::Bundled("stories".into()), &options, &mut Silent).unwrap()
}

/// Any token of the vocabulary: many of them are single bytes, which are no characters.
fn noise(tokens: usize, seed: u64) -> GenerateOptions {
    let sample = SampleParams { temperature: 50.0, seed, ..SampleParams::default() };
    GenerateOptions { max_new_tokens: tokens, sample }
}

#[test]
fn text_is_never_empty_and_every_token_and_chunk_is_heard() {
    let mut model = stories();
    let prompt = model.encode("Once there was a little dog. He liked to play with his red ball.").unwrap();
    let (mut silent, mut rests) = (0, 0);
    for seed in 0..6 {
        let (mut chunks, mut ids, mut text) = (Vec::new(), Vec::new(), String::new());
        let answer = model.generate_ids(&prompt, &noise(60, seed), &mut |heard| {
            match heard {
                Heard::Prompt { cached } => chunks.push(cached),
                Heard::Token { id, text } => {
                    ids.push(id);
                    silent += usize::from(text.is_none());
                }
                Heard::Rest(_) => rests += 1,
            }
            assert_ne!(heard.text(), Some(""));
            text.extend(heard.text());
            Flow::Continue
        });
        let answer = answer.unwrap();
        assert_eq!((&ids, &text), (&answer.token_ids, &answer.text), "seed {seed}");
        // The second time all but the last token is in the cache.
        let wanted: Vec<usize> = (1..prompt.len().div_ceil(CHUNK)).map(|chunk| chunk * CHUNK).collect();
        assert_eq!(chunks, if seed == 0 { wanted } else { Vec::new() });

        let mut pieces = Vec::new();
        let prompt = "Once there was a little dog. He liked to play with his red ball.";
        let again = model.generate(prompt, &noise(60, seed), &mut |piece| {
            pieces.push(piece.to_owned());
            Flow::Continue
        });
        assert_eq!(again.unwrap().text, text);
        assert!(pieces.iter().all(|piece| !piece.is_empty()));
        assert_eq!(pieces.concat(), text);
    }
    println!("{silent} tokens without text, {rests} answers that end in a character");
    assert!(silent > 0);
}

#[test]
fn a_text_stops_within_its_prompt_and_at_a_token_without_text() {
    let mut model = stories();
    let prompt = model.encode("Once there was a little dog. He liked to play with his red ball.").unwrap();
    let stopped = model.generate_ids(&prompt, &noise(60, 0), &mut |heard| match heard {
        Heard::Prompt { cached } if cached >= 2 * CHUNK => Flow::Stop,
        _ => Flow::Continue,
    });
    let stopped = stopped.unwrap();
    assert_eq!((stopped.stop, stopped.token_ids.len(), stopped.text.as_str()), (Stop::Cancelled, 0, ""));
    // What was computed is not computed again.
    let silent = |heard: Heard<'_>| match heard {
        Heard::Token { text: None, .. } => Flow::Stop,
        _ => Flow::Continue,
    };
    let mut heard = |heard: Heard<'_>| silent(heard);
    let answer = (0..6).map(|seed| model.generate_ids(&prompt, &noise(60, seed), &mut heard).unwrap());
    let answers: Vec<_> = answer.collect();
    assert_eq!(answers[0].cached_tokens, 2 * CHUNK);
    let stopped = answers.iter().filter(|answer| answer.stop == Stop::Cancelled);
    assert!(stopped.clone().count() > 0 && stopped.clone().all(|answer| answer.token_ids.len() < 60));
}

#[test]
fn a_conversation_is_heard_as_a_text_is() {
    let mut model = stories();
    let options = GenerateOptions { max_new_tokens: 8, sample: SampleParams::default() };
    let mut chat = model.chat(None);
    let mut said = String::new();
    let answer = chat.say("Once there was a little dog", &options, &mut |piece| {
        assert_ne!(piece, "");
        said += piece;
        Flow::Continue
    });
    assert_eq!(answer.unwrap().text, said);
    let (mut chunks, mut tokens) = (0, 0);
    let answer = chat.say_heard("The dog had a ball that was red and round", &options, &mut |heard| {
        match heard {
            Heard::Prompt { .. } => chunks += 1,
            Heard::Token { .. } => tokens += 1,
            Heard::Rest(_) => {}
        }
        Flow::Continue
    });
    assert_eq!((answer.unwrap().token_ids.len(), tokens), (8, 8));
    assert!(chunks > 0);
}
