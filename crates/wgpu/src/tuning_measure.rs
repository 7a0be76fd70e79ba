//! Shapes for adapters that the table does not know: a short measurement when the first model is loaded, kept on
//! the disk.

use crate::WgpuBackend;
use crate::kept_file::KeptFile;
use crate::tuning::Tuning;
use halfbyte_backend::{
    Act, Arrangement, Backend, Caps, Fault, Format, Input, Kind, LinearShape, LinearStep, Output, Place, Pre,
    Purpose, QuantFormat, Reg, Rows, Segment, Step, Stretch, Want, WantId,
};
use halfbyte_quant::QuantType;
use std::time::Duration;
use web_time::Instant;

/// No candidate is begun after this; each takes some tens of milliseconds.
const PATIENCE: Duration = Duration::from_millis(800);
/// The best of this many submissions counts, after one that warms up.
const RUNS: usize = 5;

/// What is measured: so many products of `[size, size]`, each read once, which no cache holds together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) size: usize,
    pub(crate) products: usize,
}

/// 68 MiB of 4-bit weights.
pub(crate) const LOAD: Load = Load { size: 4096, products: 8 };

/// Shapes that are still to be chosen.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    /// What is tried, the usual one first.
    pub(crate) candidates: Vec<Tuning>,
    pub(crate) load: Load,
    /// Where the answer is kept.
    pub(crate) file: Option<KeptFile>,
}

impl Choice {
    /// The fastest candidate on `backend`, from the file if an earlier start has left it there. `None` where
    /// nothing can be measured. Leaves nothing on the device.
    pub(crate) async fn make(&self, backend: &WgpuBackend) -> Option<Tuning> {
        let kept = self.file.as_ref().and_then(KeptFile::read);
        let known = self.candidates.iter().find(|tuning| kept.as_deref() == Some(name(tuning).as_bytes()));
        if known.is_some() {
            return known.copied();
        }
        let info = backend.info();
        tracing::warn!(
            "{}: measures which shapes of kernels suit {}, once, about a second",
            info.name,
            info.adapter
        );
        let start = Instant::now();
        let mut times = Vec::new();
        for tuning in &self.candidates {
            if start.elapsed() > PATIENCE {
                break;
            }
            backend.shape(*tuning);
            // What does not run here is not the fastest.
            times.push((time(backend, self.load).await.ok(), *tuning));
        }
        let tuning = fastest(&times)?;
        if let Some(file) = &self.file {
            file.write(name(&tuning).as_bytes());
        }
        Some(tuning)
    }
}

/// The one with the fewest seconds; the first of equals, so that nothing changes without a reason.
fn fastest(times: &[(Option<f64>, Tuning)]) -> Option<Tuning> {
    let ran = times.iter().filter_map(|(seconds, tuning)| Some(((*seconds)?, tuning)));
    ran.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, tuning)| *tuning)
}

/// A candidate as the file names it: with all its values, so that one that changes is another.
fn name(tuning: &Tuning) -> String {
    format!("{tuning:?}")
}

/// Seconds of a submission of one row through all products. Weights are whatever the memory holds.
async fn time(backend: &WgpuBackend, load: Load) -> Result<f64, Fault> {
    let stretch = stretch(load);
    let slots = backend.reserve(&stretch.wants).await?;
    let measured = async {
        let mut program = backend.compile(&stretch, &slots, Caps { rows: 1, outputs: 1 }).await?;
        let input = vec![0.0; load.size];
        let places = [Place { sequence: 0, position: 0, token_type: 0 }];
        let rows = Rows { input: Input::Hidden(&input), places: &places, output: Output::Nothing };
        let mut best = f64::INFINITY;
        for run in 0..=RUNS {
            let start = Instant::now();
            program.submit(&rows)?.await?;
            program.drain().await?;
            if run > 0 {
                best = best.min(start.elapsed().as_secs_f64());
            }
        }
        Ok(best)
    };
    let seconds = measured.await;
    backend.release(&slots);
    seconds
}

/// Products one after the other, each from the same register to the same.
fn stretch(load: Load) -> Stretch {
    let (from, to) = (Reg(0), Reg(1));
    let mut stretch = Stretch { widths: vec![load.size; 2], inputs: vec![from], ..Stretch::default() };
    for index in 0..load.products {
        let quant = QuantFormat { quant_type: QuantType::Nf4, blocksize: 64, double_quant: true };
        let segment = Segment {
            tensor: format!("measured.{index}"),
            rows: load.size,
            cols: load.size,
            format: Format::Quant(quant),
            bias: None,
            transposed: false,
        };
        let kind = Kind::Linear(LinearShape::new(vec![segment], Arrangement::Stacked));
        stretch.wants.push(Want { name: format!("measured.{index}"), purpose: Purpose::Scratch, kind });
        stretch.steps.push(Step::Linear(LinearStep {
            input: from,
            pre: Pre::default(),
            weight: WantId(index as u32),
            act: Act::Identity,
            gated: false,
            residual: None,
            out: to,
            at: 0,
        }));
    }
    stretch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;
    use crate::adapters::adapters;
    use crate::tuning_table::candidates;
    use pollster::block_on;

    async fn open(options: Options) -> WgpuBackend {
        let index = adapters().await.unwrap().len() - 1;
        WgpuBackend::open(index, options).await.unwrap()
    }

    type Chooser = fn(&[(Option<f64>, Tuning)]) -> Option<Tuning>;

    /// Whether a way of choosing takes the fastest of what ran.
    fn chooses(choose: Chooser) -> bool {
        let all = candidates(Some(32));
        let times =
            |seconds: [Option<f64>; 3]| seconds.into_iter().zip(all.iter().copied()).collect::<Vec<_>>();
        choose(&times([Some(3.0), Some(1.0), Some(2.0)])) == Some(all[1])
            && choose(&times([None, Some(2.0), Some(1.0)])) == Some(all[2])
            && choose(&times([Some(1.0), Some(1.0), None])) == Some(all[0])
            && choose(&times([Some(f64::NAN), Some(1.0), None])) == Some(all[1])
            && choose(&times([None; 3])).is_none()
    }

    #[test]
    fn the_fastest_of_what_ran_is_taken() {
        assert!(chooses(fastest));
        let mutants: [Chooser; 4] = [
            |times| times.first().map(|(_, tuning)| *tuning),
            |times| times.iter().rev().find(|(seconds, _)| seconds.is_some()).map(|(_, tuning)| *tuning),
            |times| times.iter().min_by(|a, b| a.0.partial_cmp(&b.0).unwrap()).map(|(_, tuning)| *tuning),
            |times| {
                let ran = times.iter().filter(|(seconds, _)| seconds.is_some_and(|seconds| seconds > 0.0));
                ran.max_by(|a, b| a.0.unwrap().total_cmp(&b.0.unwrap())).map(|(_, tuning)| *tuning)
            },
        ];
        for (index, mutant) in mutants.into_iter().enumerate() {
            let passes = std::panic::catch_unwind(|| chooses(mutant)).unwrap_or(false);
            assert!(!passes, "mutant {index} chooses as well");
        }
    }

    /// On whatever adapter there is, forced: a software one is never measured otherwise.
    #[test]
    fn a_measurement_is_made_once_and_kept() {
        block_on(async {
            let backend = open(Options::default()).await;
            let dir = tempfile::tempdir().unwrap();
            let kept = KeptFile::new(dir.path(), "shapes", "this adapter");
            let load = Load { size: 256, products: 2 };
            let choice = Choice { candidates: candidates(Some(8)), load, file: Some(kept.clone()) };
            let held = backend.ledger().footprint().total();
            let chosen = choice.make(&backend).await.unwrap();
            assert!(choice.candidates.contains(&chosen), "{chosen:?}");
            assert_eq!(kept.read().as_deref(), Some(name(&chosen).as_bytes()));
            assert_eq!(backend.ledger().footprint().total(), held, "what is measured is released");

            // What was kept is taken, even if it were not the fastest now.
            let other = choice.candidates.iter().find(|&&tuning| tuning != chosen).unwrap();
            assert!(kept.write(name(other).as_bytes()));
            assert_eq!(choice.make(&backend).await, Some(*other));
            // A shape that is no candidate any more, or a file that was cut, is measured again.
            assert!(kept.write(b"Tuning { of: yesterday }"));
            let again = choice.make(&backend).await.unwrap();
            assert_eq!(kept.read().as_deref(), Some(name(&again).as_bytes()));
            let path = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
            std::fs::write(&path, &std::fs::read(&path).unwrap()[..20]).unwrap();
            let again = choice.make(&backend).await.unwrap();
            assert_eq!(kept.read().as_deref(), Some(name(&again).as_bytes()));
        });
    }

    /// Opening a device, listing it and planning for it measure nothing; the first reservation does, and only it.
    #[test]
    fn nothing_is_measured_before_a_model_is_loaded() {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let backend = open(Options::default()).await;
            let kept = KeptFile::new(dir.path(), "shapes", "this adapter");
            let load = Load { size: 256, products: 1 };
            backend.measure_later(Choice { candidates: candidates(Some(8)), load, file: Some(kept.clone()) });
            let wants = stretch(load).wants;
            backend.layout().want(&wants[0].kind).unwrap();
            backend.memory();
            assert_eq!(kept.read(), None);
            backend.reserve(&wants).await.unwrap();
            let first = kept.read();
            assert!(first.is_some());
            assert!(kept.write(b"gone"));
            backend.reserve(&wants).await.unwrap();
            assert_eq!(kept.read().as_deref(), Some(b"gone".as_slice()), "measured twice");
        });
    }

    #[test]
    fn a_device_without_room_measures_nothing() {
        block_on(async {
            let backend = open(Options { budget: Some(11 << 20), ..Options::default() }).await;
            let choice = Choice { candidates: candidates(None), load: LOAD, file: None };
            assert_eq!(choice.make(&backend).await, None);
        });
    }
}
