//! Quantizes and writes one shard.

use super::WriteOptions;
use super::checksum::Checksum;
use super::directory::Directory;
use super::layout::{Item, Layout};
use super::originals::{Original, Originals};
use super::part::{Line, Part};
use crate::dtype::TensorDtype;
use crate::error::{CheckpointError, shown};
use crate::selection::Fate;
use halfbyte_quant::{Absmax, Quantized, Source, SourceType, quantize};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{Receiver, sync_channel};

/// Results that may wait for the disk while the next tensor is quantized.
const WAITING: usize = 1;

/// What the writing thread is to do.
enum Order<'a> {
    /// Put the bytes of the tensor of this name at this place of the file.
    Put(String, u64, Original<'a>),
    /// Note that a tensor of the source is done: its name, its quant state, and the source's mark.
    Done(String, Option<String>, Option<String>),
}

/// Writes what is missing of the shard of this name and returns its length. `written` hears of each tensor
/// that is written.
pub(super) fn write<'a>(
    originals: &mut dyn Originals<'a>,
    directory: &Directory,
    name: &str,
    part: &Part,
    layout: &Layout<'_, 'a>,
    options: &WriteOptions,
    written: &mut dyn FnMut(&Item<'_>),
) -> Result<u64, CheckpointError> {
    let offsets: HashMap<&str, u64> =
        layout.fixed.iter().map(|entry| (entry.name.as_str(), layout.data_start + entry.offset)).collect();

    let mut states: Vec<Vec<u8>> = Vec::with_capacity(layout.states.len());
    states.extend(part.done.iter().filter_map(|line| Some(line.state.as_ref()?.clone().into_bytes())));
    let (result, outcome) = std::thread::scope(|scope| {
        let (send, receive) = sync_channel::<Order<'a>>(WAITING);
        let writer = scope.spawn(move || drain(part, &receive));
        let mut quantize_all = || {
            for item in &layout.items[part.done.len()..] {
                let original = originals.next(item.tensor)?;
                let mut state = None;
                for (entry, bytes) in tensors(original, item, options)? {
                    let order = match offsets.get(entry.as_str()) {
                        Some(&at) => Order::Put(entry, at, bytes),
                        None => {
                            state = Some(bytes.to_vec());
                            continue;
                        }
                    };
                    // Sending fails only if the writer has ended, which it does by an error that it returns.
                    if send.send(order).is_err() {
                        return Ok(());
                    }
                }
                let text = state.as_ref().map(|state| String::from_utf8_lossy(state).into_owned());
                states.extend(state);
                if send.send(Order::Done(item.name().to_owned(), text, originals.mark())).is_err() {
                    return Ok(());
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
    outcome.map_err(|error| part.failed(error))?;

    let lengths: Vec<usize> = states.iter().map(Vec::len).collect();
    let prefix = layout.prefix(&lengths);
    let states = states.concat();
    let states_start = layout.data_start + layout.states_start();
    part.put(states_start, &states)
        .and_then(|()| part.put(0, &prefix))
        .and_then(|()| part.file.set_len(states_start + states.len() as u64))
        .map_err(|error| part.failed(error))?;
    directory.publish(name, &part.file)?;
    Ok(states_start + states.len() as u64)
}

/// Writes what comes until the sender is gone.
fn drain(part: &Part, receive: &Receiver<Order<'_>>) -> io::Result<()> {
    let mut sums = Vec::new();
    for order in receive {
        match order {
            Order::Put(name, at, bytes) => {
                part.put(at, &bytes)?;
                sums.push((name, Checksum::of(&bytes)));
            }
            Order::Done(tensor, state, mark) => {
                part.note(&Line { tensor, sums: std::mem::take(&mut sums), state, mark })?;
            }
        }
    }
    Ok(())
}

/// The tensors that an item becomes, by name.
fn tensors<'a>(
    original: Original<'a>,
    item: &Item<'_>,
    options: &WriteOptions,
) -> Result<Vec<(String, Original<'a>)>, CheckpointError> {
    if !item.quantized() {
        return Ok(vec![(item.name().to_owned(), original)]);
    }
    let data = quantized(item, &original, options)?;
    // Before what it became waits for the disk.
    drop(original);
    let parts = item.parts(data, options);
    let named = |(part, bytes)| (format!("{}{part}", item.name()), Original::Held(Box::new(bytes)));
    Ok(parts.into_iter().map(named).collect())
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
