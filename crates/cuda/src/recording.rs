//! Submissions that are recorded once and then replayed as a whole.
//!
//! A decode step is the same list of launches for every token: what changes is in the row metadata, in one
//! buffer. So whoever drives a device below CubeCL may record the list and start it again with one call.

use crate::guard::{caught, fault};
use crate::launch::{Counts, Launch};
use crate::staging::Uploader;
use cubecl::prelude::*;
use cubecl::server::Handle;
use halfbyte_backend::{Fault, Fut};

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
}

struct Listed<R: Runtime> {
    device: String,
    client: &'static ComputeClient<R>,
    launches: Vec<Launch>,
    places: Handle,
    answer: Handle,
    counts: Counts,
}

impl<R: Runtime> Recorder for OneByOne<R> {
    fn record(
        &self,
        launches: Vec<Launch>,
        places: &Handle,
        answer: &Handle,
        counts: Counts,
    ) -> Result<Box<dyn Recording>, Fault> {
        let (device, client) = (self.device.clone(), self.client);
        let (places, answer) = (places.clone(), answer.clone());
        Ok(Box::new(Listed { device, client, launches, places, answer, counts }))
    }

    fn finish(&self) -> Result<(), Fault> {
        Ok(())
    }
}

impl<R: Runtime> Recording for Listed<R> {
    fn replay(&self, words: &[u32]) -> Result<Fut<'static, Vec<u8>>, Fault> {
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
