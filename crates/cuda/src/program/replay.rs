//! Decode steps that are recorded once and replayed, where that says the same in less time.

use super::{Choice, CubeProgram};
use crate::guard::{caught, fault};
use crate::kernels::places::{HEADER, ROW};
use crate::launch::{Counts, Launch};
use crate::pack::pad_rows;
use crate::program_plan::{Role, stride};
use crate::recording::{Recorder, Recording};
use crate::sequence::{Columns, Manners};
use crate::trial::{Run, TRIES, Verdict, judge};
use cubecl::prelude::*;
use cubecl::server::Handle;
use halfbyte_backend::{Fault, Input, Output, Rows, Ticket};
use std::time::Instant;

/// A recording, if it was kept, and the bytes of the step's answer.
type Tried = (Option<Box<dyn Recording>>, Vec<u8>);

impl<R: Runtime> CubeProgram<R> {
    /// Waits for what was replayed, before CubeCL works on the same buffers.
    pub(super) fn finish_replays(&mut self) -> Result<(), Fault> {
        match &self.recorder {
            Some(recorder) if self.replayed => recorder.finish()?,
            _ => {}
        }
        self.replayed = false;
        Ok(())
    }

    /// Replays a decode step, recording it where this is the first of its kind; nothing where it cannot be.
    pub(super) fn replay(
        &mut self,
        rows: &Rows<'_>,
        words: &[u32],
        counts: Counts,
    ) -> Result<Option<Ticket>, Fault> {
        let Some(recorder) = self.recorder.clone() else { return Ok(None) };
        let Some(choice) = Choice::of(&rows.output) else { return Ok(None) };
        let Some((reply, handles)) = self.reply(&rows.output, rows.places.len())? else { return Ok(None) };
        let ([answer], false) = (handles.as_slice(), matches!(rows.input, Input::Hidden(_))) else {
            return Ok(None);
        };
        // CubeCL writes what a text has seen at its beginning.
        if matches!(rows.output, Output::Sample { draws, .. } if draws.iter().any(|draw| draw.seen.is_some()))
        {
            return Ok(None);
        }
        if !self.recordings.contains_key(&(counts, choice)) {
            let manners = Manners { columns: Columns::for_rows(rows.places.len()), fresh: true };
            let mut launches = self.body(manners)?.to_vec();
            launches.extend_from_slice(&self.head(Columns::for_rows(rows.output.rows().len()))?);
            launches.extend_from_slice(&self.choice(choice)?);
            let recording = recorder.record(launches.clone(), self.buffer(Role::Places)?, answer, counts);
            match recording {
                Ok(recording) if recorder.on_trial() => {
                    self.finish_replays()?;
                    let (kept, bytes) = self.on_trial(
                        &*recorder,
                        recording,
                        &launches,
                        words.to_vec(),
                        answer,
                        counts,
                        choice,
                    )?;
                    self.recordings.insert((counts, choice), kept);
                    self.submissions += 1;
                    self.remember_chosen(&rows.output);
                    return Ok(Some(Box::pin(async move { Ok(reply.answer(&[bytes])) })));
                }
                Ok(recording) => self.recordings.insert((counts, choice), Some(recording)),
                Err(fault) => {
                    tracing::warn!("{fault}: this step is launched through CubeCL");
                    self.recordings.insert((counts, choice), None)
                }
            };
        }
        if !self.replayed && self.recordings.get(&(counts, choice)).is_some_and(Option::is_some) {
            self.sync()?;
        }
        let Some(Some(recording)) = self.recordings.get(&(counts, choice)) else { return Ok(None) };
        self.replayed = true;
        let read = recording.replay(words)?;
        self.dispatches += 1;
        self.submissions += 1;
        self.remember_chosen(&rows.output);
        Ok(Some(Box::pin(async move { Ok(reply.answer(&[read.await?])) })))
    }

    /// A step by CubeCL and by its recording, which is kept if it says the same in less time; and CubeCL's answer.
    ///
    /// A step can be repeated once its tokens are known: it writes the same keys and values at the same positions.
    #[allow(clippy::too_many_arguments, reason = "a step is all of these")]
    fn on_trial(
        &mut self,
        recorder: &dyn Recorder,
        recording: Box<dyn Recording>,
        launches: &[Launch],
        mut words: Vec<u32>,
        answer: &Handle,
        counts: Counts,
        choice: Choice,
    ) -> Result<Tried, Fault> {
        if words[3] == 1 {
            let chosen = self.read(self.beginning(Role::Chosen, counts.rows as usize * 4)?)?;
            for (row, token) in chosen.as_chunks::<4>().0.iter().enumerate() {
                words[HEADER + ROW * row] = u32::from_le_bytes(*token);
            }
            words[3] = 0;
        }
        let right =
            self.tried(choice, counts, |program| program.through(launches, &words, answer, counts))?;
        self.sync()?;
        let found = self.tried(choice, counts, |program| {
            program.replayed = true;
            let bytes = cubecl::future::block_on(recording.replay(&words)?)?;
            program.finish_replays()?;
            Ok(bytes)
        });
        let verdict = match &found {
            Ok(found) => judge(&right, found),
            Err(fault) => Verdict::Failed(fault.to_string()),
        };
        let kept = matches!(verdict, Verdict::Kept(..));
        recorder.judged(&verdict);
        if !kept {
            // Whatever it has written, it is written again.
            self.finish_replays()?;
            self.through(launches, &words, answer, counts)?;
        }
        Ok((kept.then_some(recording), right.answer))
    }

    /// A step once, for its results, then some more times for its time.
    fn tried(
        &mut self,
        choice: Choice,
        counts: Counts,
        mut step: impl FnMut(&mut Self) -> Result<Vec<u8>, Fault>,
    ) -> Result<Run, Fault> {
        // Nothing of an earlier step is to be taken for a result.
        let width = self.plan.vocabulary;
        self.poison(Role::Logits, counts.outputs as usize, width)?;
        for (index, &width) in self.stretch.widths.iter().enumerate() {
            self.poison(Role::Register(index as u16), counts.rows as usize, width)?;
        }
        self.sync()?;
        let mut answer = step(self)?;
        let mut best = f64::INFINITY;
        for _ in 0..TRIES {
            let start = Instant::now();
            answer = step(self)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        let bytes = counts.outputs as usize * stride(width) * 4;
        let logits = self.read(self.beginning(Role::Logits, bytes)?)?;
        let rows = logits.chunks_exact(stride(width) * 4).map(|row| &row[..width * 4]);
        let values = rows.flat_map(|row| row.as_chunks::<4>().0).map(|&value| f32::from_le_bytes(value));
        Ok(Run { answer, logits: values.collect(), tokens: choice != Choice::None, seconds: best })
    }

    /// Makes `rows` rows of a buffer no numbers, but for their padding.
    fn poison(&self, role: Role, rows: usize, width: usize) -> Result<(), Fault> {
        let values = pad_rows(&vec![f32::NAN; rows * width], width);
        self.uploader().write(self.buffer(role)?, bytemuck::cast_slice(&values)).map(|_| ())
    }

    /// One step through CubeCL, and its answer.
    fn through(
        &mut self,
        launches: &[Launch],
        words: &[u32],
        answer: &Handle,
        counts: Counts,
    ) -> Result<Vec<u8>, Fault> {
        let places = self.uploader().stage(bytemuck::cast_slice(words))?;
        self.launch(launches, &places, counts)?;
        self.read(answer.clone())
    }

    /// The bytes of a buffer, when all that CubeCL was asked for has ended.
    fn read(&self, handle: Handle) -> Result<Vec<u8>, Fault> {
        let device = &self.hardware.device;
        let read = caught(device, || self.client.read_async(vec![handle]))?;
        let bytes =
            cubecl::future::block_on(read).map_err(|error| fault(device, "reading an answer", &error))?;
        Ok(bytes.into_iter().next().map(|bytes| bytes.to_vec()).unwrap_or_default())
    }

    /// Waits for all that CubeCL was asked for.
    fn sync(&self) -> Result<(), Fault> {
        let device = &self.hardware.device;
        let sync = cubecl::future::block_on(caught(device, || self.client.sync())?);
        sync.map_err(|error| fault(device, "sync", &error))
    }
}
