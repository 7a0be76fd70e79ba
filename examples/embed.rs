//! The library in twenty lines: `cargo run --release --example embed -- "One winter day,"`.

use halfbyte::{CausalLm, Error, Flow, GenerateOptions};
use std::io::Write;

fn main() -> Result<(), Error> {
    let prompt = std::env::args().nth(1).unwrap_or_else(|| "Once there was".into());
    // A Hub id, a directory, or the bundled "stories": in 4 bits, on whatever devices are here.
    let mut model = CausalLm::from_pretrained("stories")?;
    let options = GenerateOptions { max_new_tokens: 120, ..model.default_options() };
    print!("{prompt}");
    let story = model.generate(&prompt, &options, &mut |text| {
        print!("{text}");
        // Without a terminal on the other side there is nobody to go on for.
        if std::io::stdout().flush().is_ok() { Flow::Continue } else { Flow::Stop }
    })?;
    println!("\n\n{} new tokens on {:?}", story.token_ids.len(), model.device_map());
    Ok(())
}
