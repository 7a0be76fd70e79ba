//! A sequence classifier: loaded, and asked.

use crate::loading::Loaded;
use crate::model_source::ModelSource;
use crate::opened::Opened;
use crate::{Error, LoadOptions, Progress, Silent};
use halfbyte_checkpoint::{ModelConfig, Tokenizer};
use halfbyte_inference::{Encoded, Task, classify};

/// A label and how much the model is for it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LabelScore {
    /// The label.
    pub label: String,
    /// A probability; the plain value of a regression.
    pub score: f32,
}

/// What a classifier says about a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Classification {
    /// The label with the highest score.
    pub label: String,
    /// Its score.
    pub score: f32,
    /// All labels in the model's order.
    pub scores: Vec<LabelScore>,
    /// What the scores were made from, in the same order.
    pub logits: Vec<f32>,
    /// Whether the text was longer than the model's positions and has been cut.
    pub truncated: bool,
}

/// How logits become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scoring {
    /// One label is right: softmax.
    OneOf,
    /// Each label may be right: sigmoid.
    AnyOf,
    /// The logits are the answer.
    Plain,
}

/// A sequence classifier that is loaded and ready: BERT, RoBERTa, DistilBERT.
///
/// ```
/// # fn main() -> Result<(), halfbyte::Error> {
/// let mut model = halfbyte::SequenceClassifier::from_pretrained("sentiment")?;
/// let answers = model.classify(&["The soup was wonderful.", "The bus is extremely ugly."])?;
/// assert_eq!(answers[0].label, "POSITIVE");
/// assert_eq!(answers[1].label, "NEGATIVE");
/// # Ok(())
/// # }
/// ```
pub struct SequenceClassifier {
    loaded: Loaded,
    tokenizer: Option<Tokenizer>,
    labels: Vec<String>,
    scoring: Scoring,
}

impl std::fmt::Debug for SequenceClassifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SequenceClassifier")
            .field("loaded", &self.loaded)
            .field("labels", &self.labels)
            .finish()
    }
}

impl SequenceClassifier {
    /// Loads a classifier in NF4 with double quantization, its head unquantized, wherever it fits: a Hub
    /// id, a local directory, or the bundled `sentiment`.
    ///
    /// # Errors
    /// What is wrong with the model, or why it does not fit, in one line.
    pub fn from_pretrained(model: &str) -> Result<Self, Error> {
        Self::load(&ModelSource::named(model), &LoadOptions::default(), &mut Silent)
    }

    /// Plans, then loads by the plan. An encoder without a classifier (`bert-large-uncased` itself) gets
    /// one that is drawn at random, and `progress` is told which tensors that concerns.
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
        opened.expect(Task::ClassifySequence)?;
        let labels = opened.config().labels()?;
        let scoring = scoring(opened.config(), labels.len())?;
        let (loaded, tokenizer) = opened.load(Task::ClassifySequence)?;
        Ok(Self { tokenizer, loaded, labels, scoring })
    }

    /// Where the model lives and what it holds.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// The labels in the order of their logits.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Labels texts. They go through the model together, as many as its rows hold, and nothing is padded;
    /// one longer than the model's positions is cut.
    ///
    /// # Errors
    /// A model without a tokenizer; a failed device.
    pub fn classify(&mut self, texts: &[&str]) -> Result<Vec<Classification>, Error> {
        let pairs: Vec<(&str, Option<&str>)> = texts.iter().map(|&text| (text, None)).collect();
        self.classify_pairs(&pairs)
    }

    /// Labels texts that may each have a second one, such as a premise and a hypothesis.
    ///
    /// # Errors
    /// As [`classify`](Self::classify).
    pub fn classify_pairs(&mut self, pairs: &[(&str, Option<&str>)]) -> Result<Vec<Classification>, Error> {
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| self.loaded.no_tokenizer())?;
        let context = self.loaded.context();
        let mut cut = Vec::with_capacity(pairs.len());
        let mut encoded = Vec::with_capacity(pairs.len());
        for &(text, pair) in pairs {
            let (ids, types, truncated) = tokenizer.encode_pair(text, pair, context)?;
            cut.push(truncated);
            encoded.push(Encoded { ids, types });
        }
        let logits = self.logits(&encoded)?;
        Ok(logits.into_iter().zip(cut).map(|(logits, cut)| self.classification(logits, cut)).collect())
    }

    /// The logits of texts that are token ids already, `[labels]` each.
    ///
    /// # Errors
    /// An empty text, one longer than the model's positions, an unknown token; a failed device.
    pub fn logits(&mut self, texts: &[Encoded]) -> Result<Vec<Vec<f32>>, Error> {
        let context = self.loaded.context();
        self.loaded.ask(context, &mut |engine| pollster::block_on(classify(engine, texts)))
    }

    fn classification(&self, logits: Vec<f32>, truncated: bool) -> Classification {
        let scores: Vec<LabelScore> = self
            .labels
            .iter()
            .zip(scores(self.scoring, &logits))
            .map(|(label, score)| LabelScore { label: label.clone(), score })
            .collect();
        let best = halfbyte_backend::argmax(&logits) as usize;
        let (label, score) =
            scores.get(best).map_or((String::new(), f32::NAN), |best| (best.label.clone(), best.score));
        Classification { label, score, scores, logits, truncated }
    }
}

/// As transformers' pipeline chooses: by `problem_type`, else by the number of labels.
fn scoring(config: &ModelConfig, labels: usize) -> Result<Scoring, Error> {
    Ok(match config.opt_str("problem_type")? {
        Some("regression") => Scoring::Plain,
        Some("multi_label_classification") => Scoring::AnyOf,
        Some("single_label_classification") => Scoring::OneOf,
        None if labels == 1 => Scoring::AnyOf,
        None => Scoring::OneOf,
        Some(_) => {
            let found = config.opt("problem_type");
            let expected =
                "regression, single_label_classification or multi_label_classification, or nothing";
            return Err(config.error("problem_type", found, expected).into());
        }
    })
}

/// Scores of `logits`, in f64 within.
fn scores(scoring: Scoring, logits: &[f32]) -> Vec<f32> {
    match scoring {
        Scoring::Plain => logits.to_vec(),
        Scoring::AnyOf => {
            logits.iter().map(|&logit| (1.0 / (1.0 + (-f64::from(logit)).exp())) as f32).collect()
        }
        Scoring::OneOf => softmax(logits),
    }
}

/// Probabilities of which one is right, in f64 within.
pub(crate) fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> =
        logits.iter().map(|&logit| (f64::from(logit) - f64::from(largest)).exp()).collect();
    let total: f64 = powers.iter().sum();
    powers.into_iter().map(|power| (power / total) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> ModelConfig {
        ModelConfig::parse("config.json", json.as_bytes()).unwrap()
    }

    #[test]
    fn problem_types_choose_the_scoring() {
        for (json, labels, wanted) in [
            (r#"{"model_type": "bert"}"#, 2, Scoring::OneOf),
            (r#"{"model_type": "bert"}"#, 1, Scoring::AnyOf),
            (r#"{"model_type": "bert", "problem_type": "regression"}"#, 1, Scoring::Plain),
            (r#"{"model_type": "bert", "problem_type": "multi_label_classification"}"#, 3, Scoring::AnyOf),
            (r#"{"model_type": "bert", "problem_type": "single_label_classification"}"#, 3, Scoring::OneOf),
        ] {
            assert_eq!(scoring(&config(json), labels).unwrap(), wanted, "{json}");
        }
        let odd = config(r#"{"model_type": "bert", "problem_type": "ranking"}"#);
        assert!(scoring(&odd, 2).unwrap_err().to_string().contains("ranking"));
    }

    #[test]
    fn scores_are_probabilities_however_large_the_logits() {
        let found = scores(Scoring::OneOf, &[1000.0, 1000.0 + std::f32::consts::LN_2]);
        assert!((found[0] - 1.0 / 3.0).abs() < 1e-4 && (found[1] - 2.0 / 3.0).abs() < 1e-4, "{found:?}");
        let found = scores(Scoring::AnyOf, &[0.0, -1000.0, 1000.0]);
        assert_eq!(found, [0.5, 0.0, 1.0]);
        assert_eq!(scores(Scoring::Plain, &[-3.5]), [-3.5]);
    }
}
