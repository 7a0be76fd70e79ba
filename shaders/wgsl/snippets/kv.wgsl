// How a head's key or value is kept: a record of RECORD words, codes (CODE_WORDS) and for the quantized types (2 is Q8,
// 3 is Q4) one f16 scale per block of 32 features, two a word (SCALE_WORDS). In the cache `[sequences, SHARD_HEADS]`
// of HEAD_WORDS words, a head has the codes of all its slots, `[slots, CODE_WORDS]`, and from SCALES_AT on their
// scales, `[slots, SCALE_WORDS]`. Both begin at a multiple of 16 bytes.
override KV_DTYPE: u32 = 1u; // 0 f32, 1 f16, 2 q8, 3 q4
override CODE_WORDS: u32 = 16u;
override SCALE_WORDS: u32 = 0u;
override RECORD: u32 = CODE_WORDS + SCALE_WORDS;
override SHARD_HEADS: u32 = 1u;
override HEAD_WORDS: u32 = 16u;
override SCALES_AT: u32 = 16u;
override SLOTS: u32 = 1u;
override RING: bool = false; // positions go around: position p is in slot p % SLOTS

// Where a head of a sequence begins.
fn head_at(sequence: u32, head: u32) -> u32 {
    return (sequence * SHARD_HEADS + head) * HEAD_WORDS;
}

// Where word `word` of a position's record lies, of the head that begins at `head`.
fn word_at(head: u32, position: u32, word: u32) -> u32 {
    let slot = select(position, position % SLOTS, RING);
    if (word < CODE_WORDS) {
        return head + slot * CODE_WORDS + word;
    }
    return head + SCALES_AT + slot * SCALE_WORDS + (word - CODE_WORDS);
}

// The nearest f16, ties to even. `pack2x16float` leaves the rounding to the driver.
fn f16_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x47800000u) {
        return sign | select(0x7c00u, 0x7e00u, magnitude > 0x7f800000u);
    }
    if (magnitude < 0x38800000u) {
        return sign | u32(round(bitcast<f32>(magnitude) * 16777216.0));
    }
    return sign | ((magnitude + 0xfffu + ((magnitude >> 13u) & 1u) - 0x38000000u) >> 13u);
}

fn kv_levels() -> f32 {
    return select(7.0, 127.0, KV_DTYPE == 2u);
}

// The f16 scale of block `block` of the vector that starts at `base` in `vectors`.
fn block_scale(base: u32, block: u32) -> u32 {
    var absmax = 0.0;
    for (var d = block * 32u; d < min(block * 32u + 32u, HEAD_DIM); d++) {
        absmax = max(absmax, abs(vectors[base + d]));
    }
    return f16_bits(absmax / kv_levels());
}

// Word `word` of the record of the vector that starts at `base` in `vectors`.
fn encode_word(base: u32, word: u32) -> u32 {
    if (KV_DTYPE == 0u) {
        return bitcast<u32>(vectors[base + word]);
    }
    if (KV_DTYPE == 1u) {
        let odd = 2u * word + 1u;
        var bits = f16_bits(vectors[base + 2u * word]);
        if (odd < HEAD_DIM) {
            bits |= f16_bits(vectors[base + odd]) << 16u;
        }
        return bits;
    }
    if (word >= CODE_WORDS) {
        let block = (word - CODE_WORDS) * 2u;
        var bits = block_scale(base, block);
        if ((block + 1u) * 32u < HEAD_DIM) {
            bits |= block_scale(base, block + 1u) << 16u;
        }
        return bits;
    }
    let levels = kv_levels();
    let per_word = select(8u, 4u, KV_DTYPE == 2u);
    let width = 32u / per_word;
    let scale = unpack2x16float(block_scale(base, word * per_word / 32u)).x;
    var inverse = 0.0;
    if (scale > 0.0) {
        inverse = 1.0 / scale;
    }
    var bits = 0u;
    for (var i = 0u; i < per_word; i++) {
        let d = word * per_word + i;
        if (d < HEAD_DIM) {
            // Codes are stored from 1 up, as unsigned fields.
            let code = clamp(round(vectors[base + d] * inverse), -levels, levels) + levels + 1.0;
            bits |= u32(code) << (i * width);
        }
    }
    return bits;
}
