//! `halfbyte run`: completes a prompt.

use super::{interrupt, print, print_json, report, say, say_table};
use crate::args::RunArgs;
use crate::notes;
use crate::progress::Bars;
use crate::prompt_bar::PromptBar;
use halfbyte::{CausalLm, Error, Flow, GenerateOptions};
use std::io::IsTerminal;

/// Loads, streams the completion to stdout, and says on stderr how fast it was.
pub fn run(args: &RunArgs) -> Result<(), Error> {
    let prompt = match (&args.prompt, &args.prompt_file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => without_line_end(report::read_text(file)?),
        (None, None) => {
            return Err(Error::Usage(
                "what to continue? --prompt TEXT or --prompt-file FILE (- for stdin)".into(),
            ));
        }
    };
    if prompt.is_empty() {
        return Err(Error::Usage("the prompt is empty: give at least one character".into()));
    }
    args.sample.check()?;
    let mut model = CausalLm::load(&args.model.source(), &args.model.options()?, &mut Bars::new())?;
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens.or(model.default_max_new_tokens()).unwrap_or(256),
        sample: args.sample.over(model.default_sampling())?,
    };
    let ids = model.encode(&prompt)?;
    interrupt::install();
    let json = args.model.json;
    let mut broken = None;
    if !json {
        print(&prompt)?;
    }
    let quiet = notes::hold();
    let mut bar = PromptBar::new(ids.len(), !json && std::io::stdout().is_terminal());
    let generation = model.generate_ids(&ids, &options, &mut |heard| {
        bar.hear(heard);
        if !json
            && let Some(text) = heard.text()
            && let Err(error) = print(text)
        {
            broken = Some(error);
            return Flow::Stop;
        }
        if interrupt::pressed() { Flow::Stop } else { Flow::Continue }
    })?;
    // Where the prompt was stopped, it is still there.
    drop(bar);
    if let Some(error) = broken {
        return Err(error);
    }
    if json {
        return print_json(&report::generation_json(&model, &generation));
    }
    print("\n")?;
    drop(quiet);
    say(&format!("\nloaded in {:.1} s; {}", model.load_seconds(), report::speed_line(&model, &generation)));
    say_table(&report::memory_table(&model.memory()));
    Ok(())
}

/// A file's text without its last line end, which editors and `echo` put there and nobody means to be continued: a text
/// that goes on after it begins a new line.
fn without_line_end(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}
