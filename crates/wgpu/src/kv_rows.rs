//! Keys and values between a cache's own records and those of [`KvRows`].

use crate::gpu::Gpu;
use crate::held::KvHeld;
use crate::staging::{Piece, Writer, read};
use halfbyte_backend::kv::{KV_BLOCK, Record};
use halfbyte_backend::{Fault, KvRows, KvShape, KvSpan, KvType};

/// A span's keys and values.
///
/// # Errors
/// [`Fault::Invalid`] if the cache does not reach that far; [`Fault::Lost`].
pub(crate) async fn get(gpu: &Gpu, held: &KvHeld, span: &KvSpan) -> Result<KvRows, Fault> {
    let KvHeld { plan, shards } = held;
    let bytes = span.bytes(&plan.shape)?;
    let pieces = |keys: bool| {
        let heads = plan.shards.iter().zip(shards).flat_map(move |(&(_, heads), shard)| {
            (0..heads).map(move |head| (heads, head, if keys { &shard.0 } else { &shard.1 }))
        });
        heads.map(|(heads, head, allocation)| {
            let (offset, len) = place(&plan.shape, plan.record, heads, head, span);
            Piece { buffer: &allocation.buffer, offset, len }
        })
    };
    let own = read(gpu, pieces(true).chain(pieces(false))).await?;
    let (keys, values) = own.split_at(own.len() / 2);
    let convert = |own: &[u8]| {
        let mut out = vec![0; bytes];
        let records = own.chunks_exact(plan.record.words() * 4);
        for (own, record) in records.zip(out.chunks_exact_mut(plan.shape.head_bytes() as usize)) {
            to_canonical(&plan.shape, plan.record, own, record);
        }
        out
    };
    Ok(KvRows { keys: convert(keys), values: convert(values) })
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
    let mut own = vec![0; span.positions.len() * plan.record.words() * 4];
    for (&(first, heads), shard) in plan.shards.iter().zip(shards) {
        for head in 0..heads {
            let (offset, _) = place(&plan.shape, plan.record, heads, head, span);
            for (allocation, from) in [(&shard.0, &rows.keys), (&shard.1, &rows.values)] {
                let from = &from[(first + head) * head_bytes..][..head_bytes];
                let records = from.chunks_exact(plan.shape.head_bytes() as usize);
                for (record, own) in records.zip(own.chunks_exact_mut(plan.record.words() * 4)) {
                    from_canonical(&plan.shape, plan.record, record, own);
                }
                writer.write(&allocation.buffer, offset, &own).await?;
            }
        }
    }
    writer.flush().await
}

/// Where the records of a span lie in a shard of `heads` heads, `[sequences, heads, capacity]`: offset and length.
fn place(shape: &KvShape, record: Record, heads: usize, head: usize, span: &KvSpan) -> (u64, u64) {
    let bytes = record.words() as u64 * 4;
    let first = (span.sequence * heads + head) * shape.capacity + span.positions.start;
    (first as u64 * bytes, span.positions.len() as u64 * bytes)
}

/// Where each feature's 4-bit code lies in a record of [`KvRows`]: its byte, and whether in the high nibble.
fn nibbles(head_dim: usize) -> impl Iterator<Item = (usize, bool)> {
    (0..head_dim).map(move |feature| {
        let (block, within) = (feature / KV_BLOCK, feature % KV_BLOCK);
        let half = (head_dim - block * KV_BLOCK).min(KV_BLOCK).div_ceil(2);
        (block * KV_BLOCK / 2 + within % half, within >= half)
    })
}

/// From a record as `kv.wgsl` packs it: codes from 1 up in fields of a word, then scales in pairs.
fn to_canonical(shape: &KvShape, plan: Record, own: &[u8], record: &mut [u8]) {
    let codes = match shape.dtype {
        KvType::F32 | KvType::F16 => record.len(),
        KvType::Q8 => shape.head_dim,
        KvType::Q4 => shape.head_dim.div_ceil(2),
    };
    let (to, scales) = record.split_at_mut(codes);
    match shape.dtype {
        KvType::F32 | KvType::F16 => to.copy_from_slice(&own[..codes]),
        // Both signs by 128 up.
        KvType::Q8 => to.iter_mut().zip(own).for_each(|(to, from)| *to = from ^ 0x80),
        KvType::Q4 => {
            // A block of an odd length ends with a code of 0.
            to.fill(0x88);
            for (feature, (byte, high)) in nibbles(shape.head_dim).enumerate() {
                let code = own[feature / 2] >> (4 * (feature % 2)) & 15;
                to[byte] = if high { to[byte] & 15 | code << 4 } else { to[byte] & 0xf0 | code };
            }
        }
    }
    scales.copy_from_slice(&own[plan.code_words() * 4..][..scales.len()]);
}

/// The way back of [`to_canonical`].
fn from_canonical(shape: &KvShape, plan: Record, record: &[u8], own: &mut [u8]) {
    own.fill(0);
    let codes = match shape.dtype {
        KvType::F32 | KvType::F16 => record.len(),
        KvType::Q8 => shape.head_dim,
        KvType::Q4 => shape.head_dim.div_ceil(2),
    };
    let (from, scales) = record.split_at(codes);
    match shape.dtype {
        KvType::F32 | KvType::F16 => own[..codes].copy_from_slice(from),
        KvType::Q8 => own.iter_mut().zip(from).for_each(|(to, from)| *to = from ^ 0x80),
        KvType::Q4 => {
            for (feature, (byte, high)) in nibbles(shape.head_dim).enumerate() {
                let code = if high { from[byte] >> 4 } else { from[byte] & 15 };
                own[feature / 2] |= code << (4 * (feature % 2));
            }
        }
    }
    own[plan.code_words() * 4..][..scales.len()].copy_from_slice(scales);
}
