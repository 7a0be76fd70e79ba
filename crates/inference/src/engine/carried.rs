//! Keys and values that follow their layers from one device to another.

use super::parked::Parked;
use super::stage::Stage;
use halfbyte_backend::{Backend, DeviceKind, Fault, Kind, KvRows, KvShape, KvSpan, Want};

/// The most bytes that are on their way at once: more are computed again from their tokens, since blocks move where
/// memory is short.
const AT_MOST: u64 = 256 << 20;

/// What a cache held, in the host's memory.
pub(crate) struct Carried {
    want: Want,
    rows: Vec<(KvSpan, KvRows)>,
}

/// Reads the caches that `stages` will hold elsewhere than before: the first `filled[s]` positions of each sequence `s`,
/// or of a ring the last of them.
/// `None` where one cannot be had, as that of a device that was lost: then all are computed again.
pub(crate) async fn carry(parked: &Parked, stages: &[Stage], filled: &[usize]) -> Option<Vec<Carried>> {
    let spans = |shape: &KvShape| -> Vec<KvSpan> {
        let held = filled.iter().enumerate().filter(|(_, positions)| **positions > 0);
        held.map(|(sequence, &positions)| KvSpan { sequence, positions: shape.kept(0..positions) }).collect()
    };
    if filled.iter().all(|&positions| positions == 0) {
        return Some(Vec::new());
    }
    let new = stages.iter().flat_map(|stage| {
        let missing = stage.stretch.wants.iter().zip(&stage.slots).filter(|(_, slot)| slot.is_none());
        missing.map(|(want, _)| (&*stage.backend, want))
    });
    let mut coming = Vec::new();
    let mut bytes = 0_u64;
    for (to, want) in new {
        let Kind::Kv(shape) = &want.kind else { continue };
        let (from, slot) = parked.elsewhere(want)?;
        if !(from.moves_kv() && to.moves_kv()) {
            return None;
        }
        let spans = spans(shape);
        for span in &spans {
            bytes += 2 * span.bytes(shape).ok()? as u64;
        }
        coming.push((from, slot, want.clone(), spans));
    }
    if bytes > AT_MOST || !has_room(stages, bytes) {
        return None;
    }
    let mut carried = Vec::with_capacity(coming.len());
    for (from, slot, want, spans) in coming {
        let mut rows = Vec::with_capacity(spans.len());
        for span in spans {
            let held = from.read_kv(slot, span.clone()).await.ok()?;
            rows.push((span, held));
        }
        carried.push(Carried { want, rows });
    }
    Some(carried)
}

/// Whether the hosts among the stages have twice as much left.
fn has_room(stages: &[Stage], bytes: u64) -> bool {
    let hosts = stages.iter().map(|stage| &stage.backend);
    let mut hosts = hosts.filter(|backend| matches!(backend.info().kind, DeviceKind::Cpu | DeviceKind::Disk));
    hosts.all(|host| host.memory().free.is_none_or(|free| free / 2 >= bytes))
}

impl Carried {
    /// Puts it where its cache is now.
    ///
    /// # Errors
    /// What the device says.
    pub(crate) async fn put(self, stages: &[Stage]) -> Result<(), Fault> {
        let holds = |stage: &&Stage| stage.stretch.wants.contains(&self.want);
        let Some(stage) = stages.iter().find(holds) else { return Ok(()) };
        let (backend, slot): (&dyn Backend, _) = (&*stage.backend, stage.slot_of(&self.want)?);
        for (span, rows) in self.rows {
            backend.write_kv(slot, span, &rows).await?;
        }
        Ok(())
    }
}
