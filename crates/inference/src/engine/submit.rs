//! Rows through the stages, one after the other.

use super::Engine;
use super::streaming::{Chunk, Streaming, hidden, prompt_rows};
use crate::Flow;
use halfbyte_backend::{Answer, Draw, Fault, Input, Output, Place, Rows, StepCost, Ticket};
use std::time::Duration;

impl Engine {
    /// Whether one device runs everything, so that a chosen token can feed the next step on it without
    /// being read.
    pub fn feeds_back(&self) -> bool {
        self.stages.len() == 1
    }

    /// Whether one device runs everything and draws tokens by itself.
    pub fn samples(&self) -> bool {
        match self.stages.as_slice() {
            [stage] => stage.program.as_ref().is_some_and(|program| program.samples()),
            _ => false,
        }
    }

    /// Starts one submission on an engine of one stage; the ticket needs not be awaited before the next.
    ///
    /// # Errors
    /// [`Fault::Internal`] if there are several stages; what the program says.
    pub fn submit(&mut self, rows: &Rows<'_>) -> Result<Ticket, Fault> {
        self.note(rows.places);
        match self.stages.as_mut_slice() {
            [stage] => stage.program()?.submit(rows),
            stages => Err(Fault::Internal(format!("one submission to {} stages", stages.len()))),
        }
    }

    /// Runs rows through all stages; hidden states are read from each and passed to the next.
    ///
    /// # Errors
    /// What a program says.
    pub async fn forward(&mut self, rows: &Rows<'_>) -> Result<Answer, Fault> {
        self.start(rows).await?.await
    }

    /// [`forward`](Self::forward) up to the last stage's submission, whose ticket is returned.
    async fn start(&mut self, rows: &Rows<'_>) -> Result<Ticket, Fault> {
        self.note(rows.places);
        if let Some(streaming) = &mut self.streaming
            && streaming.takes(prompt_rows(rows.places))
        {
            let chunk = Chunk { input: rows.input, places: rows.places };
            let passed = streaming.run(&mut self.stages, &[chunk]).await?;
            return self.finish(passed.into_iter().next(), rows).await;
        }
        self.finish(None, rows).await
    }

    fn note(&mut self, places: &[Place]) {
        for place in places {
            self.fills(place.sequence, place.position as usize + 1);
        }
    }

    /// Passes rows through all stages; with the hidden states that streamed layers left, through those after them.
    async fn finish(&mut self, streamed: Option<Vec<f32>>, rows: &Rows<'_>) -> Result<Ticket, Fault> {
        let streamed_to = self.streaming.as_ref().map_or(0, |streaming| streaming.stream().blocks.end);
        let from = if streamed.is_some() { streamed_to } else { 0 };
        let mut stages = self.stages.iter_mut().filter(|stage| stage.blocks.start >= from);
        let Some(last) = stages.next_back() else {
            return Err(Fault::Internal("an engine without stages".into()));
        };
        let mut states = streamed;
        for stage in stages {
            let input = states.as_deref().map_or(rows.input, Input::Hidden);
            let rows = Rows { input, places: rows.places, output: Output::Hidden };
            states = Some(hidden(stage.program()?.submit(&rows)?.await?)?);
        }
        let input = states.as_deref().map_or(rows.input, Input::Hidden);
        last.program()?.submit(&Rows { input, ..*rows })
    }

    /// Runs `tokens` of one sequence from `position` on, in chunks of [`Caps::rows`](halfbyte_backend::Caps): the
    /// keys and values of all go into the cache, and the last token's row yields `last`'s answer.
    ///
    /// While the last stage runs a chunk, the stages before it run the next. Several chunks pass together through
    /// layers that stream. `between` hears at which position the next chunk begins; `None` if it stops there, when the cache
    /// holds all before it.
    pub(crate) async fn prefill(
        &mut self,
        sequence: u32,
        position: usize,
        tokens: &[u32],
        last: Last<'_>,
        between: &mut dyn FnMut(usize) -> Flow,
    ) -> Result<Option<Answer>, Fault> {
        let size = self.caps.rows;
        let count = tokens.len().div_ceil(size);
        let at: Vec<Vec<Place>> = (0..count)
            .map(|index| places(sequence, position + index * size, size.min(tokens.len() - index * size)))
            .collect();
        let chunks: Vec<Chunk<'_>> = tokens
            .chunks(size)
            .zip(&at)
            .map(|(tokens, places)| Chunk { input: Input::Tokens(tokens), places })
            .collect();
        let together = self.streaming.as_ref().map_or(1, |streaming| (streaming.rows() / size).max(1));
        let mut running: Option<Ticket> = None;
        for (group, chunks) in chunks.chunks(together).enumerate() {
            let begin = position + group * together * size;
            if group > 0 && between(begin) == Flow::Stop {
                if let Some(earlier) = running {
                    earlier.await?;
                }
                return Ok(None);
            }
            let rows = chunks.iter().map(|chunk| chunk.places.len()).sum();
            self.fills(sequence, begin + rows);
            let streamed = match &mut self.streaming {
                Some(streaming) if streaming.takes(rows) => streaming.run(&mut self.stages, chunks).await?,
                _ => Vec::new(),
            };
            let mut streamed = streamed.into_iter();
            for (index, chunk) in chunks.iter().enumerate() {
                let row = [(chunk.places.len() - 1) as u32];
                let output = match last {
                    _ if group * together + index + 1 < count => Output::Nothing,
                    Last::Logits => Output::Logits(&row),
                    Last::Greedy => Output::Greedy(&row),
                    Last::Sample(ref draw) => {
                        Output::Sample { rows: &row, draws: std::slice::from_ref(draw) }
                    }
                };
                let rows = Rows { input: chunk.input, places: chunk.places, output };
                let ticket = self.finish(streamed.next(), &rows).await?;
                if let Some(earlier) = running.replace(ticket) {
                    earlier.await?;
                }
            }
        }
        match running {
            Some(ticket) => ticket.await.map(Some),
            None => Ok(Some(Answer::Nothing)),
        }
    }

    /// Layers that were brought to another device so far, for long prompts; `None` where none are.
    pub fn streamed(&self) -> Option<u64> {
        self.streaming.as_ref().map(Streaming::brought)
    }

    /// Dispatches and submissions so far, of all stages.
    pub fn counts(&self) -> (u64, u64) {
        let counts = self.stages.iter().filter_map(|stage| stage.program.as_ref()).map(|p| p.counts());
        let counts = counts.chain(self.streaming.as_ref().map(Streaming::counts));
        counts.fold((0, 0), |(a, b), (dispatches, submissions)| (a + dispatches, b + submissions))
    }

    /// Compute passes so far, of all stages.
    pub fn passes(&self) -> u64 {
        self.stages.iter().filter_map(|stage| stage.program.as_ref()).map(|p| p.passes()).sum()
    }

    /// Runs one submission on an engine of one stage and says what each class of steps took on the device's
    /// clock; nothing if it has none.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub async fn profile(&mut self, rows: &Rows<'_>) -> Result<Vec<StepCost>, Fault> {
        match self.stages.as_mut_slice() {
            [stage] => stage.program()?.profile(rows).await,
            _ => Ok(Vec::new()),
        }
    }

    /// Time of the host in calls of the driver, of an engine of one stage, since this was asked last; the first
    /// call begins to measure.
    pub fn driver_time(&mut self) -> Option<Duration> {
        match self.stages.as_mut_slice() {
            [stage] => stage.program.as_mut()?.driver_time(),
            _ => None,
        }
    }
}

/// What is asked of the last row of a prefill.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Last<'a> {
    /// `[vocabulary]`
    Logits,
    /// The token with the largest logit.
    Greedy,
    /// A token that the device draws, where [`Engine::samples`].
    Sample(Draw<'a>),
}

/// `count` rows of one sequence from `position` on.
pub(crate) fn places(sequence: u32, position: usize, count: usize) -> Vec<Place> {
    let place = |at| Place { sequence, position: at as u32, token_type: 0 };
    (position..position + count).map(place).collect()
}

/// An answer's name, for messages.
pub(crate) fn name(answer: &Answer) -> &'static str {
    match answer {
        Answer::Nothing => "nothing",
        Answer::Hidden(_) => "hidden states",
        Answer::Logits(_) => "logits",
        Answer::Tokens(_) => "tokens",
    }
}
