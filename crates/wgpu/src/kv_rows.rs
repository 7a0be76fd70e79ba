//! Keys and values between a cache's own records and those of [`KvRows`].

use crate::gpu::Gpu;
use crate::held::KvHeld;
use crate::staging::{Piece, Writer, read};
use halfbyte_backend::{Fault, KvRows, KvSpan};

/// A span's keys and values.
///
/// # Errors
/// [`Fault::Invalid`] if the cache does not reach that far; [`Fault::Lost`].
pub(crate) async fn get(gpu: &Gpu, held: &KvHeld, span: &KvSpan) -> Result<KvRows, Fault> {
    let KvHeld { plan, shards } = held;
    span.bytes(&plan.shape)?;
    // Keys' codes, keys' scales, values' codes, values' scales, each of all heads.
    let pieces = |keys: bool, plane: usize| {
        let heads = plan.shards.iter().zip(shards).flat_map(move |(&(_, heads), shard)| {
            (0..heads).map(move |head| (heads, head, if keys { &shard.0 } else { &shard.1 }))
        });
        heads.map(move |(heads, head, allocation)| {
            let (offset, len) = plan.places(heads, head, span)[plane];
            Piece { buffer: &allocation.buffer, offset, len }
        })
    };
    let both = |keys: bool| pieces(keys, 0).chain(pieces(keys, 1));
    let own = read(gpu, both(true).chain(both(false))).await?;
    let record = plan.planes.record;
    let records = plan.shape.kv_heads * span.positions.len();
    let canonical = |own: &[u8]| {
        let (codes, scales) = own.split_at(records * record.code_words() * 4);
        record.to_canonical(&plan.planes.join(codes, scales))
    };
    let (keys, values) = own.split_at(own.len() / 2);
    Ok(KvRows { keys: canonical(keys), values: canonical(values) })
}

/// Puts keys and values into a span.
///
/// # Errors
/// As [`get`], and if `rows` are not as many.
pub(crate) async fn set(gpu: &Gpu, held: &KvHeld, span: &KvSpan, rows: &KvRows) -> Result<(), Fault> {
    let KvHeld { plan, shards } = held;
    span.check(&plan.shape, rows)?;
    let head_bytes = span.positions.len() * plan.shape.head_bytes() as usize;
    let mut writer = Writer::new(gpu);
    for (&(first, heads), shard) in plan.shards.iter().zip(shards) {
        for head in 0..heads {
            let places = plan.places(heads, head, span);
            for (allocation, from) in [(&shard.0, &rows.keys), (&shard.1, &rows.values)] {
                let from = &from[(first + head) * head_bytes..][..head_bytes];
                let planes = plan.planes.split(&plan.planes.record.from_canonical(from));
                for ((offset, _), bytes) in places.into_iter().zip(&planes) {
                    writer.write(&allocation.buffer, offset, bytes).await?;
                }
            }
        }
    }
    writer.flush().await
}
