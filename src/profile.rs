//! Where the time of a decoded token goes.

use crate::Error;
use crate::bench::{BenchOptions, Limits, decode, places};
use crate::loading::Loaded;
use halfbyte_backend::{Input, Output, Rows, StepCost};
use std::time::Instant;

/// Decoding after one context, taken apart.
#[derive(Debug, Clone, serde::Serialize)]
pub struct DecodeProfile {
    /// The device.
    pub device: String,
    /// The maker's name.
    pub adapter: String,
    /// Whether the device is a processor that emulates a GPU.
    pub software: bool,
    /// Tokens in the context.
    pub context: usize,
    /// Step classes in the order in which they first come, medians of several tokens on the device's clock. Empty
    /// where it has none.
    pub steps: Vec<StepProfile>,
    /// Seconds of a token, from one to the next, submitted as in generating: the median, as all that follows is.
    pub seconds_per_token: f64,
    /// Of these, seconds of the host outside the driver's calls: halfbyte's own work. `None` where there is no
    /// driver.
    pub host_seconds_per_token: Option<f64>,
    /// Of these, seconds of the host in the driver's calls, waiting for the device included.
    pub driver_seconds_per_token: Option<f64>,
    /// Dispatches of a token.
    pub dispatches_per_token: f64,
    /// Compute passes of a token.
    pub passes_per_token: f64,
    /// Submissions of a token.
    pub submissions_per_token: f64,
}

/// One class of steps in a token.
#[derive(Debug, Clone, serde::Serialize)]
pub struct StepProfile {
    /// As in `norm_gate_up`.
    pub class: String,
    /// Its dispatches.
    pub dispatches: u64,
    /// Their seconds.
    pub seconds: f64,
    /// Its part of the seconds of all classes.
    pub share_of_time: f64,
    /// Bytes of weights and KV cache that it reads; 0 where that is little or depends on the data.
    pub bytes: u64,
    /// Bytes a second.
    pub read_rate: f64,
    /// `read_rate` of the device's read bandwidth.
    pub share_of_limit: Option<f64>,
}

/// Profiles decoding after a context of `at` positions; `None` if several devices take part, or one
/// that has no clock and counts no passes.
pub(crate) fn profile(
    loaded: &mut Loaded,
    limits: &Limits,
    at: usize,
    what: &BenchOptions,
) -> Result<Option<DecodeProfile>, Error> {
    let failed = halfbyte_inference::ModelError::from;
    if !loaded.engine.feeds_back() {
        return Ok(None);
    }
    let position = at.min(loaded.engine.blueprint().context - 1);
    let row = places(position, 1);
    let mut runs = Vec::new();
    // The first warms up.
    for run in 0..=what.repeats.max(1) {
        let rows = Rows { input: Input::Tokens(&[1]), places: &row, output: Output::Greedy(&[0]) };
        let costs = pollster::block_on(loaded.engine.profile(&rows)).map_err(failed)?;
        if run > 0 {
            runs.push(costs);
        }
    }

    if loaded.engine.passes() == 0 && runs.iter().all(Vec::is_empty) {
        return Ok(None);
    }

    // The first run only begins to measure.
    loaded.engine.driver_time();
    let (dispatches, submissions) = loaded.engine.counts();
    let passes = loaded.engine.passes();
    let (mut whole, mut host, mut driver) = (Vec::new(), Vec::new(), Vec::new());
    let mut since = Instant::now();
    decode(loaded, at, what.tokens, &mut |engine| {
        let (now, before) = (Instant::now(), since);
        let in_driver = engine.driver_time();
        since = now;
        whole.push((now - before).as_secs_f64());
        if let Some(in_driver) = in_driver {
            driver.push(in_driver.as_secs_f64());
            host.push((now - before).saturating_sub(in_driver).as_secs_f64());
        }
    })?;
    // One token more than is asked for begins the run, and is in the first of the times too.
    let tokens = (what.tokens + 1) as f64;
    let now = loaded.engine.counts();
    Ok(Some(DecodeProfile {
        device: limits.device.clone(),
        adapter: limits.adapter.clone(),
        software: limits.software,
        context: at,
        steps: steps(&runs, limits.bandwidth(at)),
        seconds_per_token: median(whole).unwrap_or_default(),
        host_seconds_per_token: median(host),
        driver_seconds_per_token: median(driver),
        dispatches_per_token: (now.0 - dispatches) as f64 / tokens,
        passes_per_token: (loaded.engine.passes() - passes) as f64 / tokens,
        submissions_per_token: (now.1 - submissions) as f64 / tokens,
    }))
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The median of each class over the runs.
fn steps(runs: &[Vec<StepCost>], limit: Option<f64>) -> Vec<StepProfile> {
    let Some(first) = runs.first() else { return Vec::new() };
    let of = |class: &str| {
        let of_class = runs.iter().filter_map(|run| run.iter().find(|cost| cost.class == class));
        median(of_class.map(|cost| cost.seconds).collect()).unwrap_or_default()
    };
    let times: Vec<f64> = first.iter().map(|cost| of(&cost.class)).collect();
    let total: f64 = times.iter().sum();
    let step = |(cost, &seconds): (&StepCost, &f64)| {
        let read_rate = if seconds > 0.0 { cost.bytes as f64 / seconds } else { 0.0 };
        StepProfile {
            class: cost.class.clone(),
            dispatches: cost.dispatches,
            seconds,
            share_of_time: if total > 0.0 { seconds / total } else { 0.0 },
            bytes: cost.bytes,
            read_rate,
            share_of_limit: limit.map(|limit| read_rate / limit),
        }
    };
    first.iter().zip(&times).map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_take_their_median_and_their_share() {
        let run = |a: f64, b: f64| {
            vec![
                StepCost { class: "a".into(), dispatches: 2, seconds: a, bytes: 600 },
                StepCost { class: "b".into(), dispatches: 1, seconds: b, bytes: 0 },
            ]
        };
        let steps = steps(&[run(9.0, 1.0), run(3.0, 1.0), run(2.0, 5.0)], Some(400.0));
        assert_eq!((steps[0].seconds, steps[0].share_of_time), (3.0, 0.75));
        assert_eq!((steps[0].read_rate, steps[0].share_of_limit), (200.0, Some(0.5)));
        assert_eq!((steps[1].seconds, steps[1].read_rate), (1.0, 0.0));
    }
}
