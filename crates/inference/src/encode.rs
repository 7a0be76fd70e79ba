//! What is asked of encoders: labels, hidden states, pooled vectors.
//!
//! Texts of different lengths go together: each is a sequence of its own in the submission, so that no
//! row sees another text and nothing is padded.

use halfbyte_backend::{Answer, Input, Output, Place, Rows};
use std::ops::Range;

use crate::session::unexpected;
use crate::{Engine, ModelError, Task};

/// A text as an encoder reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, the tokenizer's frame (`[CLS]`, `[SEP]`) included.
    pub ids: Vec<u32>,
    /// The segment of each token: 1 for the second text of a pair. Empty: all 0.
    pub types: Vec<u32>,
}

impl From<Vec<u32>> for Encoded {
    fn from(ids: Vec<u32>) -> Self {
        Self { ids, types: Vec::new() }
    }
}

/// An encoder's view of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// The last hidden state, `[tokens, hidden]`.
    pub hidden: Vec<f32>,
    /// The pooler's output at the first token, `[hidden]`, if the checkpoint has a pooler.
    pub pooled: Option<Vec<f32>>,
    width: usize,
}

impl Features {
    /// The first token's hidden state, `[hidden]`.
    pub fn first(&self) -> &[f32] {
        &self.hidden[..self.width.min(self.hidden.len())]
    }

    /// The mean over all tokens' hidden states, `[hidden]`, as sentence encoders pool.
    pub fn mean(&self) -> Vec<f32> {
        let rows = self.hidden.chunks_exact(self.width.max(1));
        let scale = 1.0 / rows.len().max(1) as f64;
        let mut sums = vec![0.0f64; self.width];
        for row in rows {
            sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        sums.into_iter().map(|sum| (sum * scale) as f32).collect()
    }
}

/// The logits of each text: `[labels]`, or `[tokens, labels]` from a classifier of tokens.
///
/// # Errors
/// [`ModelError::Task`] if the engine does not classify; an empty text, one longer than a submission or
/// the model's positions, an unknown token; what a device says.
pub async fn classify(engine: &mut Engine, texts: &[Encoded]) -> Result<Vec<Vec<f32>>, ModelError> {
    let each_token = match engine.blueprint().task {
        Task::ClassifySequence => false,
        Task::ClassifyTokens => true,
        found => return Err(wrong_task(engine, found, Task::ClassifySequence)),
    };
    let labels = engine.blueprint().logits;
    let caps = engine.caps();
    // Rows whose logits a text asks for.
    let asked = |text: &Encoded| if each_token { text.ids.len() } else { 1 };
    let mut all = Vec::with_capacity(texts.len());
    for batch in batches(engine, texts, caps.outputs, asked)? {
        let texts = &texts[batch];
        let mut wanted = Vec::new();
        let mut first = 0;
        for text in texts {
            wanted.extend(first..first + asked(text) as u32);
            first += text.ids.len() as u32;
        }
        match run(engine, texts, Output::Logits(&wanted)).await? {
            Answer::Logits(logits) => {
                let mut rest = logits.as_slice();
                for text in texts {
                    let (now, later) = rest.split_at((asked(text) * labels).min(rest.len()));
                    all.push(now.to_vec());
                    rest = later;
                }
            }
            other => return Err(unexpected("logits", &other)),
        }
    }
    Ok(all)
}

/// The hidden states of each text.
///
/// # Errors
/// As [`classify`], with [`Task::Embed`].
pub async fn features(engine: &mut Engine, texts: &[Encoded]) -> Result<Vec<Features>, ModelError> {
    if engine.blueprint().task != Task::Embed {
        return Err(wrong_task(engine, engine.blueprint().task, Task::Embed));
    }
    let width = engine.blueprint().hidden;
    let has_pooler = engine.blueprint().outputs.len() > 1;
    let mut all = Vec::with_capacity(texts.len());
    for batch in batches(engine, texts, usize::MAX, |_| 1)? {
        let texts = &texts[batch];
        let values = match run(engine, texts, Output::Hidden).await? {
            Answer::Hidden(values) => values,
            other => return Err(unexpected("hidden states", &other)),
        };
        let rows: usize = texts.iter().map(|text| text.ids.len()).sum();
        let (hidden, pooled) = values.split_at((rows * width).min(values.len()));
        let mut first = 0;
        for text in texts {
            let range = first * width..(first + text.ids.len()) * width;
            all.push(Features {
                hidden: hidden[range].to_vec(),
                pooled: has_pooler.then(|| pooled[first * width..(first + 1) * width].to_vec()),
                width,
            });
            first += text.ids.len();
        }
    }
    Ok(all)
}

async fn run(engine: &mut Engine, texts: &[Encoded], output: Output<'_>) -> Result<Answer, ModelError> {
    let tokens: Vec<u32> = texts.iter().flat_map(|text| text.ids.iter().copied()).collect();
    let mut places = Vec::with_capacity(tokens.len());
    for (sequence, text) in texts.iter().enumerate() {
        places.extend((0..text.ids.len()).map(|position| Place {
            sequence: sequence as u32,
            position: position as u32,
            token_type: text.types.get(position).copied().unwrap_or(0),
        }));
    }
    Ok(engine.forward(&Rows { input: Input::Tokens(&tokens), places: &places, output }).await?)
}

/// Runs of texts that fit into one submission each: in rows, and in outputs of which a text takes `asked`.
fn batches(
    engine: &Engine,
    texts: &[Encoded],
    outputs: usize,
    asked: impl Fn(&Encoded) -> usize,
) -> Result<Vec<Range<usize>>, ModelError> {
    let most = engine.caps().rows;
    let mut runs: Vec<Range<usize>> = Vec::new();
    let (mut rows, mut wanted) = (0, 0);
    for (index, text) in texts.iter().enumerate() {
        check(engine, text)?;
        let (len, asks) = (text.ids.len(), asked(text));
        if asks > outputs {
            return Err(ModelError::Invalid(format!(
                "logits of {asks} tokens from an engine for {outputs}; load it with outputs of at least {asks}"
            )));
        }
        match runs.last_mut().filter(|_| rows + len <= most && wanted + asks <= outputs) {
            Some(run) => {
                run.end += 1;
                (rows, wanted) = (rows + len, wanted + asks);
            }
            None => {
                runs.push(index..index + 1);
                (rows, wanted) = (len, asks);
            }
        }
    }
    Ok(runs)
}

fn check(engine: &Engine, text: &Encoded) -> Result<(), ModelError> {
    crate::session::check(engine, &text.ids)?;
    if !text.types.is_empty() && text.types.len() != text.ids.len() {
        let message = format!("{} token types for {} tokens", text.types.len(), text.ids.len());
        return Err(ModelError::Invalid(message));
    }
    let rows = engine.caps().rows;
    if text.ids.len() > rows {
        return Err(ModelError::Invalid(format!(
            "a text of {} tokens in an engine for {rows} at once: an encoder sees a text whole",
            text.ids.len()
        )));
    }
    Ok(())
}

fn wrong_task(engine: &Engine, found: Task, wanted: Task) -> ModelError {
    ModelError::Task {
        architecture: engine.blueprint().architecture.clone(),
        found,
        wanted,
        instead: format!("build it with Settings {{ task: Some(Task::{wanted:?}), .. }} if it is an encoder"),
    }
}
