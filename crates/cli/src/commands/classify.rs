//! `halfbyte classify`: labels texts.

use super::{print, print_json, report, say};
use crate::args::ClassifyArgs;
use crate::progress::Bars;
use crate::table::Table;
use halfbyte::{Classification, Error, ModelSource, SequenceClassifier};
use serde_json::{Map, Value, json};

/// Loads, labels all texts together, and prints a label and its score for each.
pub fn run(args: &ClassifyArgs) -> Result<(), Error> {
    let texts = texts(args)?;
    let pairs = pairs(&texts, &args.pair)?;
    let source = match args.model.model {
        Some(_) => args.model.source(),
        None => ModelSource::Bundled("sentiment".into()),
    };
    let mut model = SequenceClassifier::load(&source, &args.model.options()?, &mut Bars::new())?;
    let start = std::time::Instant::now();
    let answers = model.classify_pairs(&pairs)?;
    let seconds = start.elapsed().as_secs_f64();
    let loaded = model.loaded();
    let cut = answers.iter().filter(|answer| answer.truncated).count();
    if cut > 0 {
        say(&format!("note: {cut} of {} texts were cut to {} tokens", answers.len(), loaded.context()));
    }
    if args.model.json {
        let results: Vec<Value> =
            texts.iter().zip(&answers).map(|(text, answer)| result(text, answer)).collect();
        return print_json(&json!({
            "results": results,
            "seconds": seconds,
            "load_seconds": loaded.load_seconds(),
            "device_map": loaded.device_map(),
            "memory": loaded.memory(),
            "events": loaded.events(),
        }));
    }
    let mut table = Table::new(&["label", "score", "text"]);
    for (text, answer) in texts.iter().zip(&answers) {
        table.row([answer.label.clone(), format!("{:.4}", answer.score), text.clone()]);
    }
    print(&table.to_string())?;
    let rate = texts.len() as f64 / seconds.max(f64::MIN_POSITIVE);
    say(&format!("\nloaded in {:.1} s; {} texts at {rate:.1} texts/s", loaded.load_seconds(), texts.len()));
    say(&report::memory_table(loaded).to_string());
    Ok(())
}

fn texts(args: &ClassifyArgs) -> Result<Vec<String>, Error> {
    let mut texts = args.text.clone();
    if let Some(file) = &args.text_file {
        let lines = report::read_text(file)?;
        texts.extend(lines.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
    }
    if texts.is_empty() {
        return Err(Error::Usage("what to classify? --text TEXT or --text-file FILE".into()));
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
