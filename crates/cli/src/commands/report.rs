//! What a load and a generation report, as JSON and as lines for people.

use crate::table::{Table, bytes};
use halfbyte::{CausalLm, Error, Generation, MemoryRow, Stop};
use serde_json::{Value, json};

/// The JSON object of `run`.
pub fn generation_json(model: &CausalLm, generation: &Generation) -> Value {
    json!({
        "text": generation.text,
        "token_ids": generation.token_ids,
        "prompt_tokens": generation.prompt_tokens,
        "cached_tokens": generation.cached_tokens,
        "prompt_tokens_done": generation.prompt_tokens_done,
        "new_tokens": generation.token_ids.len(),
        "stop": generation.stop,
        "load_seconds": model.load_seconds(),
        "prefill_tokens_per_second": generation.prefill_tokens_per_second,
        "decode_tokens_per_second": generation.decode_tokens_per_second,
        "context": model.context(),
        "device_map": model.device_map(),
        "memory": model.memory(),
        "events": model.events(),
    })
}

/// Speed in one line, and that the context ended the text, or Ctrl-C within the prompt, if it did.
pub fn speed_line(model: &CausalLm, generation: &Generation) -> String {
    let tokens = |count: usize, kind: &str, rate: Option<f64>| {
        let rate = rate.map(|rate| format!(" at {rate:.1} tokens/s")).unwrap_or_default();
        format!("{count} {kind} token{}{rate}", if count == 1 { "" } else { "s" })
    };
    // A first token shows that all of the prompt was computed.
    let within = generation.stop == Stop::Cancelled && generation.token_ids.is_empty();
    let mut prompt = tokens(generation.prompt_tokens, "prompt", generation.prefill_tokens_per_second);
    if within {
        prompt = format!("{} of {prompt}", generation.prompt_tokens_done);
    }
    let new = tokens(generation.token_ids.len(), "new", generation.decode_tokens_per_second);
    let end = match generation.stop {
        Stop::ContextFull => format!("; the context of {} tokens is full", model.context()),
        Stop::Cancelled if within => "; stopped within the prompt".to_owned(),
        _ => String::new(),
    };
    format!("{prompt}, {new}{end}")
}

/// Planned, allocated and witnessed memory of each device, then of each purpose on it.
pub fn memory_table(rows: &[MemoryRow]) -> Table {
    let mut table = Table::new(&["memory", "planned", "allocated", "witnessed"]);
    for row in rows {
        table.row([
            row.device.clone(),
            bytes(row.planned_bytes),
            bytes(row.measured_bytes),
            row.witnessed_bytes.map_or_else(|| "?".to_owned(), bytes),
        ]);
        for purpose in &row.purposes {
            table.row([
                format!("  {}", purpose.purpose),
                bytes(purpose.planned_bytes),
                bytes(purpose.measured_bytes),
                String::new(),
            ]);
        }
    }
    table
}

/// A file's text, or stdin's for `-`.
pub fn read_text(file: &std::path::Path) -> Result<String, Error> {
    let stdin = file.as_os_str() == "-";
    let name = if stdin { "stdin".into() } else { file.display().to_string() };
    let wrong = |error: std::io::Error| Error::Usage(format!("{name}: {error}"));
    if stdin {
        std::io::read_to_string(std::io::stdin()).map_err(wrong)
    } else {
        std::fs::read_to_string(file).map_err(wrong)
    }
}
