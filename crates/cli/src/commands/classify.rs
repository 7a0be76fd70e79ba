//! `halfbyte classify`: labels texts.

use super::{print_json, print_table, report, say, say_table};
use crate::args::ClassifyArgs;
use crate::progress::Bars;
use crate::table::Table;
use halfbyte::{AutoModel, Classification, Entity, Error, ModelSource, SequenceClassifier, TokenClassifier};
use serde_json::{Map, Value, json};

/// Loads, labels all texts together, and prints a label and its score for each; from a token classifier,
/// the entities of each.
pub fn run(args: &ClassifyArgs) -> Result<(), Error> {
    let texts = texts(args)?;
    let source = match args.model.model {
        Some(_) => args.model.source(),
        None => ModelSource::Bundled("sentiment".into()),
    };
    let mut model = AutoModel::load_classifier(&source, &args.model.options()?, &mut Bars::new())?;
    let start = std::time::Instant::now();
    let (results, table) = match &mut model {
        AutoModel::TokenClassifier(model) => entities(model, &texts, args)?,
        AutoModel::SequenceClassifier(model) => labels(model, &texts, args)?,
        other => return Err(Error::Usage(format!("{} labels no texts", other.loaded().name()))),
    };
    let seconds = start.elapsed().as_secs_f64();
    let loaded = model.loaded();
    if args.model.json {
        return print_json(&json!({
            "results": results,
            "seconds": seconds,
            "load_seconds": loaded.load_seconds(),
            "device_map": loaded.device_map(),
            "memory": loaded.memory(),
            "events": loaded.events(),
        }));
    }
    print_table(&table)?;
    let rate = texts.len() as f64 / seconds.max(f64::MIN_POSITIVE);
    let count = if texts.len() == 1 { "1 text".to_owned() } else { format!("{} texts", texts.len()) };
    say(&format!("\nloaded in {:.1} s; {count} at {rate:.1} texts/s", loaded.load_seconds()));
    say_table(&report::memory_table(&loaded.memory()));
    Ok(())
}

/// A label for each text.
fn labels(
    model: &mut SequenceClassifier,
    texts: &[String],
    args: &ClassifyArgs,
) -> Result<(Vec<Value>, Table), Error> {
    let answers = model.classify_pairs(&pairs(texts, &args.pair)?)?;
    let cut = answers.iter().filter(|answer| answer.truncated).count();
    if cut > 0 {
        let context = model.loaded().context();
        say(&format!("note: {cut} of {} texts were cut to {context} tokens", answers.len()));
    }
    let mut table = Table::new(&["label", "score", "text"]);
    for (text, answer) in texts.iter().zip(&answers) {
        table.row([answer.label.clone(), format!("{:.4}", answer.score), text.clone()]);
    }
    Ok((texts.iter().zip(&answers).map(|(text, answer)| result(text, answer)).collect(), table))
}

/// The entities of each text.
fn entities(
    model: &mut TokenClassifier,
    texts: &[String],
    args: &ClassifyArgs,
) -> Result<(Vec<Value>, Table), Error> {
    if !args.pair.is_empty() {
        return Err(Error::Usage("--pair: a token classifier labels single texts; leave it out".into()));
    }
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let found = model.entities(&texts)?;
    let mut table = Table::new(&["label", "score", "words", "text"]);
    let mut results = Vec::with_capacity(texts.len());
    for (text, entities) in texts.iter().zip(&found) {
        let words = |entity: &Entity| text.get(entity.start..entity.end).unwrap_or_default().to_owned();
        for entity in entities {
            table.row([
                entity.label.clone(),
                format!("{:.4}", entity.score),
                words(entity),
                (*text).to_owned(),
            ]);
        }
        let entities: Vec<Value> = entities
            .iter()
            .map(|entity| {
                json!({
                    "label": entity.label,
                    "score": entity.score,
                    "start": entity.start,
                    "end": entity.end,
                    "words": words(entity),
                })
            })
            .collect();
        results.push(json!({ "text": text, "entities": entities }));
    }
    Ok((results, table))
}

fn texts(args: &ClassifyArgs) -> Result<Vec<String>, Error> {
    let mut texts = args.text.clone();
    if let Some(file) = &args.text_file {
        let lines = report::read_text(file)?;
        texts.extend(lines.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
    }
    if texts.is_empty() {
        return Err(Error::Usage("what to classify? --text TEXT or --text-file FILE (- for stdin)".into()));
    }
    Ok(texts)
}

fn pairs<'a>(texts: &'a [String], seconds: &'a [String]) -> Result<Vec<(&'a str, Option<&'a str>)>, Error> {
    if !seconds.is_empty() && seconds.len() != texts.len() {
        return Err(Error::Usage(format!(
            "{} --pair for {} texts: give one for each text, or none",
            seconds.len(),
            texts.len()
        )));
    }
    let second = |at: usize| seconds.get(at).map(String::as_str);
    Ok(texts.iter().enumerate().map(|(at, text)| (text.as_str(), second(at))).collect())
}

fn result(text: &str, answer: &Classification) -> Value {
    let scores: Map<String, Value> =
        answer.scores.iter().map(|one| (one.label.clone(), json!(one.score))).collect();
    json!({
        "text": text,
        "label": answer.label,
        "score": answer.score,
        "scores": scores,
        "logits": answer.logits,
        "truncated": answer.truncated,
    })
}
