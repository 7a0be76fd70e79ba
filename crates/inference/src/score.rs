//! How likely a model finds a text.

use halfbyte_backend::{Answer, Fault, Input, Output, Purpose, Rows};

use crate::engine::places;
use crate::session::{check, unexpected};
use crate::{Engine, ModelError};

/// A sum of negative log likelihoods; scores of several texts add up.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    /// In nats, over all scored tokens.
    pub negative_log_likelihood: f64,
    /// Tokens that were scored: all of a text but its first.
    pub tokens: usize,
}

impl Score {
    /// `exp` of the mean negative log likelihood; not a number if nothing was scored.
    pub fn perplexity(&self) -> f64 {
        (self.negative_log_likelihood / self.tokens as f64).exp()
    }

    /// Adds another text's.
    pub fn merge(&mut self, other: Score) {
        self.negative_log_likelihood += other.negative_log_likelihood;
        self.tokens += other.tokens;
    }
}

/// The logits of every position, `[tokens, vocabulary]`, computed from nothing in one sequence of the
/// engine; what a session had cached there is lost.
///
/// # Errors
/// As [`Session::extend`](crate::Session::extend).
pub async fn logits(engine: &mut Engine, sequence: u32, tokens: &[u32]) -> Result<Vec<f32>, ModelError> {
    let mut all = Logits::new(sequence);
    while !all.chunk(engine, tokens).await? {}
    Ok(all.take())
}

/// The [`logits`] of every position in the making, chunk by chunk: what an engine does between them changes nothing.
#[derive(Debug)]
pub struct Logits {
    sequence: u32,
    /// The claim under which the engine holds the keys and values of the tokens so far.
    claim: u64,
    /// Tokens so far.
    done: usize,
    /// `[done, vocabulary]`
    values: Vec<f32>,
}

impl Logits {
    /// Nothing yet, to be computed in the place of this sequence.
    pub fn new(sequence: u32) -> Self {
        Self { sequence, claim: 0, done: 0, values: Vec::new() }
    }

    /// What there is so far, `[tokens, vocabulary]`.
    pub fn take(self) -> Vec<f32> {
        self.values
    }

    /// Computes the next chunk of `tokens`, the same at every call; whether it was the last. Where keys and values were
    /// lost since the last call, it begins anew.
    ///
    /// # Errors
    /// As [`logits`]; [`Fault::OutOfMemory`] if there is no room for all of them.
    pub async fn chunk(&mut self, engine: &mut Engine, tokens: &[u32]) -> Result<bool, ModelError> {
        check(engine, tokens)?;
        if !engine.holds(self.sequence, self.claim) {
            self.values.clear();
            (self.done, self.claim) = (0, engine.claim(self.sequence)?);
        }
        let wanted = tokens.len() * engine.blueprint().vocab;
        if self.values.try_reserve_exact(wanted - self.values.len()).is_err() {
            return Err(Fault::OutOfMemory {
                device: "cpu".into(),
                name: format!("the logits of {} tokens", tokens.len()),
                wanted: (wanted * size_of::<f32>()) as u64,
                free: None,
                what: Purpose::Logits,
            }
            .into());
        }
        let (values, from) = (&mut self.values, (self.sequence, self.done));
        self.done +=
            one_chunk(engine, tokens, from, 0, &mut |_, logits| values.extend_from_slice(logits)).await?;
        Ok(self.done == tokens.len())
    }
}

/// Scores a text: each token but the first, given all before it.
///
/// A text longer than the context is read in windows of the context's length that overlap by half, so
/// that every token but the first window's sees at least half a context.
///
/// # Errors
/// As [`Session::extend`](crate::Session::extend), but for the length.
pub async fn score(engine: &mut Engine, sequence: u32, tokens: &[u32]) -> Result<Score, ModelError> {
    let mut scoring = Scoring::new();
    while !scoring.window(engine, sequence, tokens).await? {}
    Ok(scoring.score())
}

/// A text that is being [scored](score), window by window: what an engine does between them changes nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Scoring {
    score: Score,
    /// The first token of the next window.
    begin: usize,
    /// The first token that has not been scored.
    next: usize,
}

impl Default for Scoring {
    fn default() -> Self {
        Self::new()
    }
}

impl Scoring {
    /// Nothing has been scored.
    pub fn new() -> Self {
        Self { score: Score::default(), begin: 0, next: 1 }
    }

    /// The score of all windows so far.
    pub fn score(&self) -> Score {
        self.score
    }

    /// Scores the next window of `tokens`, the same at every call; whether it was the last. After an error the same
    /// window is the next.
    ///
    /// # Errors
    /// As [`score`].
    pub async fn window(
        &mut self,
        engine: &mut Engine,
        sequence: u32,
        tokens: &[u32],
    ) -> Result<bool, ModelError> {
        let context = engine.blueprint().context;
        let vocab = engine.blueprint().vocab;
        if tokens.len() > context && context < 2 {
            return Err(ModelError::Invalid(format!("a text of {} tokens in windows of one", tokens.len())));
        }
        // Where the context has become smaller since, the window begins later.
        let begin = self.begin.max((self.next - 1).saturating_sub(context / 2));
        let end = tokens.len().min(begin + context);
        let window = &tokens[begin..end];
        let mut score = Score::default();
        each_chunk(engine, sequence, window, self.next - 1 - begin, &mut |at, logits| {
            for (row, logits) in logits.chunks_exact(vocab).enumerate() {
                if let Some(&target) = window.get(at + row + 1) {
                    score.negative_log_likelihood += surprise(logits, target);
                    score.tokens += 1;
                }
            }
        })
        .await?;
        self.score.merge(score);
        (self.next, self.begin) = (end, end.saturating_sub(context / 2));
        Ok(end == tokens.len())
    }
}

/// `-log softmax(logits)[target]`, in f64.
fn surprise(logits: &[f32], target: u32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    let target = logits.get(target as usize).copied().unwrap_or(f32::NEG_INFINITY);
    sum.ln() - f64::from(target - largest)
}

/// Runs `tokens` from position 0 on and calls `visit(first row, logits)` with the logits of the rows from
/// `from` on, a chunk at a time.
async fn each_chunk(
    engine: &mut Engine,
    sequence: u32,
    tokens: &[u32],
    from: usize,
    visit: &mut dyn FnMut(usize, &[f32]),
) -> Result<(), ModelError> {
    check(engine, tokens)?;
    engine.claim(sequence)?;
    let mut at = 0;
    while at < tokens.len() {
        at += one_chunk(engine, tokens, (sequence, at), from, visit).await?;
    }
    Ok(())
}

/// Runs the next tokens of a sequence from position `at` on, as many as go at once: how many that were.
async fn one_chunk(
    engine: &mut Engine,
    tokens: &[u32],
    (sequence, at): (u32, usize),
    from: usize,
    visit: &mut dyn FnMut(usize, &[f32]),
) -> Result<usize, ModelError> {
    let caps = engine.caps();
    // Rows before `from` need no logits, and so may be more at once.
    let (rows, wanted) =
        if at < from { (caps.rows.min(from - at), false) } else { (caps.rows.min(caps.outputs), true) };
    let chunk = &tokens[at..tokens.len().min(at + rows)];
    let places = places(sequence, at, chunk.len());
    let ids: Vec<u32> = (0..chunk.len() as u32).collect();
    let output = if wanted { Output::Logits(&ids) } else { Output::Nothing };
    match engine.forward(&Rows { input: Input::Tokens(chunk), places: &places, output }).await? {
        Answer::Logits(logits) if wanted => visit(at, &logits),
        Answer::Nothing if !wanted => {}
        other => return Err(unexpected("logits", &other)),
    }
    Ok(chunk.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surprise_is_the_log_of_the_softmax() {
        let logits = [1.0f32, 3.0, -2.0];
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        for (target, &logit) in logits.iter().enumerate() {
            let wanted = -(f64::from(logit).exp() / total).ln();
            assert!((surprise(&logits, target as u32) - wanted).abs() < 1e-12);
        }
    }
}
