//! Several texts in as many attempts as their devices make necessary.

use crate::attempts::sum;
use halfbyte_inference::{Engine, Finish, Flow, GenerateOptions, Generation, ModelError, Timings};

/// Texts in the making. Each attempt goes on where the last one was when a device failed or something else was to be
/// done: what is at its end stays, and the prompts of the others are all that there is so far.
pub(crate) struct BatchAttempts {
    texts: Vec<Text>,
}

struct Text {
    prompt: usize,
    /// The prompt and the new tokens so far.
    tokens: Vec<u32>,
    timings: Timings,
    finish: Option<Finish>,
}

impl BatchAttempts {
    pub(crate) fn new(prompts: &[Vec<u32>]) -> Self {
        let text = |prompt: &Vec<u32>| Text {
            prompt: prompt.len(),
            tokens: prompt.clone(),
            timings: Timings::default(),
            finish: None,
        };
        Self { texts: prompts.iter().map(text).collect() }
    }

    /// The first attempt, or the next one after a fault or a pause. `None` where it paused: `pause` said after a step
    /// that there is something else to do, and not all texts are at their end.
    ///
    /// # Errors
    /// As [`halfbyte_inference::generate_batch`].
    pub(crate) fn go_on(
        &mut self,
        engine: &mut Engine,
        options: &GenerateOptions,
        pause: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Vec<Generation>>, ModelError> {
        let context = engine.blueprint().context;
        for text in self.texts.iter_mut().filter(|text| text.finish.is_none()) {
            let new = text.tokens.len() - text.prompt;
            if new >= options.max_new_tokens {
                text.finish = Some(Finish::MaxTokens);
            } else if new > 0 && text.tokens.len() > context {
                text.finish = Some(Finish::ContextFull);
            }
        }
        let open: Vec<usize> =
            (0..self.texts.len()).filter(|&index| self.texts[index].finish.is_none()).collect();
        let so_far: Vec<Vec<u32>> = open.iter().map(|&index| self.texts[index].tokens.clone()).collect();
        let left =
            |index: usize| options.max_new_tokens - (so_far[index].len() - self.texts[open[index]].prompt);
        let each: Vec<GenerateOptions> = (0..open.len())
            .map(|index| GenerateOptions { max_new_tokens: left(index), ..options.clone() })
            .collect();
        let asked: Vec<(&[u32], &GenerateOptions)> = so_far.iter().map(Vec::as_slice).zip(&each).collect();
        let mut paused = false;
        let found = pollster::block_on(halfbyte_inference::generate_until(
            engine,
            &asked,
            &mut |index, token| {
                self.texts[open[index]].tokens.push(token);
                Flow::Continue
            },
            &mut || {
                paused = pause();
                paused
            },
        ))?;
        for (&index, generation) in open.iter().zip(found) {
            let text = &mut self.texts[index];
            text.timings = sum(text.timings, generation.timings);
            // Nobody but a pause ends a text before its end.
            text.finish = Some(generation.finish).filter(|&finish| finish != Finish::Cancelled);
        }
        Ok((!paused).then(|| self.texts.iter().map(Text::generation).collect()))
    }
}

impl Text {
    fn generation(&self) -> Generation {
        let tokens = self.tokens[self.prompt..].to_vec();
        Generation { tokens, finish: self.finish.unwrap_or(Finish::MaxTokens), timings: self.timings }
    }
}
