//! Sampling: one definition by parameters, the same wherever it runs.

use crate::random;

/// How the next token is chosen from logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleParams {
    /// 0 is greedy: the largest logit, the lowest id among equals.
    pub temperature: f32,
    /// Keep the `top_k` largest logits; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest tokens whose probabilities reach this; 1 keeps all.
    pub top_p: f32,
    /// Logits of tokens seen before are divided (positive) or multiplied (negative) by this (Keskar et
    /// al. 2019); 1 is off.
    pub repetition_penalty: f32,
    /// Seed of the counter-based random number.
    pub seed: u64,
}

impl Default for SampleParams {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl SampleParams {
    /// Whether the choice is the plain argmax, which a device makes by itself.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0
    }
}

/// The largest logit's index; the lowest among equals; NaN never wins.
pub fn argmax(logits: &[f32]) -> u32 {
    // Comparing sixteen at a time first, which become vectors, then finding the largest.
    let (lines, rest) = logits.as_chunks::<16>();
    let mut largest = [f32::NEG_INFINITY; 16];
    for line in lines {
        for (largest, &logit) in largest.iter_mut().zip(line) {
            *largest = if logit > *largest { logit } else { *largest };
        }
    }
    let all = largest.iter().chain(rest).copied();
    let value = all.fold(f32::NEG_INFINITY, |value, logit| if logit > value { logit } else { value });
    let found = logits.iter().position(|&logit| logit == value && value > f32::NEG_INFINITY);
    found.unwrap_or(0) as u32
}

/// Chooses a token.
///
/// In this order: repetition penalty over `seen`; temperature; the `top_k` largest (ties to the lower
/// id); softmax; the shortest prefix of the sorted probabilities that reaches `top_p`; then the first
/// token at which the running sum exceeds `u` times their total, `u` = [`random::uniform`] of `seed` and
/// `position` (the chosen token's own position). It depends on nothing else, so a batch, a restart or
/// another device draws the same token.
///
/// `logits`: `[vocabulary]`, changed in place. `seen` may repeat ids. Whoever draws again and again keeps a
/// [`Sampler`].
pub fn sample(logits: &mut [f32], seen: &[u32], params: &SampleParams, position: u64) -> u32 {
    Sampler::default().draw(logits, seen, params, position)
}

/// How many nats below the largest logit, over the temperature, candidates are looked for first. Most draws end there,
/// among some ten tokens; each further look goes [`WIDER`] times as deep.
const NATS: f32 = 4.0;

/// See [`NATS`].
const WIDER: f32 = 4.0;

/// Draws as [`sample`] does. It keeps the memory that it needs, and sorts only as much as a draw looks at: a vocabulary of
/// 128 thousand takes longer to sort than a small model takes for a token.
#[derive(Debug, Default)]
pub struct Sampler {
    /// Candidates, the best first; before that, the tokens that are penalized.
    order: Vec<u32>,
}

impl Sampler {
    /// A sampler over `order`, an empty vector: where it has room for a whole vocabulary, draws allocate nothing.
    pub fn over(order: Vec<u32>) -> Self {
        Self { order }
    }

    /// See [`sample`].
    pub fn draw(&mut self, logits: &mut [f32], seen: &[u32], params: &SampleParams, position: u64) -> u32 {
        if params.repetition_penalty != 1.0 {
            self.penalize(logits, seen, params.repetition_penalty);
        }
        if params.temperature == 0.0 {
            return argmax(logits);
        }
        let numbers = || logits.iter().copied().filter(|logit| !logit.is_nan());
        let Some(largest) = numbers().max_by(f32::total_cmp) else { return 0 };
        if !largest.is_finite() {
            let first = logits.iter().position(|logit| logit.total_cmp(&largest).is_eq());
            return first.unwrap_or(0) as u32;
        }
        let below = |logit: f32| (logit - largest) / params.temperature;
        let weight = |logit: f32| f64::from(below(logit)).exp();
        let count = numbers().count();
        let kept = if params.top_k == 0 { count } else { params.top_k.min(count) };
        // Of fewer, the sum is known once they are.
        let sum_of_all = (kept == count).then(|| numbers().map(weight).sum::<f64>());
        let uniform = f64::from(random::uniform(params.seed, position));
        let mut nats = NATS;
        loop {
            let near = |&id: &u32| below(logits[id as usize]) >= -nats;
            self.order.clear();
            self.order.extend((0..logits.len() as u32).filter(near));
            let whole = self.order.len() >= kept;
            if whole || sum_of_all.is_some() {
                let descending =
                    |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
                if kept < self.order.len() {
                    self.order.select_nth_unstable_by(kept - 1, descending);
                    self.order.truncate(kept);
                }
                self.order.sort_unstable_by(descending);
                let weights = || self.order.iter().map(|&id| weight(logits[id as usize]));
                let total = sum_of_all.unwrap_or_else(|| weights().sum());
                if let Some(at) = draw_of(weights, whole, total, params.top_p, uniform) {
                    return self.order[at];
                }
            }
            // Infinite at last, and then it is the whole.
            nats *= WIDER;
        }
    }

    /// Divides or multiplies the logits of `seen`, each once.
    fn penalize(&mut self, logits: &mut [f32], seen: &[u32], penalty: f32) {
        self.order.clear();
        for &id in seen.iter().filter(|&&id| (id as usize) < logits.len()) {
            if self.order.len() == logits.len() {
                self.order.sort_unstable();
                self.order.dedup();
                if self.order.len() == logits.len() {
                    break;
                }
            }
            self.order.push(id);
        }
        self.order.sort_unstable();
        self.order.dedup();
        for &id in &self.order {
            let logit = &mut logits[id as usize];
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// The place of the drawn token among `weights`, the largest first, of which all together are `total`. `None` if these
/// are not the `whole` and the draw may lie beyond.
fn draw_of<W: Iterator<Item = f64>>(
    weights: impl Fn() -> W,
    whole: bool,
    total: f64,
    top_p: f32,
    uniform: f64,
) -> Option<usize> {
    let mut last = weights().count().checked_sub(1)?;
    let (mut total, mut whole) = (total, whole);
    if top_p < 1.0 {
        let reach = total * f64::from(top_p);
        let mut sum = 0.0;
        let end = weights().position(|weight| {
            sum += weight;
            sum >= reach
        });
        match end {
            Some(end) => (last, whole) = (end, true),
            None if !whole => return None,
            None => {}
        }
        total = sum;
    }
    let target = total * uniform;
    let mut sum = 0.0;
    let drawn = weights().take(last + 1).position(|weight| {
        sum += weight;
        sum > target
    });
    drawn.or(whole.then_some(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> SampleParams {
        SampleParams { temperature: 1.0, seed: 3, ..SampleParams::default() }
    }

    /// The definition, word by word: sorts everything.
    fn sorted(logits: &mut [f32], seen: &[u32], params: &SampleParams, position: u64) -> u32 {
        if params.repetition_penalty != 1.0 {
            let mut seen = seen.to_vec();
            seen.sort_unstable();
            seen.dedup();
            for id in seen {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = if *logit > 0.0 {
                        *logit / params.repetition_penalty
                    } else {
                        *logit * params.repetition_penalty
                    };
                }
            }
        }
        if params.temperature == 0.0 {
            return argmax(logits);
        }
        let mut order: Vec<u32> =
            (0..logits.len() as u32).filter(|&id| !logits[id as usize].is_nan()).collect();
        if order.is_empty() {
            return 0;
        }
        let descending =
            |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if params.top_k > 0 && params.top_k < order.len() {
            order.select_nth_unstable_by(params.top_k - 1, descending);
            order.truncate(params.top_k);
        }
        order.sort_unstable_by(descending);

        let largest = logits[order[0] as usize];
        if !largest.is_finite() {
            return order[0];
        }
        let weight = |id: u32| f64::from((logits[id as usize] - largest) / params.temperature).exp();
        let mut weights: Vec<f64> = order.iter().map(|&id| weight(id)).collect();
        if params.top_p < 1.0 {
            let reach = weights.iter().sum::<f64>() * f64::from(params.top_p);
            let mut sum = 0.0;
            let kept = weights.iter().position(|weight| {
                sum += weight;
                sum >= reach
            });
            weights.truncate(kept.map_or(weights.len(), |last| last + 1));
        }
        let target = weights.iter().sum::<f64>() * f64::from(random::uniform(params.seed, position));
        let mut sum = 0.0;
        for (weight, &id) in weights.iter().zip(&order) {
            sum += weight;
            if sum > target {
                return id;
            }
        }
        order[weights.len() - 1]
    }

    #[test]
    fn a_draw_is_that_of_a_whole_sort() {
        let mut stream = random::Stream::new(17);
        let mut sampler = Sampler::default();
        let mut drawn = std::collections::BTreeSet::new();
        for round in 0..4000u64 {
            let vocabulary = [1, 2, 7, 300, 1000][stream.below(5)];
            // Flat, usual and sure ones; many ties; some of no use.
            let size = [0.0, 0.01, 1.0, 3.0, 30.0][stream.below(5)];
            let steps = [1.0, 1e4][stream.below(2)];
            let mut logits: Vec<f32> =
                (0..vocabulary).map(|_| (stream.normal() * size * steps).round() / steps).collect();
            let strange = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 3e38, -3e38];
            if round % 4 == 0 {
                for _ in 0..stream.below(4) {
                    logits[stream.below(vocabulary)] = strange[stream.below(strange.len())];
                }
            }
            let seen: Vec<u32> =
                (0..stream.below(3 * vocabulary)).map(|_| stream.below(vocabulary + 2) as u32).collect();
            let params = SampleParams {
                temperature: [0.0, 1e-3, 0.7, 1.0, 30.0][stream.below(5)],
                top_k: [0, 0, 1, 5, 50, 100_000][stream.below(6)],
                top_p: [1.0, 1.0, 0.95, 0.5, 1e-6][stream.below(5)],
                repetition_penalty: [1.0, 1.3][stream.below(2)],
                seed: round,
            };
            let right = sorted(&mut logits.clone(), &seen, &params, round);
            let found = sampler.draw(&mut logits.clone(), &seen, &params, round);
            assert_eq!(found, right, "{params:?}, {vocabulary} tokens, size {size}, steps {steps}");
            drawn.insert(found);
        }
        assert!(drawn.len() > 300, "{} different tokens are no test", drawn.len());
    }

    #[test]
    fn draws_take_no_memory_beyond_a_vocabularys() {
        let mut sampler = Sampler::over(Vec::with_capacity(100));
        let start = sampler.order.as_ptr();
        let seen: Vec<u32> = (0..1000).map(|id| id % 120).collect();
        for position in 0..100 {
            let params = SampleParams { repetition_penalty: 1.1, temperature: 50.0, ..params() };
            let mut logits: Vec<f32> = (0..100).map(|id| (id % 7) as f32).collect();
            sampler.draw(&mut logits, &seen, &params, position);
        }
        assert_eq!((sampler.order.as_ptr(), sampler.order.capacity()), (start, 100));
    }

    #[test]
    fn greedy_takes_the_lowest_among_equals_and_never_nan() {
        assert_eq!(argmax(&[f32::NAN, 1.0, 3.0, 3.0]), 2);
        assert_eq!(argmax(&[f32::NAN, f32::NAN]), 0);
        assert_eq!(sample(&mut [0.0, 2.0, 2.0], &[], &SampleParams::default(), 9), 1);
    }

    #[test]
    fn penalty_moves_both_signs_down() {
        let greedy = SampleParams { repetition_penalty: 2.0, ..SampleParams::default() };
        assert_eq!(sample(&mut [3.0, 2.0], &[0, 0], &greedy, 0), 1);
        assert_eq!(sample(&mut [-1.0, -1.5], &[0], &greedy, 0), 1);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [1.0f32, 0.0, -1.0, 2.0];
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let mut counts = [0u32; 4];
        for position in 0..20_000 {
            counts[sample(&mut logits.clone(), &[], &params(), position) as usize] += 1;
        }
        for (logit, count) in logits.iter().zip(counts) {
            let wanted = f64::from(*logit).exp() / total;
            assert!((f64::from(count) / 20_000.0 - wanted).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [1.0f32, 0.0, -1.0, 2.0];
        for position in 0..500 {
            let top_k = SampleParams { top_k: 2, ..params() };
            assert!([0, 3].contains(&sample(&mut logits.clone(), &[], &top_k, position)));
            let top_p = SampleParams { top_p: 0.5, ..params() };
            assert_eq!(sample(&mut logits.clone(), &[], &top_p, position), 3);
        }
    }
}
