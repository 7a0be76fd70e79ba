//! What the conformance table does not ask: dispatches, answers out of turn, budgets, accounts.

use halfbyte_backend::conformance::{self, SeededWeights};
use halfbyte_backend::{
    Act, Answer, Arrangement, Attend, Backend, Caps, DType, Embed, Fault, Footprint, Format, Head, Input,
    Kind, KvShape, KvType, LinearShape, LinearStep, Norm, NormKind, NormShape, Output, Pairing, Place, Pre,
    Program, Purpose, QuantFormat, Reg, RopeShape, RopeUse, Rows, Segment, Slot, Step, Stretch, Want, WantId,
    rope,
};
use halfbyte_quant::QuantType;
use halfbyte_wgpu::{Options, WgpuBackend, WgpuLayout};
use pollster::block_on;
use std::path::Path;
use std::time::{Duration, Instant};

const HIDDEN: usize = 64;
const VOCABULARY: usize = 300;
const CAPACITY: usize = 600;

fn open(options: Options) -> WgpuBackend {
    block_on(async {
        let devices = WgpuBackend::all().await.unwrap();
        WgpuBackend::open(devices.len() - 1, options).await.unwrap()
    })
}

/// A small Llama of as many layers, with a cache for two sequences.
struct Llama(Stretch);

impl Llama {
    fn want(&mut self, name: String, purpose: Purpose, kind: Kind) -> WantId {
        self.0.wants.push(Want { name, purpose, kind });
        WantId(self.0.wants.len() as u32 - 1)
    }

    fn linear(&mut self, name: &str, rows: &[usize], cols: usize, arrangement: Arrangement) -> WantId {
        let quant = QuantFormat { quant_type: QuantType::Nf4, blocksize: 64, double_quant: true };
        let segment = |(i, &rows): (usize, &usize)| Segment {
            tensor: format!("{name}.{i}.weight"),
            rows,
            cols,
            format: Format::Quant(quant),
            bias: None,
            transposed: false,
        };
        let segments = rows.iter().enumerate().map(segment).collect();
        let kind = Kind::Linear(LinearShape::new(segments, arrangement));
        self.want(name.into(), Purpose::Weights, kind)
    }

    fn dense(&mut self, name: &str) -> WantId {
        let segment = Segment {
            tensor: name.into(),
            rows: VOCABULARY,
            cols: HIDDEN,
            format: Format::Dense(DType::F16),
            bias: None,
            transposed: false,
        };
        self.want(name.into(), Purpose::Embeddings, Kind::Linear(LinearShape::single(segment)))
    }

    fn norm(&mut self, name: &str) -> Pre {
        let shape = NormShape { len: HIDDEN, weight: format!("{name}.norm.weight"), bias: None };
        let weight = self.want(name.into(), Purpose::Weights, Kind::Norm(shape));
        Pre::norm(Norm { kind: NormKind::Rms, weight, eps: 1e-5, offset: 0.0 })
    }

    fn stretch(layers: usize) -> Stretch {
        let (heads, kv_heads, head_dim, wide) = (4, 2, 16, 160);
        let mut llama = Self(Stretch::default());
        let [stream, qkv, attended, gated] = [0, 1, 2, 3].map(Reg);
        llama.0.widths = vec![HIDDEN, (heads + 2 * kv_heads) * head_dim, heads * head_dim, wide];
        let shape = RopeShape {
            positions: CAPACITY,
            inv_freq: rope::inverse_frequencies(1e4, head_dim),
            magnitude: 1.0,
        };
        let table = llama.want("rope".into(), Purpose::RopeTable, Kind::Rope(shape));
        let embedding = llama.dense("embedding");
        let embed =
            Embed { table: embedding, scale: 1.0, positions: None, types: None, norm: None, out: stream };
        llama.0.steps.push(Step::Embed(embed));
        for layer in 0..layers {
            let product = |input, pre, weight, residual: Option<Reg>, out| LinearStep {
                input,
                pre,
                weight,
                act: Act::Identity,
                gated: false,
                residual,
                out,
                at: 0,
            };
            let q = heads * head_dim;
            let kv = kv_heads * head_dim;
            let weight = llama.linear(&format!("{layer}.qkv"), &[q, kv, kv], HIDDEN, Arrangement::Stacked);
            let pre = llama.norm(&format!("{layer}.in"));
            llama.0.steps.push(Step::Linear(product(stream, pre, weight, None, qkv)));
            let shape = KvShape {
                sequences: 2,
                kv_heads,
                head_dim,
                capacity: CAPACITY,
                ring: None,
                dtype: KvType::F16,
            };
            let cache = llama.want(format!("{layer}.kv"), Purpose::KvCache, Kind::Kv(shape));
            llama.0.steps.push(Step::Attend(Attend {
                qkv,
                cache: Some(cache),
                heads,
                kv_heads,
                head_dim,
                rope: Some(RopeUse { table, dim: head_dim, pairing: Pairing::Half }),
                q_norm: None,
                k_norm: None,
                scale: 0.25,
                softcap: None,
                window: None,
                causal: true,
                out: attended,
            }));
            let weight = llama.linear(&format!("{layer}.o"), &[HIDDEN], q, Arrangement::Stacked);
            llama.0.steps.push(Step::Linear(product(attended, Pre::default(), weight, Some(stream), stream)));
            let weight =
                llama.linear(&format!("{layer}.gate_up"), &[wide, wide], HIDDEN, Arrangement::Interleaved);
            let pre = llama.norm(&format!("{layer}.post"));
            let step = product(stream, pre, weight, None, gated);
            llama.0.steps.push(Step::Linear(LinearStep { act: Act::Silu, gated: true, ..step }));
            let weight = llama.linear(&format!("{layer}.down"), &[HIDDEN], wide, Arrangement::Stacked);
            llama.0.steps.push(Step::Linear(product(gated, Pre::default(), weight, Some(stream), stream)));
        }
        let pre = llama.norm("last");
        let weight = llama.dense("head");
        llama.0.steps.push(Step::Head(Head { input: stream, pre, weight, scale: 1.0, softcap: None }));
        llama.0
    }
}

fn load(backend: &WgpuBackend, stretch: &Stretch) -> Vec<Slot> {
    block_on(async {
        let slots = backend.reserve(&stretch.wants).await.unwrap();
        for (&slot, want) in slots.iter().zip(&stretch.wants) {
            backend.upload(slot, want, &SeededWeights::new(5)).await.unwrap();
        }
        slots
    })
}

fn place(sequence: u32, position: u32) -> Place {
    Place { sequence, position, token_type: 0 }
}

fn tokens(answer: Answer) -> Vec<u32> {
    let Answer::Tokens(tokens) = answer else { panic!("{answer:?}") };
    tokens
}

/// Dispatches of one submission of row 0 at position 0.
fn decode_dispatches(backend: &WgpuBackend, layers: usize) -> u64 {
    let stretch = Llama::stretch(layers);
    let slots = load(backend, &stretch);
    let mut program = block_on(backend.compile(&stretch, &slots, Caps { rows: 20, outputs: 2 })).unwrap();
    let rows = Rows { input: Input::Tokens(&[7]), places: &[place(0, 0)], output: Output::Greedy(&[0]) };
    block_on(program.submit(&rows).unwrap()).unwrap();
    let (dispatches, submissions) = program.counts();
    assert_eq!((submissions, program.passes()), (1, 1));
    drop(program);
    backend.release(&slots);
    dispatches
}

#[test]
fn a_llama_layer_is_five_dispatches_in_decode() {
    let backend = open(Options::default());
    // Embedding, head and choice are three.
    assert_eq!(decode_dispatches(&backend, 1), 3 + 5);
    assert_eq!(decode_dispatches(&backend, 3), 3 + 3 * 5);
}

#[test]
fn a_profile_names_the_classes_of_a_token_and_changes_nothing() {
    let backend = open(Options::default());
    let stretch = Llama::stretch(2);
    let slots = load(&backend, &stretch);
    let mut program = block_on(backend.compile(&stretch, &slots, Caps { rows: 20, outputs: 2 })).unwrap();
    let rows = Rows { input: Input::Tokens(&[7]), places: &[place(0, 0)], output: Output::Greedy(&[0]) };
    let before = tokens(block_on(program.submit(&rows).unwrap()).unwrap());
    let held = backend.ledger().footprint();
    let costs = block_on(program.profile(&rows)).unwrap();
    assert_eq!(tokens(block_on(program.submit(&rows).unwrap()).unwrap()), before);
    assert_eq!(backend.ledger().footprint(), held);
    // It counts as no submission of the program's own.
    assert_eq!((program.counts().1, program.passes()), (2, 2));

    let classes: Vec<(&str, u64)> = costs.iter().map(|cost| (cost.class.as_str(), cost.dispatches)).collect();
    let layers =
        ["norm_linear", "attend", "merge_linear", "norm_gate_up", "linear_residual"].map(|name| (name, 2));
    let wanted = [&[("embed", 1)], layers.as_slice(), &[("head", 1), ("argmax", 1)]].concat();
    assert_eq!(classes, wanted);
    for cost in &costs {
        assert!(cost.seconds > 0.0 && cost.seconds < 10.0, "{cost:?}");
    }
    let weights = |want: &Want| backend.layout().want(&want.kind).unwrap();
    let linears = stretch.wants.iter().filter(|want| want.purpose == Purpose::Weights);
    let linears = linears.filter(|want| matches!(want.kind, Kind::Linear(_))).map(weights);
    let products =
        costs.iter().filter(|cost| layers.iter().any(|(name, _)| *name == cost.class && *name != "attend"));
    assert_eq!(products.map(|cost| cost.bytes).sum::<u64>(), linears.sum());
    // Keys and values of one position in f16, of two heads of 16 in two layers.
    let attend = costs.iter().find(|cost| cost.class == "attend").unwrap();
    assert_eq!(attend.bytes, 2 * 2 * (2 * 2 * 16));
}

#[test]
fn the_driver_s_time_is_counted_once_it_is_asked_for() {
    let backend = open(Options::default());
    let stretch = Llama::stretch(1);
    let slots = load(&backend, &stretch);
    let mut program = block_on(backend.compile(&stretch, &slots, Caps { rows: 1, outputs: 1 })).unwrap();
    let rows = Rows { input: Input::Tokens(&[7]), places: &[place(0, 0)], output: Output::Greedy(&[0]) };
    block_on(program.submit(&rows).unwrap()).unwrap();
    assert_eq!(program.driver_time(), Some(Duration::ZERO));
    let start = Instant::now();
    block_on(program.submit(&rows).unwrap()).unwrap();
    let (whole, driver) = (start.elapsed(), program.driver_time().unwrap());
    assert!(driver > Duration::ZERO && driver <= whole, "{driver:?} of {whole:?}");
}

/// Chosen token of one row on a fresh device that keeps its pipelines in `dir`.
fn token_with_pipelines_in(dir: &Path) -> u32 {
    let backend = open(Options::default());
    backend.keep_in(dir);
    let stretch = Llama::stretch(1);
    let slots = load(&backend, &stretch);
    let mut program = block_on(backend.compile(&stretch, &slots, Caps { rows: 1, outputs: 1 })).unwrap();
    let rows = Rows { input: Input::Tokens(&[7]), places: &[place(0, 0)], output: Output::Greedy(&[0]) };
    tokens(block_on(program.submit(&rows).unwrap()).unwrap())[0]
}

#[test]
fn pipelines_are_kept_and_a_spoiled_file_is_no_trouble() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("pipelines");
    let token = token_with_pipelines_in(&kept);
    let files: Vec<_> = std::fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let bytes = std::fs::read(&files[0]).unwrap();
    assert!(bytes.len() > 200, "{} bytes", bytes.len());
    assert_eq!(token_with_pipelines_in(&kept), token);

    let middle = bytes.len() / 2;
    for spoiled in
        [&bytes[..middle], b"", &[&bytes[..middle], &[!bytes[middle]], &bytes[middle + 1..]].concat()]
    {
        std::fs::write(&files[0], spoiled).unwrap();
        assert_eq!(token_with_pipelines_in(&kept), token);
        assert!(std::fs::read(&files[0]).unwrap().len() > 200, "it is written anew");
    }
    // A directory that cannot be made: its parent is a file.
    assert_eq!(token_with_pipelines_in(&files[0].join("nowhere")), token);
}

#[test]
fn a_mixture_of_experts_is_two_dispatches_an_expert_and_three() {
    let backend = open(Options::default());
    let cases = conformance::cases();
    let mut tried = 0;
    for case in cases.iter().filter(|case| case.step == "moe").take(5) {
        let stretch = &case.stretch;
        let [Step::Moe(moe)] = stretch.steps[..] else { panic!("{}: {:?}", case.name, stretch.steps) };
        let slots = load(&backend, stretch);
        let mut program = block_on(backend.compile(stretch, &slots, case.caps)).unwrap();
        let values = vec![0.5; stretch.inputs.iter().map(|&reg| stretch.width(reg).unwrap()).sum()];
        let rows = Rows { input: Input::Hidden(&values), places: &[place(0, 0)], output: Output::Hidden };
        block_on(program.submit(&rows).unwrap()).unwrap();
        assert_eq!(program.counts(), (3 + 2 * moe.experts as u64, 1), "{}", case.name);
        drop(program);
        backend.release(&slots);
        tried += 1;
    }
    assert_eq!(tried, 5);
}

/// A prompt of `prompt`, then greedy steps; the tokens chosen at each.
fn generate(program: &mut dyn Program, sequence: u32, prompt: &[u32], steps: u32) -> Vec<u32> {
    let mut chosen = Vec::new();
    let places: Vec<Place> = (0..prompt.len() as u32).map(|i| place(sequence, i)).collect();
    let last = [prompt.len() as u32 - 1];
    let rows = Rows { input: Input::Tokens(prompt), places: &places, output: Output::Greedy(&last) };
    chosen.extend(tokens(block_on(program.submit(&rows).unwrap()).unwrap()));
    for step in 0..steps {
        let token = [*chosen.last().unwrap()];
        let at = [place(sequence, prompt.len() as u32 + step)];
        let rows = Rows { input: Input::Tokens(&token), places: &at, output: Output::Greedy(&[0]) };
        chosen.extend(tokens(block_on(program.submit(&rows).unwrap()).unwrap()));
    }
    chosen
}

#[test]
fn steps_ahead_of_their_answers_choose_the_same_tokens() {
    let backend = open(Options::default());
    let stretch = Llama::stretch(2);
    let slots = load(&backend, &stretch);
    let mut program = block_on(backend.compile(&stretch, &slots, Caps { rows: 20, outputs: 2 })).unwrap();
    let prompt: Vec<u32> = (0..13).map(|i| i * 17 % 300).collect();
    let wanted = generate(program.as_mut(), 0, &prompt, 11);
    assert!(wanted.iter().any(|token| *token != wanted[0]), "a test that cannot tell steps apart");

    // Everything is submitted before anything is awaited; more answers than there are buffers for.
    let places: Vec<Place> = (0..13).map(|i| place(1, i)).collect();
    let rows = Rows { input: Input::Tokens(&prompt), places: &places, output: Output::Greedy(&[12]) };
    let mut tickets = vec![program.submit(&rows).unwrap()];
    for step in 0..11 {
        let at = [place(1, 13 + step)];
        let rows = Rows { input: Input::Chosen, places: &at, output: Output::Greedy(&[0]) };
        tickets.push(program.submit(&rows).unwrap());
    }
    // The last first.
    let mut chosen: Vec<u32> =
        tickets.into_iter().rev().flat_map(|ticket| tokens(block_on(ticket).unwrap())).collect();
    chosen.reverse();
    assert_eq!(chosen, wanted);

    // Tickets that nobody awaits cost nothing and block nothing.
    for _ in 0..10 {
        let rows = Rows { input: Input::Tokens(&[3]), places: &[place(0, 0)], output: Output::Logits(&[0]) };
        drop(program.submit(&rows).unwrap());
    }
    block_on(program.drain()).unwrap();
    assert_eq!(generate(program.as_mut(), 0, &prompt, 11), wanted);
}

#[test]
fn the_ledger_is_the_layout_to_the_byte() {
    let backend = open(Options { max_binding: Some(4 << 10), ..Options::default() });
    let stretch = Llama::stretch(2);
    let caps = Caps { rows: 9, outputs: 3 };
    let layout = WgpuLayout::new("wgpu:0", &wgpu::Limits::default()).with_shards(4 << 10);
    let mut planned = halfbyte_backend::Layout::resident(&layout);
    assert_eq!(backend.ledger().footprint(), planned);
    let slots = load(&backend, &stretch);
    for want in &stretch.wants {
        planned.merge(&Footprint::of(
            want.purpose,
            halfbyte_backend::Layout::want(&layout, &want.kind).unwrap(),
        ));
    }
    assert_eq!(backend.ledger().footprint(), planned);
    let program = block_on(backend.compile(&stretch, &slots, caps)).unwrap();
    let mut running = planned.clone();
    running.merge(&halfbyte_backend::Layout::program(&layout, &stretch, &caps).unwrap());
    assert_eq!(backend.ledger().footprint(), running);
    drop(program);
    assert_eq!(backend.ledger().footprint(), planned);
    backend.release(&slots);
    assert_eq!(backend.ledger().footprint(), halfbyte_backend::Layout::resident(&layout));
}

#[test]
fn a_budget_refuses_all_or_nothing() {
    let stretch = Llama::stretch(1);
    let layout = WgpuLayout::new("wgpu:0", &wgpu::Limits::default());
    let all: u64 =
        stretch.wants.iter().map(|want| halfbyte_backend::Layout::want(&layout, &want.kind).unwrap()).sum();
    let resident = halfbyte_backend::Layout::resident(&layout).total();

    let backend = open(Options { budget: Some(resident + all - 1), ..Options::default() });
    let before = backend.ledger().footprint();
    match block_on(backend.reserve(&stretch.wants)) {
        Err(Fault::OutOfMemory { name, wanted, free, what, .. }) => {
            assert_eq!((name.as_str(), what), ("head", Purpose::Embeddings));
            assert_eq!(free, Some(wanted - 1));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(backend.ledger().footprint(), before);
    // Nothing is broken by it.
    let slots = block_on(backend.reserve(&stretch.wants[..3])).unwrap();
    assert_eq!(slots.len(), 3);

    let backend = open(Options { budget: Some(resident + all), ..Options::default() });
    assert_eq!(backend.memory().free, Some(all));
    let slots = load(&backend, &stretch);
    let refused = block_on(backend.compile(&stretch, &slots, Caps { rows: 4, outputs: 1 }));
    assert!(matches!(refused.err(), Some(Fault::OutOfMemory { free: Some(0), .. })));
}

#[test]
fn what_does_not_exist_is_said() {
    let fault = block_on(WgpuBackend::open(999, Options::default())).err().unwrap();
    assert!(matches!(&fault, Fault::Unsupported { device, .. } if device == "wgpu:999"), "{fault}");
}
