//! Several prompts at once, through the library.

mod reference;

use halfbyte::{CausalLm, Flow, GenerateOptions, LoadOptions, ModelSource, Silent};
use reference::{float32, setups};

#[test]
fn prompts_together_are_continued_as_each_alone() {
    let prompts =
        ["Once there was", "A", "One day a girl named Mia found a big red ball. She", "Ben had a dog."];
    for setup in setups().into_iter().filter(|setup| setup.devices.len() == 1) {
        let load = |sequences| {
            let options = LoadOptions { device_map: setup.device_map.clone(), sequences, ..float32() };
            CausalLm::load(&ModelSource::named("stories"), &options, &mut Silent).unwrap()
        };
        let mut alone = load(1);
        let options = GenerateOptions { max_new_tokens: 24, ..alone.default_options() };
        let wanted: Vec<_> = prompts
            .iter()
            .map(|prompt| alone.generate(prompt, &options, &mut |_| Flow::Continue).unwrap())
            .collect();
        for sequences in [1, 3, 4] {
            let mut together = load(sequences);
            let found = together.generate_batch(&prompts, &options).unwrap();
            for (found, wanted) in found.iter().zip(&wanted) {
                assert_eq!(found.token_ids, wanted.token_ids, "{sequences} on {}", setup.name);
                assert_eq!(found.text, wanted.text, "{sequences} on {}", setup.name);
                assert_eq!(found.stop, wanted.stop);
                assert_eq!(found.prompt_tokens, wanted.prompt_tokens);
            }
            assert!(together.generate_batch(&["A", ""], &options).is_err());
            assert!(together.generate_batch(&[], &options).unwrap().is_empty());
            // And alone again.
            let again = together.generate(prompts[2], &options, &mut |_| Flow::Continue).unwrap();
            assert_eq!(again.token_ids, wanted[2].token_ids);
        }
    }
}
