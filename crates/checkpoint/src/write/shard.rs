//! Quantizes and writes one shard.

use super::directory::Directory;
use super::layout::{Item, Layout};
use super::{TensorBytes, WriteOptions};
use crate::dtype::TensorDtype;
use crate::error::{CheckpointError, shown};
use crate::selection::Fate;
use halfbyte_quant::{Absmax, Quantized, Source, SourceType, quantize};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::sync::mpsc::{Receiver, sync_channel};

/// Results that may wait for the disk while the next tensor is quantized.
const WAITING: usize = 1;

/// Bytes that are handed to the system at once. Copied tensors come straight from the memory map: a piece
/// is in memory only while it is written.
const PIECE: usize = 8 << 20;

/// What the writing thread is to do: put these bytes at this place of the file.
type Place<'a> = (u64, Cow<'a, [u8]>);

/// Writes the shard of this name and returns its length. `written` hears of each tensor.
pub(super) fn write(
    source: &dyn TensorBytes,
    directory: &Directory,
    name: &str,
    layout: &Layout<'_>,
    options: &WriteOptions,
    written: &mut dyn FnMut(&Item<'_>),
) -> Result<u64, CheckpointError> {
    let part = directory.part(name);
    let failed = |source| CheckpointError::Write { file: part.display().to_string(), source };
    let file = File::create(&part).map_err(failed)?;
    let offsets: HashMap<&str, u64> =
        layout.fixed.iter().map(|entry| (entry.name.as_str(), layout.data_start + entry.offset)).collect();

    let mut states: Vec<Vec<u8>> = Vec::with_capacity(layout.states.len());
    let (result, outcome) = std::thread::scope(|scope| {
        let (send, receive) = sync_channel::<Place<'_>>(WAITING);
        let file = &file;
        let writer = scope.spawn(move || drain(file, &receive));
        let mut quantize_all = || {
            for item in layout.items {
                for (entry, bytes) in tensors(source, item, options)? {
                    match offsets.get(entry.as_str()) {
                        // Sending fails only if the writer has ended, which it does by an error that it returns.
                        Some(&at) => {
                            if send.send((at, bytes)).is_err() {
                                return Ok(());
                            }
                        }
                        None => states.push(bytes.into_owned()),
                    }
                }
                written(item);
            }
            Ok(())
        };
        let result: Result<(), CheckpointError> = quantize_all();
        drop(send);
        let outcome = writer.join().unwrap_or_else(|_| Err(io::Error::other("the writing thread panicked")));
        (result, outcome)
    });
    result?;
    outcome.map_err(failed)?;

    let lengths: Vec<usize> = states.iter().map(Vec::len).collect();
    let prefix = layout.prefix(&lengths);
    let states = states.concat();
    let states_start = layout.data_start + layout.states_start();
    put(&file, states_start, &states).and_then(|()| put(&file, 0, &prefix)).map_err(failed)?;
    directory.publish(name, &file)?;
    Ok(states_start + states.len() as u64)
}

/// Writes what comes until the sender is gone.
fn drain(file: &File, receive: &Receiver<Place<'_>>) -> io::Result<()> {
    for (at, bytes) in receive {
        put(file, at, &bytes)?;
    }
    Ok(())
}

fn put(mut file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    bytes.chunks(PIECE).try_for_each(|piece| file.write_all(piece))
}

/// A tensor's name and bytes.
type Named<'a> = (String, Cow<'a, [u8]>);

/// The tensors that an item becomes, by name.
fn tensors<'a>(
    source: &'a dyn TensorBytes,
    item: &Item<'_>,
    options: &WriteOptions,
) -> Result<Vec<Named<'a>>, CheckpointError> {
    let bytes = source.tensor(item.name())?;
    if !item.quantized() {
        return Ok(vec![(item.name().to_owned(), bytes)]);
    }
    let data = quantized(item, &bytes, options)?;
    let parts = item.parts(data, options);
    Ok(parts.into_iter().map(|(part, bytes)| (format!("{}{part}", item.name()), Cow::Owned(bytes))).collect())
}

fn quantized(item: &Item<'_>, bytes: &[u8], options: &WriteOptions) -> Result<Quantized, CheckpointError> {
    let broken = |problem: String| CheckpointError::Unsupported {
        what: format!("quantizing {}: {problem}", shown(item.name())),
        instead: "download it again, or keep it as it is with --skip-modules".into(),
    };
    let (dtype, mut bytes) = match item.tensor.dtype {
        TensorDtype::F16 => (SourceType::F16, Cow::Borrowed(bytes)),
        TensorDtype::BF16 => (SourceType::Bf16, Cow::Borrowed(bytes)),
        TensorDtype::F64 => (SourceType::F32, Cow::Owned(narrowed(bytes))),
        _ => (SourceType::F32, Cow::Borrowed(bytes)),
    };
    if item.fate == Fate::QuantizeTransposed
        && let [rows, cols] = item.tensor.shape[..]
    {
        bytes = Cow::Owned(transposed(&bytes, rows, cols, dtype.width()));
    }
    let source = Source::from_le_bytes(dtype, &bytes).map_err(|error| broken(error.to_string()))?;
    let data = quantize(source, options.spec).map_err(|error| broken(error.to_string()))?;
    let finite = match &data.absmax {
        Absmax::Plain(values) => values.iter().all(|value| value.is_finite()),
        // One scale that is not finite makes their mean so.
        Absmax::Nested { offset, .. } => offset.is_finite() || data.len == 0,
    };
    if !finite {
        return Err(broken("it holds infinities or values that are no numbers".into()));
    }
    Ok(data)
}

/// Double precision as single, little-endian.
fn narrowed(bytes: &[u8]) -> Vec<u8> {
    let values = bytes.as_chunks::<8>().0.iter().map(|&value| f64::from_le_bytes(value) as f32);
    values.flat_map(f32::to_le_bytes).collect()
}

/// `[rows, cols]` elements of `width` bytes as `[cols, rows]`.
fn transposed(bytes: &[u8], rows: usize, cols: usize, width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for col in 0..cols {
        for row in 0..rows {
            let at = (row * cols + col) * width;
            out.extend_from_slice(&bytes[at..at + width]);
        }
    }
    out
}
