//! Keys and values between a cache's own records and those of [`KvRows`].

use crate::guard::{caught, fault};
use crate::kernels::scatter_words::{UNITS, scatter_words};
use crate::layout::STAGING;
use crate::staging::Uploader;
use cubecl::prelude::*;
use cubecl::server::Handle;
use halfbyte_backend::kv::Record;
use halfbyte_backend::{Fault, KvRows, KvShape, KvSpan};

/// A cache: keys and values, each `[sequences, kv_heads, slots]` records.
pub(crate) struct Cache {
    pub keys: Handle,
    pub values: Handle,
    pub shape: KvShape,
}

impl<R: Runtime> Uploader<'_, R> {
    /// A span's keys and values.
    ///
    /// # Errors
    /// [`Fault::Invalid`] if the cache does not reach that far; [`Fault::Lost`].
    pub(crate) async fn read_kv(&self, cache: &Cache, span: &KvSpan) -> Result<KvRows, Fault> {
        let Cache { keys, values, shape } = cache;
        if span.bytes(shape)? == 0 {
            return Ok(KvRows::default());
        }
        let record = Record::of(shape);
        let mut rows = [Vec::new(), Vec::new()];
        for (handle, rows) in [keys, values].into_iter().zip(&mut rows) {
            let places =
                (0..shape.kv_heads).flat_map(|head| record.places(shape, shape.kv_heads, head, span));
            let pieces = places.map(|(offset, len)| {
                let beyond = handle.size_in_used().saturating_sub(offset + len);
                handle.clone().offset_start(offset).offset_end(beyond)
            });
            let read = caught(self.device, || self.client.read_async(pieces.collect()))?;
            let read = read.await.map_err(|error| fault(self.device, "keys and values", &error))?;
            for piece in read {
                rows.extend(record.to_canonical(&piece));
            }
        }
        let [keys, values] = rows;
        Ok(KvRows { keys, values })
    }

    /// Puts keys and values into a span, and waits until they are there.
    ///
    /// # Errors
    /// As [`read_kv`](Self::read_kv), and if `rows` are not as many.
    pub(crate) async fn write_kv(&self, cache: &Cache, span: &KvSpan, rows: &KvRows) -> Result<(), Fault> {
        let Cache { keys, values, shape } = cache;
        span.check(shape, rows)?;
        if span.positions.is_empty() {
            return Ok(());
        }
        let record = Record::of(shape);
        let pitch = word((shape.slots() * record.bytes()) as u64)?;
        for (to, rows) in [(keys, &rows.keys), (values, &rows.values)] {
            // The kernel counts words in 32 bits.
            word(to.size_in_used())?;
            let own = record.from_canonical(rows);
            let head_bytes = span.positions.len() * record.bytes();
            // Before each piece of the span: how many bytes of every head went ahead of it.
            let mut before = 0;
            for (offset, len) in record.places(shape, shape.kv_heads, 0, span) {
                let stretches = Stretches { words: word(len)?, at: word(offset)?, pitch };
                let piece = |head: &[u8]| head[before..before + len as usize].to_vec();
                let piece: Vec<u8> = own.chunks_exact(head_bytes).flat_map(piece).collect();
                before += len as usize;
                let mut from = 0;
                for chunk in piece.chunks(STAGING as usize / 2) {
                    self.write_words(to, chunk, &stretches, from)?;
                    from += (chunk.len() / 4) as u32;
                }
            }
        }
        // Whoever reads the cache next may not go through CubeCL.
        let sync = caught(self.device, || self.client.sync())?;
        sync.await.map_err(|error| fault(self.device, "sync", &error))
    }

    /// `chunk`, words `from..` of `stretches`, which lie within `to`.
    fn write_words(&self, to: &Handle, chunk: &[u8], stretches: &Stretches, from: u32) -> Result<(), Fault> {
        let count = (chunk.len() / 4) as u32;
        let cubes = count.div_ceil(UNITS);
        let (x, y) = if cubes <= 0x8000 { (cubes, 1) } else { (0x8000, cubes.div_ceil(0x8000)) };
        let staging = self.stage(chunk)?;
        let [staged, capacity] = [&staging, to].map(|handle| handle.size_in_used() as usize / 4);
        caught(self.device, || {
            // SAFETY: `count` words are staged, and the span that they go to is within the cache.
            unsafe {
                scatter_words::launch_unchecked::<R>(
                    self.client,
                    CubeCount::Static(x, y, 1),
                    CubeDim::new_1d(UNITS),
                    ArrayArg::from_raw_parts(staging, staged),
                    ArrayArg::from_raw_parts(to.clone(), capacity),
                    stretches.words,
                    stretches.at,
                    stretches.pitch,
                    from,
                    count,
                );
            }
        })
    }
}

/// Where heads' positions lie, in words: how many each has, where the first begins, and how far apart they begin.
struct Stretches {
    words: u32,
    at: u32,
    pitch: u32,
}

/// Bytes as words.
fn word(bytes: u64) -> Result<u32, Fault> {
    u32::try_from(bytes / 4)
        .map_err(|_| Fault::Invalid(format!("a cache of {bytes} bytes, of at most 16 GiB")))
}
