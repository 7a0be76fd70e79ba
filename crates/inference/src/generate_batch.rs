//! Several texts at once: each weight is read once for all of them.

use halfbyte_backend::{Answer, Draw, Input, Output, Place, Rows};
use web_time::Instant;

use crate::engine::Last;
use crate::generate::{check, choose, choose_from, draw};
use crate::session::unexpected;
use crate::{Engine, Finish, Flow, GenerateOptions, Generation, ModelError, Session, Timings};

/// A text in the making.
struct Text<'a> {
    options: &'a GenerateOptions,
    session: Session,
    tokens: Vec<u32>,
    /// Chosen, not yet taken by a step.
    next: u32,
    finish: Option<Finish>,
    timings: Timings,
}

/// Continues several prompts, of any lengths, as [`generate`](crate::generate()) continues each alone:
/// the same tokens, whatever else is in the batch. `on_token` is given each token with the number of its
/// prompt; [`Flow::Stop`] ends that text only.
///
/// As many run together as the engine has sequences and one submission has rows and outputs; when a text
/// ends, the next prompt takes its place. Prompts are read one after the other. Whatever the engine's
/// sequences held before is lost.
///
/// # Errors
/// As [`Session::extend`], for any of the prompts; then no text is returned.
pub async fn generate_batch(
    engine: &mut Engine,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(usize, u32) -> Flow,
) -> Result<Vec<Generation>, ModelError> {
    let texts: Vec<(&[u32], &GenerateOptions)> =
        prompts.iter().map(|prompt| (prompt.as_slice(), options)).collect();
    generate_each(engine, &texts, on_token).await
}

/// [`generate_batch`] with options of its own for each prompt.
///
/// One device that holds the whole model draws all tokens of a step by itself, each by its text's parameters, and
/// 4 bytes a text come back; otherwise their logits do.
///
/// # Errors
/// As [`generate_batch`].
pub async fn generate_each(
    engine: &mut Engine,
    texts: &[(&[u32], &GenerateOptions)],
    on_token: &mut dyn FnMut(usize, u32) -> Flow,
) -> Result<Vec<Generation>, ModelError> {
    generate_until(engine, texts, on_token, &mut || false).await
}

/// [`generate_each`], until `pause` says after a step that there is something else to do: the texts that are not at
/// their end then have the tokens so far and end with [`Finish::Cancelled`].
///
/// # Errors
/// As [`generate_batch`].
pub async fn generate_until(
    engine: &mut Engine,
    texts: &[(&[u32], &GenerateOptions)],
    on_token: &mut dyn FnMut(usize, u32) -> Flow,
    pause: &mut dyn FnMut() -> bool,
) -> Result<Vec<Generation>, ModelError> {
    // Before the first is computed: a batch is refused as a whole.
    for (prompt, options) in texts {
        check(&options.sample)?;
        crate::session::check(engine, prompt)?;
    }
    let nothing = Generation { tokens: Vec::new(), finish: Finish::MaxTokens, timings: Timings::default() };
    let mut done = vec![nothing; texts.len()];
    let caps = engine.caps();
    let places = engine.blueprint().sequences.min(caps.rows).min(caps.outputs).max(1);
    let mut free: Vec<u32> = (0..places as u32).rev().collect();
    let mut waiting =
        texts.iter().enumerate().filter(|(_, (_, options))| options.max_new_tokens > 0).peekable();
    let mut running: Vec<(usize, Text<'_>)> = Vec::new();
    loop {
        while let Some(&sequence) = free.last() {
            let Some((index, (prompt, options))) = waiting.next() else { break };
            free.pop();
            running.push((index, begin(engine, sequence, prompt, options).await?));
        }
        // Every running text has a token at hand.
        let context = engine.blueprint().context;
        for (index, text) in &mut running {
            text.take(context, &mut |token| on_token(*index, token));
        }
        let ended = running.extract_if(.., |(_, text)| text.finish.is_some());
        for (index, text) in ended {
            free.push(text.session.sequence());
            let finish = text.finish.unwrap_or(Finish::MaxTokens);
            done[index] = Generation { tokens: text.tokens, finish, timings: text.timings };
        }
        if running.is_empty() && waiting.peek().is_none() {
            return Ok(done);
        }
        if pause() {
            for (index, text) in running {
                done[index] =
                    Generation { tokens: text.tokens, finish: Finish::Cancelled, timings: text.timings };
            }
            waiting.for_each(|(index, _)| done[index].finish = Finish::Cancelled);
            return Ok(done);
        }
        if !running.is_empty() {
            step(engine, &mut running).await?;
        }
    }
}

/// Reads a prompt into a sequence and chooses its first token.
async fn begin<'a>(
    engine: &mut Engine,
    sequence: u32,
    prompt: &[u32],
    options: &'a GenerateOptions,
) -> Result<Text<'a>, ModelError> {
    let start = Instant::now();
    let mut session = Session::new(sequence);
    let last = match options.sample.is_greedy() {
        true => Last::Greedy,
        false if engine.samples() => Last::Sample(Draw { seen: Some(prompt), ..draw(options) }),
        false => Last::Logits,
    };
    let answer = session.advance(engine, prompt, last).await?;
    let next = choose(answer, &session, options)?;
    let prefill_seconds = start.elapsed().as_secs_f64();
    let timings = Timings { prefill_tokens: prompt.len(), prefill_seconds, ..Timings::default() };
    Ok(Text { options, session, tokens: Vec::new(), next, finish: None, timings })
}

impl Text<'_> {
    /// Takes the token at hand; notes why it was the last, if it was.
    fn take(&mut self, context: usize, on_token: &mut dyn FnMut(u32) -> Flow) {
        let options = self.options;
        self.finish = if options.stop.contains(&self.next) {
            Some(Finish::Stop(self.next))
        } else {
            self.tokens.push(self.next);
            match on_token(self.next) {
                Flow::Stop => Some(Finish::Cancelled),
                _ if self.tokens.len() >= options.max_new_tokens => Some(Finish::MaxTokens),
                _ if self.session.tokens().len() >= context => Some(Finish::ContextFull),
                Flow::Continue => None,
            }
        };
    }
}

/// One step of all running texts: a row each.
async fn step(engine: &mut Engine, running: &mut [(usize, Text<'_>)]) -> Result<(), ModelError> {
    let start = Instant::now();
    let place = |text: &Text<'_>| Place {
        sequence: text.session.sequence(),
        position: text.session.tokens().len() as u32,
        token_type: 0,
    };
    let tokens: Vec<u32> = running.iter().map(|(_, text)| text.next).collect();
    let places: Vec<Place> = running.iter().map(|(_, text)| place(text)).collect();
    let all: Vec<u32> = (0..running.len() as u32).collect();
    let draws: Vec<Draw<'_>> = running.iter().map(|(_, text)| draw(text.options)).collect();
    let output = match draws.iter().all(|draw| draw.params.is_greedy()) {
        true => Output::Greedy(&all),
        false if engine.samples() => Output::Sample { rows: &all, draws: &draws },
        false => Output::Logits(&all),
    };
    let answer = engine.forward(&Rows { input: Input::Tokens(&tokens), places: &places, output }).await?;
    let width = engine.blueprint().logits;
    let seconds = start.elapsed().as_secs_f64();
    for (row, (_, text)) in running.iter_mut().enumerate() {
        text.session.push(text.next);
        text.next = match &answer {
            Answer::Tokens(tokens) if tokens.len() == all.len() => tokens[row],
            Answer::Logits(logits) if logits.len() == all.len() * width => {
                choose_from(&mut logits[row * width..(row + 1) * width].to_vec(), &text.session, text.options)
            }
            other => return Err(unexpected("an answer for each row", other)),
        };
        text.timings.decode_tokens += 1;
        text.timings.decode_seconds += seconds;
    }
    Ok(())
}
