// Threefry-2x32 with 20 rounds (Salmon et al. 2011), as halfbyte's `random` has it on the host.
fn turned(word: u32, by: u32) -> u32 {
    return (word << by) | (word >> (32u - by));
}

fn four_rounds(state: vec2<u32>, by: vec4<u32>) -> vec2<u32> {
    var x = state;
    x.x += x.y;
    x.y = turned(x.y, by.x) ^ x.x;
    x.x += x.y;
    x.y = turned(x.y, by.y) ^ x.x;
    x.x += x.y;
    x.y = turned(x.y, by.z) ^ x.x;
    x.x += x.y;
    x.y = turned(x.y, by.w) ^ x.x;
    return x;
}

fn threefry(key: vec2<u32>, counter: vec2<u32>) -> vec2<u32> {
    let third = 0x1bd11bdau ^ key.x ^ key.y;
    let even = vec4<u32>(13u, 15u, 26u, 6u);
    let odd = vec4<u32>(17u, 29u, 16u, 24u);
    var x = counter + key;
    x = four_rounds(x, even) + vec2<u32>(key.y, third + 1u);
    x = four_rounds(x, odd) + vec2<u32>(third, key.x + 2u);
    x = four_rounds(x, even) + vec2<u32>(key.x, key.y + 3u);
    x = four_rounds(x, odd) + vec2<u32>(key.y, third + 4u);
    x = four_rounds(x, even) + vec2<u32>(third, key.x + 5u);
    return x;
}

// Uniform in [0, 1) with 24 bits.
fn uniform_number(seed: vec2<u32>, counter: u32) -> f32 {
    return f32(threefry(seed, vec2<u32>(counter, 0u)).x >> 8u) * (1.0 / 16777216.0);
}
