// Four neighbouring elements of a dense matrix, `[rows, GROUPS * 32]` in DTYPE (0 f32, 1 f16, 2 bf16).
//
// `words` are the 16 bytes that hold them; `quad` counts fours of elements.
fn dense_word(quad: u32, dtype: u32) -> u32 {
    return select(quad >> 1u, quad, dtype == 0u);
}

fn dense_quad(words: vec4<u32>, quad: u32, dtype: u32) -> vec4<f32> {
    if (dtype == 0u) {
        return bitcast<vec4<f32>>(words);
    }
    let pair = select(words.xy, words.zw, (quad & 1u) == 1u);
    if (dtype == 1u) {
        return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
    }
    return bitcast<vec4<f32>>(vec4<u32>(pair.x << 16u, pair.x & 0xffff0000u, pair.y << 16u, pair.y & 0xffff0000u));
}
