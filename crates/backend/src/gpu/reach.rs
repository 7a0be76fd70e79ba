//! What bounds the rows of a submission: kernels do not check what they index with it.

use super::tiles::runs;
use crate::{Fault, Input, Kind, Rows, Step, Stretch, WantId};

/// What positions, sequences and tokens may be at most, exclusive.
#[derive(Debug, Clone, Copy)]
pub struct Reach {
    positions: usize,
    sequences: usize,
    tokens: usize,
    types: usize,
    /// Rows of a sequence at once, inclusive.
    rows: usize,
}

impl Reach {
    /// The reach of a stretch over its caches and tables.
    ///
    /// # Errors
    /// [`Fault::Internal`] if a step looks rows up in something that is no matrix.
    pub fn new(stretch: &Stretch) -> Result<Self, Fault> {
        const ANY: usize = u32::MAX as usize;
        let mut reach = Self { positions: ANY, sequences: ANY, tokens: ANY, types: ANY, rows: usize::MAX };
        for step in &stretch.steps {
            match step {
                Step::Embed(embed) => {
                    reach.tokens = reach.tokens.min(rows_of(stretch, embed.table)?);
                    if let Some((id, first)) = embed.positions {
                        let rows = rows_of(stretch, id)?.saturating_sub(first as usize);
                        reach.positions = reach.positions.min(rows);
                    }
                    if let Some(id) = embed.types {
                        reach.types = reach.types.min(rows_of(stretch, id)?);
                    }
                }
                Step::Attend(attend) => {
                    for id in attend.cache.into_iter().chain(attend.rope.map(|rope| rope.table)) {
                        match &stretch.want(id)?.kind {
                            Kind::Kv(shape) => {
                                reach.positions = reach.positions.min(shape.capacity);
                                reach.sequences = reach.sequences.min(shape.sequences);
                                reach.rows = reach.rows.min(shape.most_rows(attend.window));
                            }
                            Kind::Rope(shape) => reach.positions = reach.positions.min(shape.positions),
                            Kind::Linear(_) | Kind::Norm(_) => {}
                        }
                    }
                }
                Step::Linear(_) | Step::Moe(_) | Step::Head(_) => {}
            }
        }
        Ok(reach)
    }

    /// Checks what [`Rows::check`] cannot know.
    ///
    /// # Errors
    /// [`Fault::Invalid`] naming what is out of bounds, or a sequence whose rows are not neighbours.
    pub fn check(&self, rows: &Rows<'_>) -> Result<(), Fault> {
        let bounded = |what: &str, value: u32, bound: usize| {
            if (value as usize) < bound {
                return Ok(());
            }
            Err(Fault::Invalid(format!("{what} {value}, where {bound} is the bound")))
        };
        for place in rows.places {
            bounded("position", place.position, self.positions)?;
            bounded("sequence", place.sequence, self.sequences)?;
            bounded("token type", place.token_type, self.types)?;
        }
        if let Input::Tokens(tokens) = rows.input {
            tokens.iter().try_for_each(|&token| bounded("token", token, self.tokens))?;
        }
        if let Some(run) = runs(rows.places).find(|run| run.len() > self.rows) {
            let what = format!("{} rows of sequence {}", run.len(), run[0].sequence);
            return Err(Fault::Invalid(format!("{what} at once in a cache with room for {}", self.rows)));
        }
        let mut seen: Vec<u32> = runs(rows.places).map(|run| run[0].sequence).collect();
        seen.sort_unstable();
        match seen.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Fault::Invalid(format!("rows of sequence {} are not neighbours", pair[0]))),
            None => Ok(()),
        }
    }
}

fn rows_of(stretch: &Stretch, id: WantId) -> Result<usize, Fault> {
    match &stretch.want(id)?.kind {
        Kind::Linear(shape) => Ok(shape.rows()),
        _ => Err(Fault::Internal(format!("{} is no matrix", stretch.want(id)?.name))),
    }
}
