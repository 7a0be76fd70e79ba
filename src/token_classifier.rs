//! A token classifier: names in a text, parts of speech.

use crate::loading::Loaded;
use crate::model_source::ModelSource;
use crate::opened::Opened;
use crate::sequence_classifier::softmax;
use crate::{Error, LoadOptions, Progress, Silent};
use halfbyte_checkpoint::Tokenizer;
use halfbyte_inference::{Encoded, Task, classify};
use std::ops::Range;

/// What a token classifier says about one token of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLabel {
    /// The bytes of the text that the token stands for.
    pub span: Range<usize>,
    /// The label with the highest score, as in `B-PER`.
    pub label: String,
    /// Its probability.
    pub score: f32,
    /// What the scores of all labels were made from, in the model's order.
    pub logits: Vec<f32>,
}

/// A stretch of a text with one meaning: a person, a place.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Entity {
    /// Its kind, as in `PER`.
    pub label: String,
    /// The mean of its tokens' probabilities.
    pub score: f32,
    /// Its bytes in the text: from here,
    pub start: usize,
    /// to before here.
    pub end: usize,
}

/// A token classifier that is loaded and ready: BERT, RoBERTa, DistilBERT for named entities and the like.
pub struct TokenClassifier {
    loaded: Loaded,
    tokenizer: Option<Tokenizer>,
    labels: Vec<String>,
}

impl std::fmt::Debug for TokenClassifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenClassifier").field("loaded", &self.loaded).field("labels", &self.labels).finish()
    }
}

impl TokenClassifier {
    /// Loads a token classifier in NF4 with double quantization, its head unquantized, wherever it fits: a
    /// Hub id or a local directory.
    ///
    /// # Errors
    /// What is wrong with the model, or why it does not fit, in one line.
    pub fn from_pretrained(model: &str) -> Result<Self, Error> {
        Self::load(&ModelSource::named(model), &LoadOptions::default(), &mut Silent)
    }

    /// Plans, then loads by the plan. An encoder without a classifier gets one that is drawn at random, and
    /// `progress` is told which tensors that concerns.
    ///
    /// # Errors
    /// As [`from_pretrained`](Self::from_pretrained).
    pub fn load(
        source: &ModelSource,
        options: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<Self, Error> {
        Self::from_opened(Opened::new(source, options, progress)?)
    }

    pub(crate) fn from_opened(opened: Opened<'_>) -> Result<Self, Error> {
        opened.expect(Task::ClassifyTokens)?;
        let labels = opened.config().labels()?;
        let (loaded, tokenizer) = opened.load(Task::ClassifyTokens)?;
        Ok(Self { tokenizer, loaded, labels })
    }

    /// Where the model lives and what it holds.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// The labels in the order of their logits.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Labels the tokens of texts, those of the tokenizer's frame left out. A text longer than the model's
    /// positions is labelled as far as they go.
    ///
    /// # Errors
    /// A model without a tokenizer; a failed device.
    pub fn label(&mut self, texts: &[&str]) -> Result<Vec<Vec<TokenLabel>>, Error> {
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| self.loaded.no_tokenizer())?;
        let context = self.loaded.context();
        let mut spans = Vec::with_capacity(texts.len());
        let mut encoded = Vec::with_capacity(texts.len());
        for text in texts {
            let tokens = tokenizer.encode_spans(text, context)?;
            spans.push(tokens.spans);
            encoded.push(Encoded::from(tokens.ids));
        }
        let logits = self.logits(&encoded)?;
        let width = self.labels.len().max(1);
        let label = |(span, logits): (Option<Range<usize>>, &[f32])| {
            let scores = softmax(logits);
            let best = halfbyte_backend::argmax(logits) as usize;
            Some(TokenLabel {
                span: span?,
                label: self.labels.get(best)?.clone(),
                score: *scores.get(best)?,
                logits: logits.to_vec(),
            })
        };
        Ok(spans
            .into_iter()
            .zip(&logits)
            .map(|(spans, logits)| spans.into_iter().zip(logits.chunks(width)).filter_map(label).collect())
            .collect())
    }

    /// The entities of texts, as transformers' pipeline finds them with `aggregation_strategy="simple"`:
    /// neighbouring tokens of one kind, each `B-` the beginning of a new one, `O` left out.
    ///
    /// # Errors
    /// As [`label`](Self::label).
    pub fn entities(&mut self, texts: &[&str]) -> Result<Vec<Vec<Entity>>, Error> {
        Ok(self.label(texts)?.iter().map(|tokens| joined(tokens)).collect())
    }

    /// The logits of texts that are token ids already, `[tokens, labels]` each.
    ///
    /// # Errors
    /// An empty text, one longer than the model's positions, an unknown token; a failed device.
    pub fn logits(&mut self, texts: &[Encoded]) -> Result<Vec<Vec<f32>>, Error> {
        let context = self.loaded.context();
        self.loaded.ask(context, &mut |engine| pollster::block_on(classify(engine, texts)))
    }
}

/// A label without its prefix, and whether it begins an entity.
fn kind(label: &str) -> (&str, bool) {
    match label.split_at_checked(2) {
        Some(("B-", kind)) => (kind, true),
        Some(("I-", kind)) => (kind, false),
        _ => (label, false),
    }
}

/// Runs of tokens of one kind.
fn joined(tokens: &[TokenLabel]) -> Vec<Entity> {
    let mut runs: Vec<(&str, Vec<&TokenLabel>)> = Vec::new();
    for token in tokens {
        let (label, begins) = kind(&token.label);
        match runs.last_mut().filter(|run| run.0 == label && !begins) {
            Some(run) => run.1.push(token),
            None => runs.push((label, vec![token])),
        }
    }
    let entity = |(label, tokens): (&str, Vec<&TokenLabel>)| {
        let sum: f64 = tokens.iter().map(|token| f64::from(token.score)).sum();
        Some(Entity {
            label: label.to_owned(),
            score: (sum / tokens.len() as f64) as f32,
            start: tokens.first()?.span.start,
            end: tokens.last()?.span.end,
        })
    };
    runs.into_iter().filter(|run| run.0 != "O").filter_map(entity).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_ends_the_entity_before_it() {
        let labels = ["B-PER", "I-PER", "B-PER", "O", "I-LOC", "I-PER", "MISC", "MISC"];
        let tokens: Vec<TokenLabel> = (0..)
            .zip(labels)
            .map(|(at, label)| TokenLabel {
                span: 10 * at..10 * at + 5,
                label: label.to_owned(),
                score: if at == 1 { 0.5 } else { 1.0 },
                logits: Vec::new(),
            })
            .collect();
        let found: Vec<_> =
            joined(&tokens).into_iter().map(|one| (one.label, one.start, one.end, one.score)).collect();
        let wanted = [
            ("PER", 0, 15, 0.75),
            ("PER", 20, 25, 1.0),
            ("LOC", 40, 45, 1.0),
            ("PER", 50, 55, 1.0),
            ("MISC", 60, 75, 1.0),
        ];
        assert_eq!(found, wanted.map(|(label, start, end, score)| (label.to_owned(), start, end, score)));
    }
}
