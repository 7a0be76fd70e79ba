//! The generation loop.

use halfbyte_backend::{Answer, Draw, Input, Output, Rows, SampleParams, Ticket, sample};
use web_time::Instant;

use crate::engine::{Last, places};
use crate::session::unexpected;
use crate::{Engine, ModelError, Session};

/// How to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// The most tokens to generate.
    pub max_new_tokens: usize,
    /// How each is chosen.
    pub sample: SampleParams,
    /// Tokens that end the text; they are not part of it.
    pub stop: Vec<u32>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_new_tokens: 256, sample: SampleParams::default(), stop: Vec::new() }
    }
}

/// What the receiver of a token wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The next token.
    Continue,
    /// No more.
    Stop,
}

/// What the receiver hears of a text in the making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// So many of the prompt's tokens are in the cache, and there are more to come.
    Prompt(usize),
    /// The next token.
    Token(u32),
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model chose this stop token.
    Stop(u32),
    /// [`GenerateOptions::max_new_tokens`] were generated.
    MaxTokens,
    /// The context has no further position.
    ContextFull,
    /// The receiver said [`Flow::Stop`].
    Cancelled,
}

/// How long it took.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Timings {
    /// Tokens of the prompt that were computed: those that the cache held already are not among them.
    pub prefill_tokens: usize,
    /// Seconds until the first new token.
    pub prefill_seconds: f64,
    /// Tokens after the first, a stop token included.
    pub decode_tokens: usize,
    /// Seconds for them.
    pub decode_seconds: f64,
}

impl Timings {
    /// Tokens of the prompt a second; 0 if there was nothing to measure.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        rate(self.prefill_tokens, self.prefill_seconds)
    }

    /// New tokens a second; 0 if there was nothing to measure.
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.decode_tokens, self.decode_seconds)
    }
}

fn rate(tokens: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

/// A generated text.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The new tokens, without a stop token.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// How long it took.
    pub timings: Timings,
}

/// Continues `prompt`, giving each token to `on_token` as it comes.
///
/// Only what the session does not hold yet is computed. Whatever ends the text, the session then holds
/// tokens that its cache holds, so that it can go on; a new token that no step has taken yet is not
/// among them. A choice on one device, greedy or drawn, is fed back there and read one step late: while the
/// host receives a token, the device computes the next. A device that draws no tokens, and several devices,
/// give logits, and the host draws the same from them.
///
/// # Errors
/// As [`Session::extend`].
pub async fn generate(
    engine: &mut Engine,
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(u32) -> Flow,
) -> Result<Generation, ModelError> {
    let mut listen = |came| match came {
        Came::Token(token) => on_token(token),
        Came::Prompt(_) => Flow::Continue,
    };
    generate_heard(engine, session, prompt, options, &mut listen).await
}

/// [`generate()`], whose receiver hears of each chunk of the prompt, too, so that a long one can be stopped: the text then
/// has no token and ends with [`Finish::Cancelled`], and the session holds what was computed.
///
/// # Errors
/// As [`Session::extend`].
pub async fn generate_heard(
    engine: &mut Engine,
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
    listen: &mut dyn FnMut(Came) -> Flow,
) -> Result<Generation, ModelError> {
    check(&options.sample)?;
    let mut text = Text { options, listen, tokens: Vec::new() };
    let mut timings = Timings::default();
    if options.max_new_tokens == 0 {
        return Ok(Generation { tokens: text.tokens, finish: Finish::MaxTokens, timings });
    }

    let start = Instant::now();
    let cached = session.reusable(engine, prompt);
    timings.prefill_tokens = prompt.len() - cached;
    let ahead = engine.feeds_back() && (options.sample.is_greedy() || engine.samples());
    let last = match options.sample.is_greedy() {
        true => Last::Greedy,
        false if ahead => Last::Sample(Draw { seen: Some(prompt), ..draw(options) }),
        false => Last::Logits,
    };
    let mut between = |done| (text.listen)(Came::Prompt(done));
    let answer = session.advance_heard(engine, prompt, last, &mut between).await?;
    timings.prefill_seconds = start.elapsed().as_secs_f64();
    let Some(answer) = answer else {
        timings.prefill_tokens = session.tokens().len() - cached;
        return Ok(Generation { tokens: text.tokens, finish: Finish::Cancelled, timings });
    };
    let first = choose(answer, session, options)?;

    let start = Instant::now();
    let mut decoded = 0;
    let finish = if ahead {
        decode_ahead(engine, session, first, &mut text, &mut decoded).await?
    } else {
        decode(engine, session, first, &mut text, &mut decoded).await?
    };
    timings.decode_tokens = decoded;
    timings.decode_seconds = start.elapsed().as_secs_f64();
    Ok(Generation { tokens: text.tokens, finish, timings })
}

/// Refuses parameters that choose nothing.
pub(crate) fn check(params: &SampleParams) -> Result<(), ModelError> {
    let wrong = |name: &str, value: f32, right: &str| {
        Err(ModelError::Invalid(format!("{name} is {value}, but must be {right}")))
    };
    match *params {
        SampleParams { temperature, .. } if !(temperature >= 0.0 && temperature.is_finite()) => {
            wrong("temperature", temperature, "at least 0")
        }
        SampleParams { top_p, .. } if !(top_p > 0.0 && top_p <= 1.0) => {
            wrong("top_p", top_p, "above 0 and at most 1")
        }
        SampleParams { repetition_penalty, .. }
            if !(repetition_penalty > 0.0 && repetition_penalty.is_finite()) =>
        {
            wrong("repetition_penalty", repetition_penalty, "above 0")
        }
        _ => Ok(()),
    }
}

/// The text so far, and who receives it.
struct Text<'a> {
    options: &'a GenerateOptions,
    listen: &'a mut dyn FnMut(Came) -> Flow,
    tokens: Vec<u32>,
}

impl Text<'_> {
    /// Takes the next token; says why it was the last, if it was.
    fn take(&mut self, token: u32) -> Option<Finish> {
        if self.options.stop.contains(&token) {
            return Some(Finish::Stop(token));
        }
        self.tokens.push(token);
        if (self.listen)(Came::Token(token)) == Flow::Stop {
            return Some(Finish::Cancelled);
        }
        (self.tokens.len() >= self.options.max_new_tokens).then_some(Finish::MaxTokens)
    }
}

/// One step at a time: each token is read, or sampled, before the next step begins.
async fn decode(
    engine: &mut Engine,
    session: &mut Session,
    first: u32,
    text: &mut Text<'_>,
    decoded: &mut usize,
) -> Result<Finish, ModelError> {
    let mut token = first;
    loop {
        if let Some(finish) = text.take(token) {
            return Ok(finish);
        }
        let position = session.tokens().len();
        if position >= engine.blueprint().context {
            return Ok(Finish::ContextFull);
        }
        let output =
            if text.options.sample.is_greedy() { Output::Greedy(&[0]) } else { Output::Logits(&[0]) };
        let places = places(session.sequence(), position, 1);
        let rows = Rows { input: Input::Tokens(&[token]), places: &places, output };
        let answer = engine.forward(&rows).await?;
        session.push(token);
        token = choose(answer, session, text.options)?;
        *decoded += 1;
    }
}

/// How a token is drawn on the device, which has seen the text so far.
pub(crate) fn draw(options: &GenerateOptions) -> Draw<'static> {
    Draw { params: options.sample, seen: None }
}

/// On one device: the step after next is submitted before the next token is read, so that the
/// device never waits for the host.
async fn decode_ahead(
    engine: &mut Engine,
    session: &mut Session,
    first: u32,
    text: &mut Text<'_>,
    decoded: &mut usize,
) -> Result<Finish, ModelError> {
    let mut token = first;
    // The step that takes `token` and chooses the one after it.
    let mut running = match text.options.stop.contains(&first) {
        true => None,
        false => step_ahead(engine, session, 0, text)?,
    };
    loop {
        let finish = text.take(token);
        let Some(ticket) = running else {
            return Ok(finish.unwrap_or(Finish::ContextFull));
        };
        if let Some(finish) = finish {
            // The step has written its token's keys and values: the session may keep it.
            ticket.await?;
            session.push(token);
            return Ok(finish);
        }
        let next = step_ahead(engine, session, 1, text)?;
        let answer = ticket.await?;
        session.push(token);
        token = choose(answer, session, text.options)?;
        *decoded += 1;
        running = next;
    }
}

/// Submits the step that takes the last chosen token, `ahead` positions after the session's end; `None`
/// if what it would choose is not wanted, or has no place.
fn step_ahead(
    engine: &mut Engine,
    session: &Session,
    ahead: usize,
    text: &Text<'_>,
) -> Result<Option<Ticket>, ModelError> {
    let position = session.tokens().len() + ahead;
    // One is at hand or on its way already; this step chooses the one after it.
    let chosen = text.tokens.len() + 2;
    if chosen > text.options.max_new_tokens || position >= engine.blueprint().context {
        return Ok(None);
    }
    let places = places(session.sequence(), position, 1);
    let draws = [draw(text.options)];
    let output = match text.options.sample.is_greedy() {
        true => Output::Greedy(&[0]),
        false => Output::Sample { rows: &[0], draws: &draws },
    };
    let rows = Rows { input: Input::Chosen, places: &places, output };
    Ok(Some(engine.submit(&rows)?))
}

/// The next token: as the device chose it, or sampled from its logits.
pub(crate) fn choose(
    answer: Answer,
    session: &Session,
    options: &GenerateOptions,
) -> Result<u32, ModelError> {
    match answer {
        Answer::Tokens(tokens) if tokens.len() == 1 => Ok(tokens[0]),
        Answer::Logits(mut logits) => Ok(choose_from(&mut logits, session, options)),
        other => Err(unexpected("one token", &other)),
    }
}

/// The next token, sampled from `logits`, `[vocabulary]`, which are changed.
pub(crate) fn choose_from(logits: &mut [f32], session: &Session, options: &GenerateOptions) -> u32 {
    let seen = session.tokens();
    sample(logits, seen, &options.sample, seen.len() as u64)
}
