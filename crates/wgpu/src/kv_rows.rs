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
    let pieces = |keys: bool| {
        let heads = plan.shards.iter().zip(shards).flat_map(move |(&(_, heads), shard)| {
            (0..heads).map(move |head| (heads, head, if keys { &shard.0 } else { &shard.1 }))
        });
        heads.map(|(heads, head, allocation)| {
            let (offset, len) = plan.record.place(&plan.shape, heads, head, span);
            Piece { buffer: &allocation.buffer, offset, len }
        })
    };
    let own = read(gpu, pieces(true).chain(pieces(false))).await?;
    let (keys, values) = own.split_at(own.len() / 2);
    let (keys, values) = (plan.record.to_canonical(keys), plan.record.to_canonical(values));
    Ok(KvRows { keys, values })
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
            let (offset, _) = plan.record.place(&plan.shape, heads, head, span);
            for (allocation, from) in [(&shard.0, &rows.keys), (&shard.1, &rows.values)] {
                let from = &from[(first + head) * head_bytes..][..head_bytes];
                writer.write(&allocation.buffer, offset, &plan.record.from_canonical(from)).await?;
            }
        }
    }
    writer.flush().await
}
