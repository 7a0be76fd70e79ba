// Draws a token from a row of logits, as halfbyte's `sample` does on the host: penalty, temperature, top-k,
// top-p, then the token at which the running sum of the sorted probabilities exceeds a random share. Nothing
// is sorted: a token's rank is that of its KEY, 32 bits in the order of logits, and the key that a running
// sum crosses is found digit by digit. Three passes read all logits; the others read the few tokens
// ("candidates") that can still be chosen: each thread keeps its own in `candidates`.
//
// Sums are in f32, the host's in f64: where the random share falls within about 1e-5 of a boundary between
// two tokens, the neighbour may be drawn.
//
// Grid: [outputs, 1, 1].
override THREADS: u32 = 128u;
override VOCABULARY: u32 = 32u;
override STRIDE: u32 = 32u;

#include "places"
#include "random"

@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> chosen: array<u32>;
// A bit for each token that a sequence has seen, `[sequences, SEEN_WORDS]`.
@group(0) @binding(3) var<storage, read_write> seen: array<u32>;
// `[outputs, STRIDE rounded up to THREADS]`
@group(0) @binding(4) var<storage, read_write> candidates: array<u32>;

override SEEN_WORDS: u32 = 1u;

const DIGITS: u32 = 16u;
override BIN_WORDS: u32 = DIGITS * THREADS;
var<workgroup> bins: array<f32, BIN_WORDS>; // [DIGITS, THREADS]
var<workgroup> parts: array<f32, THREADS>;
var<workgroup> totals: array<f32, DIGITS>;
var<workgroup> best_keys: array<u32, THREADS>;
var<workgroup> best_tokens: array<u32, THREADS>;

// Of this workgroup's row.
var<private> logits_at: u32;
var<private> seen_at: u32;
var<private> candidates_at: u32;
var<private> own_candidates: u32;
var<private> penalty: f32;
var<private> temperature: f32;
var<private> largest: f32;

fn logit_of(token: u32) -> f32 {
    let logit = logits[logits_at + token];
    if (penalty != 1.0) {
        if (((seen[seen_at + token / 32u] >> (token % 32u)) & 1u) == 1u) {
            return select(logit * penalty, logit / penalty, logit > 0.0);
        }
    }
    return logit;
}

// Larger for larger logits; 0 for what is no number and never chosen.
fn key_of(logit: f32) -> u32 {
    let bits = bitcast<u32>(logit);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return 0u;
    }
    return select(bits | 0x80000000u, ~bits, bits >> 31u == 1u);
}

fn logit_with(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, key >> 31u == 1u));
}

fn weight_of(logit: f32) -> f32 {
    return exp((logit - largest) / temperature);
}

// Which sixteenth of the range that matters for a top-k of all tokens.
fn coarse_bin(logit: f32) -> u32 {
    return u32(clamp((largest - logit) / temperature, 0.0, 15.0));
}

fn candidate(index: u32, thread: u32) -> u32 {
    return candidates[candidates_at + index * THREADS + thread];
}

fn sum_of_all(thread: u32, value: f32) -> f32 {
    workgroupBarrier();
    parts[thread] = value;
    for (var step = THREADS / 2u; step > 0u; step >>= 1u) {
        workgroupBarrier();
        if (thread < step) {
            parts[thread] += parts[thread + step];
        }
    }
    workgroupBarrier();
    return parts[0];
}

// Sums of every bin over all threads, to `totals`.
fn add_bins(thread: u32) {
    workgroupBarrier();
    if (thread < DIGITS) {
        var sum = 0.0;
        for (var i = 0u; i < THREADS; i++) {
            // Each begins elsewhere, so that they read different banks.
            sum += bins[thread * THREADS + (i + thread) % THREADS];
        }
        totals[thread] = sum;
    }
    workgroupBarrier();
}

// After `add_bins`, which ends with a barrier.
fn clear_bins(thread: u32) {
    for (var digit = 0u; digit < DIGITS; digit++) {
        bins[digit * THREADS + thread] = 0.0;
    }
}

struct Found {
    key: u32,
    before: f32, // the sum over larger keys
    group: f32, // the sum over equal keys
}

// The largest key, not below `least`, at which the sum over keys from the top down reaches `goal` (exceeds
// it, if `beyond`); the smallest key if none does. Sums count tokens or add their weights.
fn find(thread: u32, least: u32, goal: f32, beyond: bool, counting: bool) -> Found {
    var found = Found(0u, 0.0, 0.0);
    for (var shift = 28u; shift < 32u; shift -= 4u) {
        clear_bins(thread);
        for (var i = 0u; i < own_candidates; i++) {
            let logit = logit_of(candidate(i, thread));
            let key = key_of(logit);
            // The shift by 32 in two steps.
            if (key >= least && ((key >> shift) >> 4u) == ((found.key >> shift) >> 4u)) {
                let at = ((key >> shift) & 15u) * THREADS + thread;
                bins[at] += select(weight_of(logit), 1.0, counting);
            }
        }
        add_bins(thread);
        var sum = found.before;
        var digit = 0u;
        var crossed = false;
        for (var i = 0u; i < DIGITS; i++) {
            let total = totals[DIGITS - 1u - i];
            if (!crossed && total > 0.0) {
                // If nothing crosses, this is the smallest that there is.
                digit = DIGITS - 1u - i;
                found.before = sum;
                found.group = total;
                sum += total;
                crossed = select(sum >= goal, sum > goal, beyond);
            }
        }
        found.key |= digit << shift;
    }
    return found;
}

// The `rank`th token, from 0, of those with this key.
fn token_with(thread: u32, key: u32, rank: f32) -> u32 {
    var low = 0u;
    var high = VOCABULARY - 1u;
    for (var step = 0u; step < 32u - countLeadingZeros(VOCABULARY); step++) {
        let middle = (low + high) / 2u;
        var count = 0.0;
        for (var i = 0u; i < own_candidates; i++) {
            let token = candidate(i, thread);
            if (token <= middle && key_of(logit_of(token)) == key) {
                count += 1.0;
            }
        }
        if (sum_of_all(thread, count) > rank) {
            high = middle;
        } else {
            low = min(middle + 1u, high);
        }
    }
    return high;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let output = workgroup.x;
    let row = output_row(output);
    temperature = bitcast<f32>(draw_word(output, 0u));
    let top_k = draw_word(output, 1u);
    let top_p = bitcast<f32>(draw_word(output, 2u));
    penalty = bitcast<f32>(draw_word(output, 3u));
    let seed = vec2<u32>(draw_word(output, 4u), draw_word(output, 5u));
    logits_at = output * STRIDE;
    seen_at = sequence_of(row) * SEEN_WORDS;
    candidates_at = output * ((STRIDE + THREADS - 1u) / THREADS * THREADS);
    let greedy = temperature == 0.0;

    // The row's own token has been seen.
    if (thread == 0u) {
        var token = token_of(row);
        if (places[3] == 1u) {
            token = chosen[row];
        }
        seen[seen_at + token / 32u] |= 1u << (token % 32u);
    }
    storageBarrier();

    var best = 0u;
    var best_token = 0u;
    for (var token = thread; token < VOCABULARY; token += THREADS) {
        var logit = logit_of(token);
        // Zeros are equal to the argmax, not to the order of a draw.
        if (greedy && (bitcast<u32>(logit) << 1u) == 0u) {
            logit = 0.0;
        }
        let key = key_of(logit);
        if (key > best) {
            best = key;
            best_token = token;
        }
    }
    best_keys[thread] = best;
    best_tokens[thread] = best_token;
    for (var step = THREADS / 2u; step > 0u; step >>= 1u) {
        workgroupBarrier();
        if (thread < step) {
            let other = best_keys[thread + step];
            let other_token = best_tokens[thread + step];
            let mine = best_keys[thread];
            if (other > mine || (other == mine && other_token < best_tokens[thread])) {
                best_keys[thread] = other;
                best_tokens[thread] = other_token;
            }
        }
    }
    workgroupBarrier();
    let best_key = best_keys[0];
    largest = logit_with(best_key);
    // Infinite ones are chosen as they are.
    let certain = greedy || (bitcast<u32>(largest) & 0x7f800000u) == 0x7f800000u || best_key == 0u;
    if (greedy) {
        temperature = 1.0;
    }

    // Candidates: with a top-k, a coarse superset of it; without, what is heavy enough for the sum over
    // heavier tokens not to pass the goal before.
    let share = uniform_number(seed, position_of(row) + 1u);
    var last_bin = 15u;
    var lightest = 0.0;
    var total = 0.0;
    if (top_k > 0u) {
        clear_bins(thread);
        for (var token = thread; token < VOCABULARY; token += THREADS) {
            let logit = logit_of(token);
            if (key_of(logit) > 0u) {
                bins[coarse_bin(logit) * THREADS + thread] += 1.0;
            }
        }
        add_bins(thread);
        var count = 0.0;
        for (var bin = 0u; bin < DIGITS; bin++) {
            if (count < f32(top_k)) {
                last_bin = bin;
                count += totals[bin];
            }
        }
    } else {
        var sum = 0.0;
        for (var token = thread; token < VOCABULARY; token += THREADS) {
            let logit = logit_of(token);
            if (key_of(logit) > 0u) {
                sum += weight_of(logit);
            }
        }
        total = sum_of_all(thread, sum);
        let goal = select(share, top_p, top_p < 1.0);
        lightest = 0.5 * (1.0 - goal) * total / f32(VOCABULARY);
    }
    own_candidates = 0u;
    for (var token = thread; token < VOCABULARY; token += THREADS) {
        let logit = logit_of(token);
        if (key_of(logit) > 0u && coarse_bin(logit) <= last_bin && weight_of(logit) >= lightest) {
            candidates[candidates_at + own_candidates * THREADS + thread] = token;
            own_candidates++;
        }
    }

    // Of equal logits at the lower end, only the first few may be kept.
    var least = 1u;
    var kept_ties = 3.0e38;
    if (top_k > 0u) {
        let found = find(thread, least, f32(top_k), false, true);
        least = found.key;
        kept_ties = max(f32(top_k) - found.before, 1.0);
        var sum = 0.0;
        for (var i = 0u; i < own_candidates; i++) {
            let logit = logit_of(candidate(i, thread));
            if (key_of(logit) > least) {
                sum += weight_of(logit);
            }
        }
        let ties = min(kept_ties, found.group);
        total = sum_of_all(thread, sum) + ties * weight_of(logit_with(least));
    }
    if (top_p < 1.0) {
        let reach = total * top_p;
        let found = find(thread, least, reach, false, false);
        let weight = weight_of(logit_with(found.key));
        let present = max(round(found.group / weight), 1.0);
        let most = select(present, min(present, kept_ties), found.key == least);
        let ties = clamp(ceil((reach - found.before) / weight), 1.0, most);
        least = found.key;
        kept_ties = ties;
        total = found.before + ties * weight;
    }
    let target_sum = total * share;
    let found = find(thread, least, target_sum, true, false);
    let weight = weight_of(logit_with(found.key));
    let present = max(round(found.group / weight), 1.0);
    let most = select(present, min(present, kept_ties), found.key == least);
    let rank = clamp(floor((target_sum - found.before) / weight), 0.0, most - 1.0);
    let drawn = token_with(thread, found.key, rank);
    if (thread == 0u) {
        chosen[output] = select(drawn, best_tokens[0], certain);
    }
}
