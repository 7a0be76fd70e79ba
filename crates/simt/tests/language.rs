//! WGSL means here what it means elsewhere.

mod harness;

use harness::{run, run_on, subgroups};

/// Lowers, runs and gives `out` for a body with `thread`, `source` (floats) and `out` (words).
fn words(declarations: &str, body: &str, source: &[f32], outputs: usize) -> Vec<u32> {
    let text = format!(
        "@group(0) @binding(0) var<storage, read> source: array<f32>;
        @group(0) @binding(1) var<storage, read_write> out: array<u32>;
        {declarations}
        @compute @workgroup_size(8)
        fn main(@builtin(local_invocation_index) thread: u32) {{ {body} }}"
    );
    let source = source.iter().map(|value| value.to_bits()).collect();
    run(&text, &[source, vec![0; outputs]], [1, 1, 1]).clean().remove(1)
}

fn floats(declarations: &str, body: &str, source: &[f32], outputs: usize) -> Vec<f32> {
    words(declarations, body, source, outputs).into_iter().map(f32::from_bits).collect()
}

const SOURCE: [f32; 8] = [1.5, -2.25, 0.5, 3.0, -0.75, 8.0, 0.125, 2.0];

#[test]
fn loops_break_continue_and_return() {
    let declarations = "
        fn collatz(first: u32) -> u32 {
            var n = first;
            var steps = 0u;
            while (n != 1u) {
                if (steps > 100u) { return 999u; }
                if (n % 2u == 0u) { n /= 2u; } else { n = 3u * n + 1u; }
                steps++;
            }
            return steps;
        }
        fn odd_sum(limit: u32) -> u32 {
            var sum = 0u;
            for (var i = 0u; ; i++) {
                if (i % 2u == 0u) { continue; }
                if (i > limit) { break; }
                sum += i;
            }
            return sum;
        }
    ";
    let body = "out[thread] = collatz(thread + 1u) * 1000u + odd_sum(thread);";
    let collatz = |first: u32| {
        let (mut n, mut steps) = (first, 0);
        while n != 1 {
            n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
            steps += 1;
        }
        steps
    };
    let wanted: Vec<u32> =
        (0..8).map(|t| collatz(t + 1) * 1000 + (0..=t).filter(|i| i % 2 == 1).sum::<u32>()).collect();
    assert_eq!(words(declarations, body, &SOURCE, 8), wanted);
}

#[test]
fn switches_choose_by_lane() {
    let body = "
        var result = 0u;
        switch thread % 5u {
            case 0u: { result = 10u; }
            case 1u, 2u: {
                if (thread > 4u) { break; }
                result = 20u;
            }
            case 3u: { return; }
            default: { result = 30u; }
        }
        out[thread] = result;
    ";
    assert_eq!(words("", body, &SOURCE, 8), [10, 20, 20, 0, 30, 10, 0, 0]);
}

#[test]
fn values_are_taken_apart_and_put_together() {
    let declarations = "
        struct Pair { a: vec3<f32>, b: array<f32, 2> }
        fn change(pair: ptr<function, Pair>, index: u32) { (*pair).b[index] = 9.0; (*pair).a.y *= 2.0; }
    ";
    let body = "
        var pair = Pair(vec3<f32>(1.0, 2.0, 3.0), array<f32, 2>(4.0, 5.0));
        change(&pair, thread % 2u);
        let m = mat2x3<f32>(pair.a, pair.a.zyx);
        let turned = transpose(m) * vec3<f32>(1.0, 10.0, 100.0);
        let back = vec2<f32>(1.0, 2.0) * transpose(m);
        let v = select(turned, back.xy, vec2<bool>(false, true));
        out[thread] = bitcast<u32>(pair.b[0] + pair.b[1] * 10.0);
        out[8u + thread] = bitcast<u32>(v[0]);
        out[16u + thread] = bitcast<u32>(v[thread % 1u + 1u]);
    ";
    let found = floats(declarations, body, &SOURCE, 24);
    // Columns (1, 4, 3) and (3, 4, 1).
    for thread in 0..8 {
        assert_eq!(found[thread], if thread % 2 == 0 { 59.0 } else { 94.0 });
        assert_eq!(found[8 + thread], 341.0);
        assert_eq!(found[16 + thread], 12.0);
    }
}

#[test]
fn builtins_agree_with_rust() {
    type Wanted = fn(f32) -> f32;
    let unary: [(&str, Wanted); 15] = [
        ("exp(x)", f32::exp),
        ("tanh(x)", f32::tanh),
        ("abs(x)", f32::abs),
        ("floor(x)", f32::floor),
        ("round(x)", f32::round_ties_even),
        ("sqrt(abs(x))", |x| x.abs().sqrt()),
        ("inverseSqrt(abs(x))", |x| 1.0 / x.abs().sqrt()),
        ("clamp(x, -1.0, 1.0)", |x| x.clamp(-1.0, 1.0)),
        ("sign(x)", f32::signum),
        ("fract(x)", |x| x - x.floor()),
        ("mix(x, 2.0, 0.25)", |x| x * 0.75 + 2.0 * 0.25),
        ("fma(x, x, 1.0)", |x| x.mul_add(x, 1.0)),
        ("f32(i32(x))", f32::trunc),
        ("f32(u32(x))", |x| x as u32 as f32),
        ("unpack2x16float(pack2x16float(vec2<f32>(1.0, x))).y", |x| half::f16::from_f32(x).to_f32()),
    ];
    for (text, wanted) in unary {
        let body = format!("let x = source[thread]; out[thread] = bitcast<u32>({text});");
        let found = floats("", &body, &SOURCE, 8);
        assert_eq!(found, SOURCE.map(wanted), "{text}");
    }
    let words_of = |text: &str| words("", &format!("out[thread] = {text};"), &SOURCE, 8);
    assert_eq!(words_of("countOneBits(thread)"), [0, 1, 1, 2, 1, 2, 2, 3]);
    assert_eq!(words_of("unpack4xU8(0x04030201u << (thread % 1u)).z"), [3; 8]);
    assert_eq!(words_of("pack4xU8(vec4<u32>(1u, 2u, 3u, thread))")[5], 0x0503_0201);
    assert_eq!(words_of("u32(dot4I8Packed(0x0102ff01u, 0x01010101u + thread))")[0], 3);
    assert_eq!(words_of("extractBits(0xabcdu, 4u, 8u) + thread % 1u"), [0xbc; 8]);
    assert_eq!(words_of("arrayLength(&source) + arrayLength(&out)"), [16; 8]);
    assert_eq!(words_of("u32(i32(thread) - 4) >> 31u"), [1, 1, 1, 1, 0, 0, 0, 0]);
    assert_eq!(words_of("u32((i32(thread) - 4) / 2 + 10)"), [8, 9, 9, 10, 10, 10, 11, 11]);
}

#[test]
fn structures_in_buffers_have_their_strides() {
    let text = "
        struct Item { a: vec3<f32>, b: f32, c: mat2x3<f32>, d: vec2<u32> }
        struct All { count: u32, items: array<Item> }
        @group(0) @binding(0) var<storage, read> all: All;
        @group(0) @binding(1) var<storage, read_write> out: array<u32>;
        @compute @workgroup_size(2)
        fn main(@builtin(local_invocation_index) thread: u32) {
            let item = all.items[thread];
            out[thread * 4u] = bitcast<u32>(item.b);
            out[thread * 4u + 1u] = bitcast<u32>(item.c[1][2]);
            out[thread * 4u + 2u] = all.items[thread].d.y + all.count;
            out[thread * 4u + 3u] = arrayLength(&all.items);
        }
    ";
    // An item is 64 bytes: a at 0, b at 12, c at 16 with columns of 16, d at 48.
    let words: Vec<u32> = (0..4 + 32).collect();
    let found = run(text, &[words, vec![0; 8]], [1, 1, 1]).clean();
    assert_eq!(found[1], [4 + 3, 4 + 4 + 4 + 2, 4 + 13, 2, 20 + 3, 20 + 10, 20 + 13, 2]);
}

#[test]
fn subgroups_of_every_size() {
    let text = "
        @group(0) @binding(0) var<storage, read_write> out: array<u32>;
        @compute @workgroup_size(128)
        fn main(
            @builtin(local_invocation_index) thread: u32,
            @builtin(subgroup_id) id: u32,
            @builtin(num_subgroups) count: u32,
            @builtin(subgroup_size) size: u32,
            @builtin(subgroup_invocation_id) lane: u32,
        ) {
            let ballot = subgroupBallot(thread % 3u == 0u);
            out[thread * 8u] = subgroupAdd(thread);
            out[thread * 8u + 1u] = subgroupMax(thread);
            out[thread * 8u + 2u] = subgroupExclusiveAdd(1u);
            out[thread * 8u + 3u] = subgroupBroadcast(thread, 3u);
            out[thread * 8u + 4u] = subgroupShuffleXor(thread, 5u);
            out[thread * 8u + 5u] = countOneBits(ballot.x) + countOneBits(ballot.y);
            out[thread * 8u + 6u] = id * 10000u + count * 1000u + size * 10u + u32(subgroupElect());
            out[thread * 8u + 7u] = lane * 2u + u32(subgroupAll(thread < 64u));
        }
    ";
    let text = text.replace(" + u32(subgroupElect())", "");
    for size in [8u32, 16, 32, 64] {
        let found = run_on(subgroups(size), &text, &[], &[vec![0; 1024]], [1, 1, 1]).clean().remove(0);
        for thread in 0..128 {
            let first = thread / size * size;
            let own = first..first + size;
            let wanted = [
                own.clone().sum(),
                first + size - 1,
                thread - first,
                first + 3,
                thread ^ 5,
                own.filter(|t| t % 3 == 0).count() as u32,
                thread / size * 10000 + 128 / size * 1000 + size * 10,
                (thread - first) * 2 + u32::from(first + size <= 64),
            ];
            assert_eq!(found[thread as usize * 8..][..8], wanted, "thread {thread} of {size}");
        }
    }
}

#[test]
fn atomics_count_every_lane() {
    let text = "
        @group(0) @binding(0) var<storage, read_write> sums: array<atomic<u32>, 3>;
        @group(0) @binding(1) var<storage, read_write> out: array<u32>;
        var<workgroup> own: atomic<u32>;
        @compute @workgroup_size(32)
        fn main(@builtin(local_invocation_index) thread: u32, @builtin(workgroup_id) group: vec3<u32>) {
            if (thread == 0u) { atomicStore(&own, 0u); }
            workgroupBarrier();
            atomicAdd(&own, thread);
            atomicMax(&sums[1], thread + group.x);
            let exchanged = atomicCompareExchangeWeak(&sums[2], 0u, 7u).exchanged;
            workgroupBarrier();
            if (thread == 0u) { atomicAdd(&sums[0], atomicLoad(&own)); }
            out[group.x * 32u + thread] = u32(exchanged);
        }
    ";
    let found = run(text, &[vec![0; 3], vec![0; 128]], [4, 1, 1]).clean();
    assert_eq!(found[0], [4 * 496, 34, 7]);
    assert_eq!(found[1].iter().sum::<u32>(), 1);
}

#[test]
fn halves_are_rounded() {
    let text = "
        enable f16;
        @group(0) @binding(0) var<storage, read> source: array<f32>;
        @group(0) @binding(1) var<storage, read_write> out: array<f32>;
        var<workgroup> kept: array<vec2<f16>, 8>;
        @compute @workgroup_size(8)
        fn main(@builtin(local_invocation_index) thread: u32) {
            kept[thread] = vec2<f16>(f16(source[thread]), 0.1h);
            workgroupBarrier();
            let other = kept[7u - thread];
            out[thread] = f32(other.x * other.y + 1h);
            out[8u + thread] = f32(other[thread % 2u]);
        }
    ";
    use half::f16;
    let settings = halfbyte_simt::Settings {
        features: wgpu::Features::SHADER_F16,
        ..halfbyte_simt::Settings::default()
    };
    let source: Vec<f32> = SOURCE.iter().map(|x| x * 1.000_3 + 70.0).collect();
    let words = source.iter().map(|x| x.to_bits()).collect();
    let found = run_on(settings, text, &[], &[words, vec![0; 16]], [1, 1, 1]);
    assert!(found.errors.is_empty(), "{:?}", found.errors);
    let (found, tenth) = (found.floats(1), f16::from_f32(0.1));
    let round = |x: f32| f16::from_f32(x).to_f32();
    for thread in 0..8 {
        let x = f16::from_f32(source[7 - thread]);
        assert_eq!(found[thread], round(round(x.to_f32() * tenth.to_f32()) + 1.0));
        assert_eq!(found[8 + thread], if thread % 2 == 0 { x.to_f32() } else { tenth.to_f32() });
        assert_ne!(found[thread], source[7 - thread] * 0.1 + 1.0);
    }
}

#[test]
fn overrides_and_sizes() {
    let text = "
        override SIZE: u32 = 4u;
        override HALF: f32 = 0.25;
        override DOUBLE: u32 = SIZE * 2u;
        var<workgroup> shared_words: array<f32, DOUBLE>;
        @group(0) @binding(0) var<storage, read_write> out: array<f32>;
        @compute @workgroup_size(SIZE, 2, 1)
        fn main(
            @builtin(local_invocation_id) local: vec3<u32>,
            @builtin(local_invocation_index) index: u32,
            @builtin(global_invocation_id) global: vec3<u32>,
            @builtin(num_workgroups) groups: vec3<u32>,
        ) {
            shared_words[index] = HALF * f32(local.x + 10u * local.y);
            workgroupBarrier();
            out[global.y * SIZE * groups.x + global.x] = shared_words[DOUBLE - 1u - index];
        }
    ";
    let constants = [("SIZE", 6.0), ("HALF", 0.5)];
    let found = run_on(subgroups(8), text, &constants, &[vec![0; 24]], [2, 1, 1]);
    assert!(found.findings.is_empty() && found.errors.is_empty(), "{:?} {:?}", found.findings, found.errors);
    let wanted = |x: u32, y: u32| 0.5 * (5 - x % 6 + 10 * (1 - y)) as f32;
    let wanted: Vec<f32> = (0..24).map(|i| wanted(i % 12, i / 12)).collect();
    assert_eq!(found.floats(0), wanted);
}
