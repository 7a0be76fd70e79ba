//! The account of memory, and what is refused.

use halfbyte_backend::Layout;
use halfbyte_backend::{
    Arrangement, Attend, Backend, Canonical, Caps, DType, Embed, Fault, Footprint, Format, Fut, Head, Input,
    Kind, KvShape, KvType, LinearShape, NormShape, Output, Place, Pre, Program, Purpose, Reg, RopeShape,
    Rows, Segment, Step, Stretch, Want, WantId, WeightSource,
};
use halfbyte_cpu::{CpuBackend, CpuLayout, CpuOptions};
use halfbyte_quant::{QuantSpec, QuantType, Source, quantize};
use pollster::block_on;
use std::borrow::Cow;

fn segment(rows: usize, cols: usize, format: Format, bias: bool) -> Segment {
    let bias = bias.then(|| "bias".to_owned());
    Segment { tensor: "weight".into(), rows, cols, format, bias, transposed: false }
}

/// One want of every kind and format, with awkward sizes.
fn all_kinds() -> Vec<Want> {
    let mut kinds = vec![
        Kind::Norm(NormShape { len: 37, weight: "w".into(), bias: None }),
        Kind::Norm(NormShape { len: 37, weight: "w".into(), bias: Some("b".into()) }),
        Kind::Rope(RopeShape { positions: 19, inv_freq: vec![1.0, 0.5, 0.25], magnitude: 1.0 }),
    ];
    for dtype in [KvType::F32, KvType::F16, KvType::Q8, KvType::Q4] {
        kinds.push(Kind::Kv(KvShape {
            sequences: 3,
            kv_heads: 2,
            head_dim: 45,
            capacity: 11,
            ring: None,
            dtype,
        }));
    }
    let mut formats = vec![Format::Dense(DType::F32), Format::Dense(DType::F16), Format::Dense(DType::Bf16)];
    for quant_type in [QuantType::Nf4, QuantType::Fp4] {
        for double_quant in [false, true] {
            formats.push(Format::Quant(QuantSpec { quant_type, blocksize: 64, double_quant }.into()));
        }
    }
    for format in formats {
        for bias in [false, true] {
            let segments = vec![segment(7, 33, format, bias), segment(7, 33, format, false)];
            kinds.push(Kind::Linear(LinearShape::new(segments, Arrangement::Interleaved)));
        }
    }
    let name = |index: usize| format!("want {index}");
    let want = |(index, kind)| Want { name: name(index), purpose: Purpose::Weights, kind };
    kinds.into_iter().enumerate().map(want).collect()
}

#[test]
fn the_ledger_equals_the_layout_for_every_kind() {
    for backend in [CpuBackend::scalar(), CpuBackend::new().unwrap()] {
        for want in all_kinds() {
            let before = backend.ledger().footprint();
            assert_eq!(before, backend.layout().resident());
            let slots = block_on(backend.reserve(std::slice::from_ref(&want))).unwrap();
            let bytes = backend.layout().want(&want.kind).unwrap();
            assert_eq!(backend.ledger().footprint(), Footprint::of(Purpose::Weights, bytes), "{want:?}");
            backend.release(&slots);
            assert_eq!(backend.ledger().footprint(), before);
        }
    }
}

#[test]
fn seven_billion_weights_take_3_6_gib() {
    let layout = CpuLayout::with_threads(4);
    let spec = QuantSpec::default();
    let bytes = |rows, cols, format| {
        layout.want(&Kind::Linear(LinearShape::single(segment(rows, cols, format, false)))).unwrap()
    };
    let quant = |rows, cols| bytes(rows, cols, Format::Quant(spec.into()));
    let layer = 4 * quant(4096, 4096) + 3 * quant(11008, 4096);
    let total = 32 * layer + 2 * bytes(32000, 4096, Format::Dense(DType::F16));
    let gib = total as f64 / f64::from(1 << 30);
    assert!((3.55..3.61).contains(&gib), "{gib} GiB");
}

#[test]
fn a_limit_refuses_all_wants_or_none() {
    let options = CpuOptions { memory_limit: Some(10_000), ..CpuOptions::default() };
    let backend = CpuBackend::with(options).unwrap();
    let dense = |name: &str, rows| Want {
        name: name.into(),
        purpose: Purpose::Embeddings,
        kind: Kind::Linear(LinearShape::single(segment(rows, 10, Format::Dense(DType::F32), false))),
    };
    let fault = block_on(backend.reserve(&[dense("small", 100), dense("large", 200)])).unwrap_err();
    let Fault::OutOfMemory { name, wanted, free, what, .. } = fault else { panic!("{fault}") };
    assert_eq!((name.as_str(), wanted, free, what), ("large", 8000, Some(6000), Purpose::Embeddings));
    assert_eq!(backend.ledger().footprint(), Footprint::new());
    block_on(backend.reserve(&[dense("small", 100)])).unwrap();
    let stretch = Stretch { widths: vec![1000], ..Stretch::default() };
    let fault = block_on(backend.compile(&stretch, &[], Caps { rows: 10, outputs: 0 })).err().unwrap();
    assert!(matches!(fault, Fault::OutOfMemory { .. }), "{fault}");
    assert_eq!(backend.ledger().footprint().total(), 4000);
}

#[test]
fn sizes_beyond_counting_are_refused() {
    let layout = CpuLayout::default();
    let kv = KvShape {
        sequences: usize::MAX,
        kv_heads: usize::MAX,
        head_dim: 128,
        capacity: 1 << 40,
        ring: None,
        dtype: KvType::F16,
    };
    assert!(matches!(layout.want(&Kind::Kv(kv)), Err(Fault::Unsupported { .. })));
    let large = segment(usize::MAX / 2, 4, Format::Dense(DType::F32), false);
    let large = Kind::Linear(LinearShape::single(large));
    assert!(matches!(layout.want(&large), Err(Fault::Unsupported { .. })));
}

/// Seeded weights.
struct Made;

impl WeightSource for Made {
    fn segment<'a>(&'a self, segment: &'a Segment) -> Fut<'a, Canonical<'a>> {
        Box::pin(async move {
            let len = segment.rows * segment.cols;
            let values: Vec<f32> = (0..len).map(|i| ((i * 7919 % 1013) as f32 - 506.0) / 500.0).collect();
            match segment.format {
                Format::Dense(_) => {
                    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                    Ok(Canonical::Dense { dtype: DType::F32, bytes: Cow::Owned(bytes) })
                }
                Format::Quant(format) => {
                    let quantized = quantize(Source::F32(&values), format.into());
                    quantized
                        .map(|quantized| Canonical::Quantized(Cow::Owned(quantized)))
                        .map_err(|fault| Fault::Source(fault.to_string()))
                }
            }
        })
    }

    fn vector<'a>(&'a self, _: &'a str, len: usize) -> Fut<'a, Vec<f32>> {
        Box::pin(async move { Ok(vec![1.0; len]) })
    }
}

/// Embedding, attention over a cache of 5 positions and 2 sequences, head: a vocabulary of 11.
fn tiny(backend: &CpuBackend) -> (Box<dyn Program>, Footprint) {
    let dense = |name: &str, rows, cols| Want {
        name: name.into(),
        purpose: Purpose::Embeddings,
        kind: Kind::Linear(LinearShape::single(segment(rows, cols, Format::Dense(DType::F32), false))),
    };
    let kv = KvShape { sequences: 2, kv_heads: 1, head_dim: 4, capacity: 5, ring: None, dtype: KvType::F16 };
    let wants = vec![
        dense("table", 11, 12),
        dense("head", 11, 4),
        Want { name: "cache".into(), purpose: Purpose::KvCache, kind: Kind::Kv(kv) },
    ];
    let embed = Embed { table: WantId(0), scale: 1.0, positions: None, types: None, norm: None, out: Reg(0) };
    let attend = Attend {
        qkv: Reg(0),
        cache: Some(WantId(2)),
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        rope: None,
        q_norm: None,
        k_norm: None,
        scale: 0.5,
        softcap: None,
        window: None,
        causal: true,
        out: Reg(1),
    };
    let head = Head { input: Reg(1), pre: Pre::default(), weight: WantId(1), scale: 1.0, softcap: None };
    let steps = vec![Step::Embed(embed), Step::Attend(attend), Step::Head(head)];
    let stretch = Stretch { wants, steps, widths: vec![12, 4], inputs: vec![], outputs: vec![] };
    let caps = Caps { rows: 4, outputs: 2 };
    let slots = block_on(backend.reserve(&stretch.wants)).unwrap();
    for (slot, want) in slots.iter().zip(&stretch.wants) {
        block_on(backend.upload(*slot, want, &Made)).unwrap();
    }
    let program = block_on(backend.compile(&stretch, &slots, caps)).unwrap();
    (program, backend.layout().program(&stretch, &caps).unwrap())
}

fn place(sequence: u32, position: u32) -> Place {
    Place { sequence, position, token_type: 0 }
}

fn refusal(program: &mut dyn Program, input: Input<'_>, places: &[Place], output: Output<'_>) -> String {
    match program.submit(&Rows { input, places, output }) {
        Err(Fault::Invalid(why)) => why,
        Err(fault) => panic!("{fault}"),
        Ok(_) => panic!("{places:?} was not refused"),
    }
}

#[test]
fn invalid_requests_are_refused_with_numbers_and_change_nothing() {
    for backend in [CpuBackend::scalar(), CpuBackend::new().unwrap()] {
        let (mut program, footprint) = tiny(&backend);
        for (purpose, bytes) in footprint.iter().filter(|(purpose, _)| *purpose != Purpose::KvCache) {
            assert_eq!(backend.ledger().footprint().get(purpose), bytes, "{purpose}");
        }
        let p = &mut *program;
        let nothing = Output::Nothing;
        let why = refusal(p, Input::Tokens(&[1]), &[place(0, 5)], nothing);
        assert!(why.contains("position 5") && why.contains("5 positions of the KV cache"), "{why}");
        let why = refusal(p, Input::Tokens(&[1]), &[place(2, 0)], nothing);
        assert!(why.contains("sequence 2"), "{why}");
        let why = refusal(p, Input::Tokens(&[11]), &[place(0, 0)], nothing);
        assert!(why.contains("token 11 of a vocabulary of 11"), "{why}");
        let why = refusal(p, Input::Tokens(&[1; 5]), &[place(0, 0); 5], nothing);
        assert!(why.contains("5 rows"), "{why}");
        let split = [place(0, 0), place(1, 0), place(0, 1)];
        let why = refusal(p, Input::Tokens(&[1; 3]), &split, nothing);
        assert!(why.contains("not neighbours"), "{why}");
        let why = refusal(p, Input::Chosen, &[place(0, 0)], nothing);
        assert!(why.contains("0 tokens"), "{why}");
        assert_eq!(p.counts(), (0, 0));

        let rows = Rows { input: Input::Tokens(&[3]), places: &[place(1, 0)], output: Output::Greedy(&[0]) };
        block_on(p.submit(&rows).unwrap()).unwrap();
        let rows = Rows { input: Input::Chosen, places: &[place(1, 1)], output: Output::Logits(&[0]) };
        block_on(p.submit(&rows).unwrap()).unwrap();
        assert_eq!(p.counts(), (6, 2));
    }
}

#[test]
fn a_program_gives_its_memory_back() {
    let backend = CpuBackend::new().unwrap();
    let (program, footprint) = tiny(&backend);
    let with = backend.ledger().footprint().total();
    drop(program);
    assert_eq!(with - backend.ledger().footprint().total(), footprint.total());
}
