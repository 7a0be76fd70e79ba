//! Whether a recorded step is to be trusted, and worth it: it has to say what CubeCL's own launches say, sooner.
//!
//! So the fast way can be the default: a driver, a compiler or a mistake of ours that breaks it costs a line of
//! warning and four steps.

use std::fmt;

/// How often a step is timed.
pub(crate) const TRIES: usize = 3;
/// `‖found - right‖ / ‖right‖` of logits at most. The kernels are the same, so this is generous.
const TOLERANCE: f64 = 1e-5;

/// A step by one of two ways.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Run {
    /// The bytes of its answer.
    pub answer: Vec<u8>,
    /// `[outputs, vocabulary]`
    pub logits: Vec<f32>,
    /// Whether the answer is tokens, which are to be the same.
    pub tokens: bool,
    /// The shortest of some.
    pub seconds: f64,
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// Seconds through CubeCL, and replayed.
    Kept(f64, f64),
    /// Seconds through CubeCL, and replayed.
    Slower(f64, f64),
    /// By how much the logits differ.
    Differs(f64),
    /// Why it did not run.
    Failed(String),
}

/// Compares CubeCL's step with the recorded one.
pub(crate) fn judge(right: &Run, found: &Run) -> Verdict {
    let squares =
        |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let size = squares(&mut right.logits.iter().map(|&value| f64::from(value)));
    let pairs = right.logits.iter().zip(&found.logits);
    let off = squares(&mut pairs.map(|(&a, &b)| f64::from(b) - f64::from(a))) / size.max(f64::MIN_POSITIVE);
    // NaN compares as different.
    let near = right.logits.len() == found.logits.len() && off <= TOLERANCE;
    if !near || (right.tokens && right.answer != found.answer) {
        return Verdict::Differs(off);
    }
    if found.seconds < right.seconds {
        Verdict::Kept(right.seconds, found.seconds)
    } else {
        Verdict::Slower(right.seconds, found.seconds)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |seconds: f64| seconds * 1e6;
        match self {
            Verdict::Kept(right, found) => {
                write!(
                    f,
                    "a step as one graph takes {:.0} µs, by separate launches {:.0}",
                    micros(*found),
                    micros(*right)
                )
            }
            Verdict::Slower(right, found) => write!(
                f,
                "a step as one graph takes {:.0} µs, by separate launches {:.0}: they are kept",
                micros(*found),
                micros(*right)
            ),
            Verdict::Differs(off) => write!(
                f,
                "a step as one graph differs by {off:.1e} from separate launches, which are kept; please report this"
            ),
            Verdict::Failed(why) => {
                write!(f, "a step as one graph failed ({why}): it is launched separately")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(logits: &[f32], answer: &[u8], seconds: f64) -> Run {
        Run { answer: answer.to_vec(), logits: logits.to_vec(), tokens: true, seconds }
    }

    #[test]
    fn the_same_and_sooner_is_kept() {
        let right = run(&[1.0, -2.0, 3.0], &[2, 0, 0, 0], 4e-3);
        assert_eq!(judge(&right, &run(&[1.0, -2.0, 3.0], &[2, 0, 0, 0], 1e-3)), Verdict::Kept(4e-3, 1e-3));
        assert_eq!(judge(&right, &run(&[1.0, -2.0, 3.0], &[2, 0, 0, 0], 5e-3)), Verdict::Slower(4e-3, 5e-3));
        for wrong in [&[1.0, -2.0, 3.1][..], &[1.0, f32::NAN, 3.0], &[1.0, -2.0]] {
            assert!(
                matches!(judge(&right, &run(wrong, &[2, 0, 0, 0], 1e-3)), Verdict::Differs(_)),
                "{wrong:?}"
            );
        }
        let other = run(&[1.0, -2.0, 3.0], &[1, 0, 0, 0], 1e-3);
        assert!(matches!(judge(&right, &other), Verdict::Differs(_)));
        assert!(judge(&right, &other).to_string().contains("separate launches"));
    }
}
