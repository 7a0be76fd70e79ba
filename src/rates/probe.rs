//! A matrix on a device, and how long the device takes to get it, to read it, and to multiply with it.

use super::Rates;
use super::kept::Kept;
use super::steadiness::{Ticks, disturbed};
use halfbyte_backend::random::Stream;
use halfbyte_backend::{
    Act, Backend, Canonical, Caps, DeviceKind, Fault, Format, Fut, Input, Kind, LinearShape, LinearStep,
    Output, Place, Pre, Program, Purpose, QuantFormat, Reg, Rows, Segment, Slot, Step, Stretch, Want, WantId,
    WeightSource,
};
use halfbyte_quant::{QuantSpec, Quantized, Source, quantize};
use std::borrow::Cow;
use std::future::ready;
use std::time::Instant;

/// Rows and columns of the matrix.
const SIZE: usize = 2048;

/// Products one after the other in a submission: what a submission costs by itself is taken off.
const STEPS: usize = 8;

/// Tokens at once, of a prompt; of a device that the processor emulates, which takes a thousand times as long.
const ROWS: usize = 256;
const EMULATED_ROWS: usize = 16;

/// Runs of which the shortest counts.
const RUNS: usize = 3;

/// Measures what a device can be asked; what it cannot is left open. `host`: whose memory reaches a GPU. What others did
/// meanwhile is noted.
pub(super) async fn measure(backend: &dyn Backend, host: &dyn Backend) -> Kept {
    let (before, mut spread) = (Ticks::now(), Spread::default());
    let read = backend.read_bandwidth().await;
    let probed = probe(backend, host, &mut spread).await;
    for fault in [read.as_ref().err(), probed.as_ref().err()].into_iter().flatten() {
        tracing::debug!("{}: not measured: {fault}", backend.info().name);
    }
    let rates = joined(read.ok(), probed.unwrap_or_default());
    Kept::new(rates, disturbed(before, Ticks::now(), spread.0))
}

/// What a device computes more slowly than it reads, it reads no faster. What it computes alone is no rate of reading: the
/// matrix may have stayed in its caches.
fn joined(read: Option<f64>, probed: Rates) -> Rates {
    let computed = probed.read_bytes_per_second.unwrap_or(f64::INFINITY);
    Rates { read_bytes_per_second: read.map(|read| read.min(computed)), ..probed }
}

/// The longest of equal runs by the shortest, whichever runs were the most unlike.
#[derive(Debug, Default)]
struct Spread(f64);

impl Spread {
    /// The shortest of these runs, in seconds.
    fn shortest(&mut self, runs: &[f64]) -> f64 {
        let least = runs.iter().copied().fold(f64::INFINITY, f64::min);
        let most = runs.iter().copied().fold(0.0, f64::max);
        self.0 = self.0.max(most / least.max(f64::MIN_POSITIVE));
        least
    }
}

/// Rates of one matrix. Its weights may stay in caches: reading is as fast as computing lets it be.
async fn probe(backend: &dyn Backend, host: &dyn Backend, spread: &mut Spread) -> Result<Rates, Fault> {
    let info = backend.info();
    let made = Made(made()?);
    let (probe, upload) = match info.kind {
        DeviceKind::Cpu | DeviceKind::Disk => (Probe::new(backend, &made).await?, None),
        _ => {
            let at_host = Probe::new(host, &made).await?;
            let contents = host.contents(at_host.slots[0], &at_host.want)?;
            let probe = Probe::new(backend, &*contents).await?;
            let mut runs = [0.0; RUNS];
            for run in &mut runs {
                let start = Instant::now();
                backend.upload(probe.slots[0], &probe.want, &*contents).await?;
                *run = start.elapsed().as_secs_f64();
            }
            (probe, Some(spread.shortest(&runs)))
        }
    };
    let rows = if info.kind == DeviceKind::Software { EMULATED_ROWS } else { ROWS };
    let (mut one, mut many) = (probe.program(1, rows).await?, probe.program(STEPS, rows).await?);
    let mut of_step = async |rows: usize| {
        let one = Spread::default().shortest(&seconds(&mut *one, rows).await?);
        // A single product may take less than a switch of threads.
        let many = spread.shortest(&seconds(&mut *many, rows).await?);
        // A submission may vary by more than its steps take.
        Ok::<_, Fault>(((many - one) / (STEPS - 1) as f64).max(many / (4 * STEPS) as f64))
    };
    let (read, multiply) = (of_step(1).await?, of_step(rows).await?);
    let bytes = made.0.bytes() as f64;
    Ok(Rates {
        read_bytes_per_second: Some(bytes / read),
        upload_bytes_per_second: upload.map(|seconds| bytes / seconds),
        products_per_second: Some((rows * SIZE * SIZE) as f64 / multiply),
    })
}

/// Seconds of submissions of `rows` rows each.
async fn seconds(program: &mut dyn Program, rows: usize) -> Result<[f64; RUNS], Fault> {
    let place = |position| Place { sequence: 0, position, token_type: 0 };
    let places: Vec<Place> = (0..rows as u32).map(place).collect();
    let hidden = vec![0.5; rows * SIZE];
    let rows = Rows { input: Input::Hidden(&hidden), places: &places, output: Output::Hidden };
    // One makes pipelines.
    program.submit(&rows)?.await?;
    let mut runs = [0.0; RUNS];
    for run in &mut runs {
        let start = Instant::now();
        program.submit(&rows)?.await?;
        *run = start.elapsed().as_secs_f64();
    }
    Ok(runs)
}

/// A 4-bit matrix on a device, `[SIZE, SIZE]`.
struct Probe<'b> {
    backend: &'b dyn Backend,
    want: Want,
    slots: Vec<Slot>,
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        self.backend.release(&self.slots);
    }
}

impl<'b> Probe<'b> {
    async fn new(backend: &'b dyn Backend, source: &dyn WeightSource) -> Result<Self, Fault> {
        let segment = Segment {
            tensor: "the matrix that measures".into(),
            rows: SIZE,
            cols: SIZE,
            format: Format::Quant(QuantFormat::from(QuantSpec::default())),
            bias: None,
            transposed: false,
        };
        let kind = Kind::Linear(LinearShape::single(segment));
        let want = Want { name: "the matrix that measures".into(), purpose: Purpose::Weights, kind };
        let slots = backend.reserve(std::slice::from_ref(&want)).await?;
        let probe = Self { backend, want, slots };
        backend.upload(probe.slots[0], &probe.want, source).await?;
        Ok(probe)
    }

    /// `steps` products one after the other, for up to `rows` rows.
    async fn program(&self, steps: usize, rows: usize) -> Result<Box<dyn Program>, Fault> {
        // To and fro between two registers.
        let step = |at: usize| LinearStep {
            pre: Pre::default(),
            input: Reg((at % 2) as u16),
            weight: WantId(0),
            act: Act::Identity,
            gated: false,
            residual: None,
            out: Reg(((at + 1) % 2) as u16),
            at: 0,
        };
        let stretch = Stretch {
            wants: vec![self.want.clone()],
            steps: (0..steps).map(|at| Step::Linear(step(at))).collect(),
            widths: vec![SIZE; 2],
            inputs: vec![Reg(0)],
            outputs: vec![Reg((steps % 2) as u16)],
        };
        self.backend.compile(&stretch, &self.slots, Caps { rows, outputs: 1 }).await
    }
}

/// The matrix, made once.
struct Made(Quantized);

impl WeightSource for Made {
    fn segment<'a>(&'a self, _segment: &'a Segment) -> Fut<'a, Canonical<'a>> {
        Box::pin(ready(Ok(Canonical::Quantized(Cow::Borrowed(&self.0)))))
    }

    fn vector<'a>(&'a self, name: &'a str, _len: usize) -> Fut<'a, Vec<f32>> {
        Box::pin(ready(Err(Fault::Internal(format!("the matrix that measures has no {name}")))))
    }
}

/// A random row as often as there are rows. Its norm is about 1, so that no product grows beyond all numbers.
fn made() -> Result<Quantized, Fault> {
    let mut stream = Stream::new(1);
    let row: Vec<f32> = (0..SIZE).map(|_| stream.normal() / (SIZE as f32).sqrt()).collect();
    let values = row.repeat(SIZE);
    quantize(Source::F32(&values), QuantSpec::default()).map_err(|error| Fault::Internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_caches_read_is_not_what_memory_reads() {
        let probed =
            Rates { read_bytes_per_second: Some(3e11), products_per_second: Some(1e11), ..Rates::default() };
        let read = |read| joined(read, probed).read_bytes_per_second;
        assert_eq!((read(Some(2e10)), read(Some(4e11)), read(None)), (Some(2e10), Some(3e11), None));
        assert_eq!(joined(None, probed).products_per_second, Some(1e11));
        assert_eq!(joined(Some(2e10), Rates::default()).read_bytes_per_second, Some(2e10));
    }
}
