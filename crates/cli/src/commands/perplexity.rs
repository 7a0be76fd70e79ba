//! `halfbyte perplexity`: how well a model predicts a text.

use super::{print, print_json, report};
use crate::args::PerplexityArgs;
use crate::progress::Bars;
use halfbyte::{CausalLm, Error};
use serde_json::json;

/// Computes and prints it.
pub fn run(args: &PerplexityArgs) -> Result<(), Error> {
    let text = report::read_text(&args.text_file)?;
    let options = args.model.options_for_numbers()?;
    let mut model = CausalLm::load(&args.model.source(), &options, &mut Bars::new())?;
    let score = model.perplexity(&text)?;
    if args.model.json {
        return print_json(&json!({
            "perplexity": score.perplexity(),
            "tokens": score.tokens,
            "memory": model.memory(),
            "events": model.events(),
        }));
    }
    print(&format!("perplexity {:.4} over {} tokens\n", score.perplexity(), score.tokens))
}
