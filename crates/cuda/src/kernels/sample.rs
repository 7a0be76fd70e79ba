//! Draws a token from a row of logits, as [`halfbyte_backend::sample()`] does on the host: penalty, temperature,
//! top-k, top-p, then the token at which the running sum of the sorted probabilities exceeds a random share. The way
//! is that of the wgpu backend's `sample.wgsl`. Nothing is sorted: a token's rank is that of its key, 32 bits in the
//! order of logits, and the key that a running sum crosses is found digit by digit. Three passes read all logits; the
//! others read the few tokens ("candidates") that can still be chosen, of which each unit keeps its own.
//!
//! Sums are in f32, the host's in f64: where the random share falls within about 1e-5 of a boundary between two
//! tokens, the neighbour may be drawn. One launch, a cube an output.

use super::places::{DRAW, output_row, row_word};
use super::random::uniform;
use cubecl::prelude::*;

/// Digits of a key, 4 bits each, and bins of a histogram.
const DIGITS: usize = 16;

/// What the logits of a cube's row mean.
#[derive(CubeType, Clone, Copy)]
struct Row {
    /// Where its logits begin.
    at: usize,
    /// Where the bits of the tokens begin that its sequence has seen.
    seen_at: usize,
    /// Its own token, which has been seen, too.
    own: u32,
    penalty: f32,
    temperature: f32,
    /// The largest logit, as it is penalized.
    largest: f32,
}

/// Where a running sum over keys from the top down crosses a goal.
#[derive(CubeType, Clone, Copy)]
struct Found {
    key: u32,
    /// The sum over larger keys.
    before: f32,
    /// The sum over equal keys.
    group: f32,
}

/// The kernel. `logits` `[outputs, stride]`; `chosen` `[outputs]`; `seen` `[sequences, seen_words]`, a bit a token;
/// `candidates` `[outputs, stride rounded up to whole units]`.
#[cube(launch_unchecked)]
pub(crate) fn sample(
    logits: &Array<f32>,
    places: &Array<u32>,
    chosen: &mut Array<u32>,
    seen: &mut Array<u32>,
    candidates: &mut Array<u32>,
    vocabulary: u32,
    stride: u32,
    seen_words: u32,
    #[comptime] units: usize,
) {
    let mut bins = SharedMemory::<f32>::new(comptime!(DIGITS * units));
    let mut parts = SharedMemory::<f32>::new(units);
    let mut totals = SharedMemory::<f32>::new(DIGITS);
    let mut best_keys = SharedMemory::<u32>::new(units);
    let mut best_tokens = SharedMemory::<u32>::new(units);

    let unit = UNIT_POS as usize;
    let output = CUBE_POS_X as usize;
    let tokens = vocabulary as usize;
    let place = output_row(places, output);
    let draw = places[6] as usize + output * DRAW;
    let wanted_temperature = f32::reinterpret(places[draw]);
    let top_k = places[draw + 1];
    let top_p = f32::reinterpret(places[draw + 2]);
    let greedy = wanted_temperature == 0.0f32;
    let mut own = row_word(places, place, 0usize);
    if places[3] == 1u32 {
        own = chosen[place];
    }
    let seen_at = row_word(places, place, 1usize) as usize * seen_words as usize;
    // For later draws; this one knows its own token.
    if unit == 0 {
        seen[seen_at + own as usize / 32] |= 1u32 << (own % 32u32);
    }
    let unscaled = Row {
        at: output * stride as usize,
        seen_at,
        own,
        penalty: f32::reinterpret(places[draw + 3]),
        temperature: select(greedy, 1.0f32, wanted_temperature),
        largest: 0.0f32,
    };

    let mut best = 0u32;
    let mut best_token = 0u32;
    let mut token = unit;
    while token < tokens {
        let mut logit = logit_of(logits, seen, &unscaled, token);
        // Zeros are equal to the argmax, not to the order of a draw.
        if greedy && (u32::reinterpret(logit) << 1u32) == 0u32 {
            logit = 0.0f32;
        }
        let key = key_of(logit);
        if key > best {
            best = key;
            best_token = token as u32;
        }
        token += units;
    }
    best_keys[unit] = best;
    best_tokens[unit] = best_token;
    let mut step = comptime!(units / 2).runtime();
    while step > 0 {
        sync_cube();
        if unit < step {
            let other = best_keys[unit + step];
            let other_token = best_tokens[unit + step];
            let mine = best_keys[unit];
            if other > mine || (other == mine && other_token < best_tokens[unit]) {
                best_keys[unit] = other;
                best_tokens[unit] = other_token;
            }
        }
        step /= 2;
    }
    sync_cube();
    let best_key = best_keys[0];
    let largest = logit_with(best_key);
    // Infinite ones are chosen as they are.
    let certain =
        greedy || (u32::reinterpret(largest) & 0x7F80_0000u32) == 0x7F80_0000u32 || best_key == 0u32;
    let row = Row {
        at: unscaled.at,
        seen_at: unscaled.seen_at,
        own: unscaled.own,
        penalty: unscaled.penalty,
        temperature: unscaled.temperature,
        largest,
    };

    // Candidates: with a top-k, a coarse superset of it; without, what is heavy enough for the sum over heavier
    // tokens not to pass the goal before.
    let share = uniform(places[draw + 4], places[draw + 5], row_word(places, place, 2usize) + 1u32);
    let mut last_bin = 15u32;
    let mut lightest = 0.0f32;
    let mut total = 0.0f32;
    if top_k > 0u32 {
        clear_bins(&mut bins, units);
        let mut token = unit;
        while token < tokens {
            let logit = logit_of(logits, seen, &row, token);
            if key_of(logit) > 0u32 {
                bins[coarse_bin(logit, &row) as usize * units + unit] += 1.0f32;
            }
            token += units;
        }
        add_bins(&bins, &mut parts, &mut totals, units);
        let mut count = 0.0f32;
        for bin in 0..DIGITS {
            if count < f32::cast_from(top_k) {
                last_bin = bin as u32;
                count += totals[bin];
            }
        }
    } else {
        let mut sum = 0.0f32;
        let mut token = unit;
        while token < tokens {
            let logit = logit_of(logits, seen, &row, token);
            if key_of(logit) > 0u32 {
                sum += weight_of(logit, &row);
            }
            token += units;
        }
        total = sum_of_all(sum, &mut parts, units);
        let goal = select(top_p < 1.0f32, top_p, share);
        lightest = 0.5f32 * (1.0f32 - goal) * total / f32::cast_from(vocabulary);
    }
    let candidates_at = output * (stride as usize).div_ceil(units) * units + unit;
    let mut own_candidates = 0usize;
    let mut token = unit;
    while token < tokens {
        let logit = logit_of(logits, seen, &row, token);
        let heavy = coarse_bin(logit, &row) <= last_bin && weight_of(logit, &row) >= lightest;
        if key_of(logit) > 0u32 && heavy {
            candidates[candidates_at + own_candidates * units] = token as u32;
            own_candidates += 1;
        }
        token += units;
    }

    // Of equal logits at the lower end, only the first few may be kept.
    let mut least = 1u32;
    let mut kept_ties = 3.0e38f32;
    if top_k > 0u32 {
        let goal = f32::cast_from(top_k);
        let found = find(
            logits,
            seen,
            candidates,
            candidates_at,
            own_candidates,
            &row,
            &mut bins,
            &mut parts,
            &mut totals,
            least,
            goal,
            false,
            true,
            units,
        );
        least = found.key;
        kept_ties = max(goal - found.before, 1.0f32);
        let mut sum = 0.0f32;
        for i in 0..own_candidates {
            let logit = logit_of(logits, seen, &row, candidates[candidates_at + i * units] as usize);
            if key_of(logit) > least {
                sum += weight_of(logit, &row);
            }
        }
        let ties = min(kept_ties, found.group);
        total = sum_of_all(sum, &mut parts, units) + ties * weight_of(logit_with(least), &row);
    }
    if top_p < 1.0f32 {
        let reach = total * top_p;
        let found = find(
            logits,
            seen,
            candidates,
            candidates_at,
            own_candidates,
            &row,
            &mut bins,
            &mut parts,
            &mut totals,
            least,
            reach,
            false,
            false,
            units,
        );
        let weight = weight_of(logit_with(found.key), &row);
        let present = max(f32::round(found.group / weight), 1.0f32);
        let most = select(found.key == least, min(present, kept_ties), present);
        let ties = clamp(f32::ceil((reach - found.before) / weight), 1.0f32, most);
        least = found.key;
        kept_ties = ties;
        total = found.before + ties * weight;
    }
    let target = total * share;
    let found = find(
        logits,
        seen,
        candidates,
        candidates_at,
        own_candidates,
        &row,
        &mut bins,
        &mut parts,
        &mut totals,
        least,
        target,
        true,
        false,
        units,
    );
    let weight = weight_of(logit_with(found.key), &row);
    let present = max(f32::round(found.group / weight), 1.0f32);
    let most = select(found.key == least, min(present, kept_ties), present);
    let rank = clamp(f32::floor((target - found.before) / weight), 0.0f32, most - 1.0f32);

    // The `rank`th token, from 0, of those with this key.
    let mut low = 0u32;
    let mut high = vocabulary - 1u32;
    while low < high {
        let middle = (low + high) / 2u32;
        let mut count = 0.0f32;
        for i in 0..own_candidates {
            let token = candidates[candidates_at + i * units];
            if token <= middle && key_of(logit_of(logits, seen, &row, token as usize)) == found.key {
                count += 1.0f32;
            }
        }
        if sum_of_all(count, &mut parts, units) > rank {
            high = middle;
        } else {
            low = middle + 1u32;
        }
    }
    if unit == 0 {
        chosen[output] = select(certain, best_tokens[0], high);
    }
}

#[cube]
fn logit_of(logits: &Array<f32>, seen: &Array<u32>, row: &Row, token: usize) -> f32 {
    let mut logit = logits[row.at + token];
    if row.penalty != 1.0f32 {
        let bit = (seen[row.seen_at + token / 32] >> (token as u32 % 32u32)) & 1u32;
        if bit == 1u32 || token as u32 == row.own {
            logit = select(logit > 0.0f32, logit / row.penalty, logit * row.penalty);
        }
    }
    logit
}

/// Larger for larger logits; 0 for what is no number and never chosen.
#[cube]
fn key_of(logit: f32) -> u32 {
    let bits = u32::reinterpret(logit);
    let key = select(bits >> 31u32 == 1u32, !bits, bits | 0x8000_0000u32);
    select((bits & 0x7FFF_FFFFu32) > 0x7F80_0000u32, 0u32, key)
}

#[cube]
fn logit_with(key: u32) -> f32 {
    f32::reinterpret(select(key >> 31u32 == 1u32, key & 0x7FFF_FFFFu32, !key))
}

#[cube]
fn weight_of(logit: f32, row: &Row) -> f32 {
    f32::exp((logit - row.largest) / row.temperature)
}

/// Which sixteenth of the range that matters for a top-k of all tokens.
#[cube]
fn coarse_bin(logit: f32, row: &Row) -> u32 {
    u32::cast_from(clamp((row.largest - logit) / row.temperature, 0.0f32, 15.0f32))
}

/// The sum of all units' values, for all.
#[cube]
fn sum_of_all(value: f32, parts: &mut SharedMemory<f32>, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    parts[unit] = value;
    let mut step = comptime!(units / 2).runtime();
    while step > 0 {
        sync_cube();
        if unit < step {
            parts[unit] += parts[unit + step];
        }
        step /= 2;
    }
    sync_cube();
    parts[0]
}

#[cube]
fn clear_bins(bins: &mut SharedMemory<f32>, #[comptime] units: usize) {
    sync_cube();
    #[unroll]
    for digit in 0..DIGITS {
        bins[digit * units + UNIT_POS as usize] = 0.0f32;
    }
}

/// Sums every bin over all units, to `totals`: a sixteenth of the units takes a bin.
#[cube]
fn add_bins(
    bins: &SharedMemory<f32>,
    parts: &mut SharedMemory<f32>,
    totals: &mut SharedMemory<f32>,
    #[comptime] units: usize,
) {
    let lanes = comptime!(units / DIGITS);
    let unit = UNIT_POS as usize;
    let lane = unit % lanes;
    sync_cube();
    let mut sum = 0.0f32;
    for i in 0..DIGITS {
        sum += bins[unit / lanes * units + i * lanes + lane];
    }
    parts[unit] = sum;
    let mut step = comptime!(units / DIGITS / 2).runtime();
    while step > 0 {
        sync_cube();
        if lane < step {
            parts[unit] += parts[unit + step];
        }
        step /= 2;
    }
    if lane == 0 {
        totals[unit / lanes] = parts[unit];
    }
    sync_cube();
}

/// The largest key, not below `least`, at which the sum over keys from the top down reaches `goal` (exceeds it, if
/// `beyond`); the smallest key if none does. Sums count tokens or add their weights.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what a cube shares has no other name")]
fn find(
    logits: &Array<f32>,
    seen: &Array<u32>,
    candidates: &Array<u32>,
    candidates_at: usize,
    own_candidates: usize,
    row: &Row,
    bins: &mut SharedMemory<f32>,
    parts: &mut SharedMemory<f32>,
    totals: &mut SharedMemory<f32>,
    least: u32,
    goal: f32,
    #[comptime] beyond: bool,
    #[comptime] counting: bool,
    #[comptime] units: usize,
) -> Found {
    let mut found_key = 0u32;
    let mut before = 0.0f32;
    let mut group = 0.0f32;
    for round in 0..8u32 {
        let shift = 28u32 - round * 4u32;
        clear_bins(bins, units);
        for i in 0..own_candidates {
            let logit = logit_of(logits, seen, row, candidates[candidates_at + i * units] as usize);
            let key = key_of(logit);
            // The shift by 32 in two steps.
            if key >= least && ((key >> shift) >> 4u32) == ((found_key >> shift) >> 4u32) {
                let at = ((key >> shift) & 15u32) as usize * units + UNIT_POS as usize;
                let mut weight = 1.0f32;
                if comptime!(!counting) {
                    weight = weight_of(logit, row);
                }
                bins[at] += weight;
            }
        }
        add_bins(bins, parts, totals, units);
        let mut sum = before;
        let mut digit = 0u32;
        let mut crossed = false;
        for i in 0..DIGITS {
            let total = totals[DIGITS - 1 - i];
            if !crossed && total > 0.0f32 {
                // If nothing crosses, this is the smallest that there is.
                digit = (DIGITS - 1 - i) as u32;
                before = sum;
                group = total;
                sum += total;
                if comptime!(beyond) {
                    crossed = sum > goal;
                } else {
                    crossed = sum >= goal;
                }
            }
        }
        found_key |= digit << shift;
    }
    Found { key: found_key, before, group }
}
