//! One text in as many attempts as its devices make necessary.

use halfbyte_inference::{
    Came, Engine, Finish, Flow, GenerateOptions, Generation, ModelError, Session, Timings,
};

/// A text in the making. Each attempt goes on where the last one was when a device failed: its prompt is
/// all that there is so far, so no token is given out twice, and a token that is sampled at a position is
/// drawn as the undisturbed text would have drawn it.
pub(crate) struct Attempts {
    prompt: usize,
    /// The prompt and the new tokens so far.
    tokens: Vec<u32>,
    timings: Timings,
    /// The receiver said [`Flow::Stop`].
    stopped: bool,
    /// Tokens of the prompt that the first attempt found in the cache.
    pub(crate) cached_tokens: usize,
    begun: bool,
    /// The last attempt came to rest because it was asked to.
    paused: bool,
}

impl Attempts {
    pub(crate) fn new(prompt: &[u32]) -> Self {
        Self {
            prompt: prompt.len(),
            tokens: prompt.to_vec(),
            timings: Timings::default(),
            stopped: false,
            cached_tokens: 0,
            begun: false,
            paused: false,
        }
    }

    /// The first attempt, or the next one after a fault or a pause. `None` where it paused: `pause` said
    /// after a token that there is something else to do, and the text is not at its end.
    ///
    /// # Errors
    /// As [`halfbyte_inference::generate`].
    pub(crate) fn go_on(
        &mut self,
        engine: &mut Engine,
        session: &mut Session,
        options: &GenerateOptions,
        listen: &mut dyn FnMut(Came) -> Flow,
        pause: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Generation>, ModelError> {
        if !self.begun {
            self.cached_tokens = session.reusable(engine, &self.tokens);
        } else if !self.paused {
            // Steps that were ahead of the fault may have written past the session's end.
            session.clear();
        }
        (self.begun, self.paused) = (true, false);
        let new = self.tokens.len() - self.prompt;
        if self.stopped {
            return Ok(Some(self.generation(Finish::Cancelled)));
        }
        if new > 0 && self.tokens.len() > engine.blueprint().context {
            return Ok(Some(self.generation(Finish::ContextFull)));
        }
        let end = self.prompt + options.max_new_tokens;
        let options = GenerateOptions { max_new_tokens: options.max_new_tokens - new, ..options.clone() };
        let so_far = self.tokens.clone();
        let generated = pollster::block_on(halfbyte_inference::generate_heard(
            engine,
            session,
            &so_far,
            &options,
            &mut |came| {
                let flow = listen(came);
                self.stopped = flow == Flow::Stop;
                let Came::Token(token) = came else { return flow };
                self.tokens.push(token);
                self.paused = !self.stopped && self.tokens.len() < end && pause();
                if self.paused { Flow::Stop } else { flow }
            },
        ));
        let generation = match generated {
            Ok(generation) => generation,
            Err(error) => {
                self.paused = false;
                return Err(error);
            }
        };
        self.timings = sum(self.timings, generation.timings);
        Ok((!self.paused).then(|| self.generation(generation.finish)))
    }

    fn generation(&self, finish: Finish) -> Generation {
        Generation { tokens: self.tokens[self.prompt..].to_vec(), finish, timings: self.timings }
    }
}

pub(crate) fn sum(a: Timings, b: Timings) -> Timings {
    Timings {
        prefill_tokens: a.prefill_tokens + b.prefill_tokens,
        prefill_seconds: a.prefill_seconds + b.prefill_seconds,
        decode_tokens: a.decode_tokens + b.decode_tokens,
        decode_seconds: a.decode_seconds + b.decode_seconds,
    }
}
