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
        heads.flat_map(move |(heads, head, allocation)| {
            let pieces = plan.places(heads, head, span).map(move |places| places[plane]);
            pieces.map(|(offset, len)| Piece { buffer: &allocation.buffer, offset, len })
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
            for (allocation, from) in [(&shard.0, &rows.keys), (&shard.1, &rows.values)] {
                let from = &from[(first + head) * head_bytes..][..head_bytes];
                let [codes, scales] = plan.planes.split(&plan.planes.record.from_canonical(from));
                let (mut codes, mut scales) = (&codes[..], &scales[..]);
                for places in plan.places(heads, head, span) {
                    for ((offset, len), left) in places.into_iter().zip([&mut codes, &mut scales]) {
                        let (now, later) = left.split_at(len as usize);
                        writer.write(&allocation.buffer, offset, now).await?;
                        *left = later;
                    }
                }
            }
        }
    }
    writer.flush().await
}
