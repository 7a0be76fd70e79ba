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
    let mut best = 0;
    let mut value = f32::NEG_INFINITY;
    for (index, &logit) in logits.iter().enumerate() {
        if logit > value {
            best = index;
            value = logit;
        }
    }
    best as u32
}

/// Chooses a token.
///
/// In this order: repetition penalty over `seen`; temperature; the `top_k` largest (ties to the lower
/// id); softmax; the shortest prefix of the sorted probabilities that reaches `top_p`; then the first
/// token at which the running sum exceeds `u` times their total, `u` = [`random::uniform`] of `seed` and
/// `position` (the chosen token's own position). It depends on nothing else, so a batch, a restart or
/// another device draws the same token.
///
/// `logits`: `[vocabulary]`, changed in place. `seen` may repeat ids.
pub fn sample(logits: &mut [f32], seen: &[u32], params: &SampleParams, position: u64) -> u32 {
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
    let mut order: Vec<u32> = (0..logits.len() as u32).filter(|&id| !logits[id as usize].is_nan()).collect();
    if order.is_empty() {
        return 0;
    }
    let descending = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> SampleParams {
        SampleParams { temperature: 1.0, seed: 3, ..SampleParams::default() }
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
