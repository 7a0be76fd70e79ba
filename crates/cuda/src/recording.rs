//! Submissions that are recorded once and then replayed as a whole.
//!
//! A decode step is the same list of launches for every token: what changes is in the row metadata, in one
//! buffer. So whoever drives a device below CubeCL may record the list and start it again with one call.

use crate::guard::{caught, fault};
use crate::launch::{Counts, Launch};
use crate::staging::Uploader;
use crate::trial::Verdict;
use cubecl::prelude::*;
use cubecl::server::Handle;
use halfbyte_backend::{Fault, Fut};
use std::cell::RefCell;

/// Records lists of launches.
pub(crate) trait Recorder {
    /// Records `launches` for submissions of these counts, whose metadata will be in `places` and whose result in
    /// `answer`.
    fn record(
        &self,
        launches: Vec<Launch>,
        places: &Handle,
        answer: &Handle,
        counts: Counts,
    ) -> Result<Box<dyn Recording>, Fault>;

    /// Whether a recording is kept only if its first step says what CubeCL's own launches say, sooner.
    fn on_trial(&self) -> bool;

    /// Is told how a trial ended.
    fn judged(&self, verdict: &Verdict) {
        if matches!(verdict, Verdict::Kept(..)) {
            tracing::info!("{verdict}");
        } else {
            tracing::warn!("{verdict}");
        }
    }

    /// How all trials ended, where that is remembered.
    fn verdicts(&self) -> Vec<String> {
        Vec::new()
    }

    /// Waits for the end of all replays: before CubeCL is asked for anything that meets their buffers.
    fn finish(&self) -> Result<(), Fault>;
}

/// A recorded list of launches.
pub(crate) trait Recording {
    /// Writes the metadata's `words`, replays the launches and reads the answer. Everything that CubeCL was asked to
    /// do has ended.
    fn replay(&self, words: &[u32]) -> Result<Fut<'static, Vec<u8>>, Fault>;
}

/// Replays through CubeCL, one launch at a time: for tests of what surrounds it.
pub(crate) struct OneByOne<R: Runtime> {
    pub device: String,
    pub client: &'static ComputeClient<R>,
    /// Whether its recordings are on trial, and how they do there.
    pub trial: Option<Trial>,
    pub verdicts: RefCell<Vec<String>>,
}

/// How a recording does on trial: in tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// It says the same; whether it is faster, is chance.
    Same,
    /// It says something else: its last launch but one is left out.
    Differs,
    /// Its driver fails.
    Fails,
}

struct Listed<R: Runtime> {
    device: String,
    client: &'static ComputeClient<R>,
    launches: Vec<Launch>,
    places: Handle,
    answer: Handle,
    counts: Counts,
    fails: bool,
}

impl<R: Runtime> Recorder for OneByOne<R> {
    fn record(
        &self,
        mut launches: Vec<Launch>,
        places: &Handle,
        answer: &Handle,
        counts: Counts,
    ) -> Result<Box<dyn Recording>, Fault> {
        if self.trial == Some(Trial::Differs) {
            launches.remove(launches.len().saturating_sub(2));
        }
        let fails = self.trial == Some(Trial::Fails);
        let (device, client) = (self.device.clone(), self.client);
        let (places, answer) = (places.clone(), answer.clone());
        Ok(Box::new(Listed { device, client, launches, places, answer, counts, fails }))
    }

    fn on_trial(&self) -> bool {
        self.trial.is_some()
    }

    fn judged(&self, verdict: &Verdict) {
        self.verdicts.borrow_mut().push(verdict.to_string());
    }

    fn verdicts(&self) -> Vec<String> {
        self.verdicts.borrow().clone()
    }

    fn finish(&self) -> Result<(), Fault> {
        Ok(())
    }
}

impl<R: Runtime> Recording for Listed<R> {
    fn replay(&self, words: &[u32]) -> Result<Fut<'static, Vec<u8>>, Fault> {
        if self.fails {
            return Err(Fault::Lost { device: self.device.clone(), reason: "a driver that fails".into() });
        }
        let uploader = Uploader { device: &self.device, client: self.client };
        uploader.write(&self.places, bytemuck::cast_slice(words))?;
        for launch in &self.launches {
            launch.submit(&self.device, self.client, &self.places, self.counts)?;
        }
        let read = caught(&self.device, || self.client.read_async(vec![self.answer.clone()]))?;
        let device = self.device.clone();
        Ok(Box::pin(async move {
            let mut bytes = read.await.map_err(|error| fault(&device, "reading an answer", &error))?;
            Ok(bytes.pop().map(|bytes| bytes.to_vec()).unwrap_or_default())
        }))
    }
}
