// Query heads as attention takes them: normed over their features, rotated, in fours of features.
#if Q_NORM
@group(0) @binding(6) var<storage, read> q_norm: array<f32>;

override Q_LAYER: bool = false;
override Q_EPS: f32 = 0.00001;
override Q_OFFSET: f32 = 0.0;
override Q_BIAS: u32 = 32u; // where the norm's bias starts
#endif

// A feature of the query that begins at `base`, normed.
fn normed_feature(query: u32, base: u32, d: u32) -> f32 {
    let value = qkv[base + d];
#if Q_NORM
    let of_query = statistics[query];
    var normed = (value - of_query.x) * of_query.y * (q_norm[d] + Q_OFFSET);
    if (Q_LAYER) {
        normed += q_norm[Q_BIAS + d];
    }
    return normed;
#else
    return value;
#endif
}

// A feature of the query at `position` that begins at `base`, normed and rotated; zero past the end.
fn query_feature(query: u32, base: u32, position: u32, d: u32) -> f32 {
    if (d >= HEAD_DIM) {
        return 0.0;
    }
    let value = normed_feature(query, base, d);
#if ROPE
    if (d < 2u * PAIRS) {
        let second = select(d >= PAIRS, d % 2u == 1u, ADJACENT);
        let distance = select(PAIRS, 1u, ADJACENT);
        let pair = select(d % PAIRS, d / 2u, ADJACENT);
        let other = normed_feature(query, base, select(d + distance, d - distance, second));
        let turn = rope[position * PAIRS + pair];
        return value * turn.x + select(-other, other, second) * turn.y;
    }
#endif
    return value;
}

#if Q_NORM
// As `head_statistics`, of the query that begins at `base`.
fn query_statistics(base: u32) -> vec2<f32> {
    var mean = 0.0;
    if (Q_LAYER) {
        for (var d = 0u; d < HEAD_DIM; d++) {
            mean += qkv[base + d];
        }
        mean /= f32(HEAD_DIM);
    }
    var squares = 0.0;
    for (var d = 0u; d < HEAD_DIM; d++) {
        let distance = qkv[base + d] - mean;
        squares += distance * distance;
    }
    return vec2<f32>(mean, 1.0 / sqrt(squares / f32(HEAD_DIM) + Q_EPS));
}
#endif

// Four features from `d` on.
fn query_four(query: u32, base: u32, position: u32, d: u32) -> vec4<f32> {
    return vec4<f32>(
        query_feature(query, base, position, d),
        query_feature(query, base, position, d + 1u),
        query_feature(query, base, position, d + 2u),
        query_feature(query, base, position, d + 3u),
    );
}
