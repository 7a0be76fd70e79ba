// What happens to four neighbouring rows `y` of `W x` for one column: bias, activation (gated: pairs
// of rows become one), logit scale and soft cap, residual; then they are stored. An expert (EXPERT)
// stores only for rows that take it, and what it adds to `out`, which is not gated, times its share.
override GATED: bool = false;
override ACCUMULATE: bool = false; // the residual is `out` itself
override LOGIT_SCALE: f32 = 1.0;
override SOFTCAP: f32 = 0.0;
override OUT_STRIDE: u32 = 32u;
override OUT_AT: u32 = 0u; // column of `out` for the shard's first row

@group(0) @binding(6) var<storage, read_write> out: array<f32>;
#if RESIDUAL
@group(0) @binding(7) var<storage, read> residual: array<f32>;
#endif
#if EXPERT
// How much the expert counts in each row; 0 where the row does not take it.
@group(0) @binding(2) var<storage, read> shares: array<f32>;

fn is_taken(first: u32, end: u32) -> bool {
    for (var row = first; row < end; row++) {
        if (shares[row] != 0.0) {
            return true;
        }
    }
    return false;
}
#endif

fn put(at: u32, value: f32) {
    var result = soft_cap(value * LOGIT_SCALE, SOFTCAP);
#if RESIDUAL
    result += residual[at];
#endif
    if (ACCUMULATE) {
        result += out[at];
    }
    out[at] = result;
}

// `row` is a multiple of 4; rows from ROWS on are dropped.
fn finish(row: u32, column: u32, sums: vec4<f32>) {
    if (row >= ROWS) {
        return;
    }
    var y = sums;
#if BIAS
    let last = ROWS - 1u;
    y += vec4<f32>(
        bias_of(row),
        bias_of(min(row + 1u, last)),
        bias_of(min(row + 2u, last)),
        bias_of(min(row + 3u, last)),
    );
#endif
#if EXPERT
    let share = shares[column];
    if (share == 0.0) {
        return;
    }
    if (!GATED) {
        y *= share;
    }
#endif
    let at = column * OUT_STRIDE + OUT_AT;
    if (GATED) {
        put(at + row / 2u, activate(y.x) * y.y);
        if (row + 2u < ROWS) {
            put(at + row / 2u + 1u, activate(y.z) * y.w);
        }
    } else {
        put(at + row, activate(y.x));
        if (row + 1u < ROWS) {
            put(at + row + 1u, activate(y.y));
        }
        if (row + 2u < ROWS) {
            put(at + row + 2u, activate(y.z));
        }
        if (row + 3u < ROWS) {
            put(at + row + 3u, activate(y.w));
        }
    }
}
