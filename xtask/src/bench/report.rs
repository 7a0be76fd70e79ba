//! Medians and spreads of the turns.

use super::BenchArgs;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// What was measured, in tokens a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// A prompt of so many tokens, from an empty context.
    Prefill(usize),
    /// Decoding after a context of so many tokens.
    DecodeAt(usize),
}

/// One side's turns.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    /// Tokens a second.
    speeds: Vec<f64>,
    /// The share of the processors that their host gave to others meanwhile.
    stolen: Vec<f64>,
}

impl Figure {
    fn name(self) -> String {
        match self {
            Figure::Prefill(tokens) => format!("prefill {tokens}"),
            Figure::DecodeAt(context) => format!("decode at {context}"),
        }
    }
}

impl Samples {
    /// One more turn.
    pub fn add(&mut self, speed: f64, stolen: f64) {
        self.speeds.push(speed);
        self.stolen.push(stolen);
    }

    fn spread(&self) -> Option<(f64, f64)> {
        let least = self.speeds.iter().copied().reduce(f64::min)?;
        Some((least, self.speeds.iter().copied().fold(least, f64::max)))
    }
}

/// The median; of an even number, the mean of the middle two.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// How many times as fast the first side is as side `other`: the medians' quotient, and the least and the
/// most that any two turns give.
fn ratio(row: &[Samples], other: usize) -> Option<(f64, f64, f64)> {
    let (own, peer) = (row.first()?, row.get(other)?);
    let ((own_least, own_most), (least, most)) = (own.spread()?, peer.spread()?);
    Some((median(&own.speeds)? / median(&peer.speeds)?, own_least / most, own_most / least))
}

/// The median of how many times as fast the first side is as side `other` in each turn.
fn side_by_side(row: &[Samples], other: usize) -> Option<f64> {
    let (own, peer) = (row.first()?, row.get(other)?);
    let ratios: Vec<f64> = own.speeds.iter().zip(&peer.speeds).map(|(own, peer)| own / peer).collect();
    median(&ratios)
}

/// A table for people: tokens a second, and how many times as fast the first side is as the others.
pub fn table(names: &[&str], samples: &BTreeMap<Figure, Vec<Samples>>) -> String {
    let mut text = String::new();
    for (&figure, row) in samples {
        let _ = writeln!(text, "{}", figure.name());
        for (index, name) in names.iter().enumerate() {
            let Some((median, (least, most))) = median(&row[index].speeds).zip(row[index].spread()) else {
                let _ = writeln!(text, "  {name}: no figure");
                continue;
            };
            let _ = write!(text, "  {name}: {median:.2} tokens/s ({least:.2} to {most:.2})");
            if let Some((ratio, least, most)) = ratio(row, index).filter(|_| index > 0) {
                let _ = write!(text, "; {} is {ratio:.2} times as fast ({least:.2} to {most:.2}", names[0]);
                let beside = side_by_side(row, index).unwrap_or(ratio);
                let _ = write!(text, "; turns side by side {beside:.2})");
            }
            text.push('\n');
        }
    }
    text
}

/// Every sample, for programs.
pub fn json(args: &BenchArgs, names: &[&str], samples: &BTreeMap<Figure, Vec<Samples>>) -> Value {
    let mut rows = Vec::new();
    for (&figure, row) in samples {
        let (prefill, context) = match figure {
            Figure::Prefill(tokens) => (Some(tokens), 0),
            Figure::DecodeAt(context) => (None, context),
        };
        for (index, name) in names.iter().enumerate() {
            let ratio = ratio(row, index).filter(|_| index > 0);
            rows.push(json!({
                "name": name,
                "prefill_tokens": prefill,
                "context": context,
                "tokens_per_second": median(&row[index].speeds),
                "samples": row[index].speeds,
                "stolen": row[index].stolen,
                "first_is_times_as_fast": ratio.map(|(ratio, _, _)| ratio),
                "side_by_side": side_by_side(row, index).filter(|_| index > 0),
            }));
        }
    }
    json!({
        "shape": args.shape,
        "device_map": args.device_map,
        "threads": args.threads,
        "decoded_tokens": args.tokens,
        "head": args.head,
        "awake": args.awake,
        "interleave_seconds": args.interleave,
        "rows": rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn ratios_and_their_spread() {
        let turns = |speeds: [f64; 3]| Samples { speeds: speeds.to_vec(), stolen: vec![0.0; 3] };
        let row = [turns([4.0, 6.0, 5.0]), turns([2.0, 3.0, 2.0])];
        assert_eq!(ratio(&row, 1), Some((2.5, 4.0 / 3.0, 3.0)));
        assert_eq!(side_by_side(&row, 1), Some(2.0));
        let samples = BTreeMap::from([(Figure::DecodeAt(0), row.to_vec())]);
        let text = table(&["halfbyte", "peer"], &samples);
        assert!(
            text.contains(
                "2.00 to 3.00); halfbyte is 2.50 times as fast (1.33 to 3.00; turns side by side 2.00)"
            ),
            "{text}"
        );
    }
}
