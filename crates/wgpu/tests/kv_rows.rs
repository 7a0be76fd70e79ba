//! Keys and values as they leave a cache and as they come back: in the form that every backend has in common.

use halfbyte_backend::random::Stream;
use halfbyte_backend::{
    Attend, Backend, Caps, Input, Kind, KvRows, KvShape, KvSpan, KvType, Output, Place, Program, Purpose,
    Reg, Rows, Slot, Step, Stretch, Want, WantId,
};
use halfbyte_cpu::CpuBackend;
use halfbyte_wgpu::{Options, WgpuBackend};
use pollster::block_on;

/// One attention over a cache.
fn stretch(shape: KvShape) -> Stretch {
    let heads = shape.kv_heads * 2;
    let attend = Attend {
        qkv: Reg(0),
        cache: Some(WantId(0)),
        heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        rope: None,
        q_norm: None,
        k_norm: None,
        scale: 0.3,
        softcap: None,
        window: None,
        causal: true,
        out: Reg(1),
    };
    let cache = Want { name: "cache".into(), purpose: Purpose::KvCache, kind: Kind::Kv(shape) };
    Stretch {
        wants: vec![cache],
        steps: vec![Step::Attend(attend)],
        widths: vec![(heads + 2 * shape.kv_heads) * shape.head_dim, heads * shape.head_dim],
        inputs: vec![Reg(0)],
        outputs: vec![Reg(1)],
    }
}

/// A backend with the program and its cache.
struct One<'b> {
    backend: &'b dyn Backend,
    slot: Slot,
    program: Box<dyn Program>,
}

impl<'b> One<'b> {
    fn new(backend: &'b dyn Backend, stretch: &Stretch) -> Self {
        let slots = block_on(backend.reserve(&stretch.wants)).unwrap();
        let program = block_on(backend.compile(stretch, &slots, Caps { rows: 16, outputs: 1 })).unwrap();
        Self { backend, slot: slots[0], program }
    }

    /// Ten positions of a sequence, from `position` on.
    fn submit(&mut self, sequence: u32, position: u32, hidden: &[f32]) {
        let places: Vec<Place> =
            (position..position + 10).map(|position| Place { sequence, position, token_type: 0 }).collect();
        let rows = Rows { input: Input::Hidden(hidden), places: &places, output: Output::Hidden };
        block_on(self.program.submit(&rows).unwrap()).unwrap();
    }

    fn read(&self, span: &KvSpan) -> KvRows {
        block_on(self.backend.read_kv(self.slot, span.clone())).unwrap()
    }

    fn write(&self, span: &KvSpan, rows: &KvRows) {
        block_on(self.backend.write_kv(self.slot, span.clone(), rows)).unwrap();
    }
}

/// What one backend writes another reads: the very records, but where a number lies between two codes.
#[test]
fn records_are_the_same_on_every_backend() {
    let mut stream = Stream::new(41);
    let cpu = CpuBackend::scalar();
    // Shards of one head, and of all.
    for max_binding in [Some(4096), None] {
        let options = Options { max_binding, ..Options::default() };
        let gpu = block_on(WgpuBackend::open(0, options)).unwrap();
        for dtype in [KvType::F32, KvType::F16, KvType::Q8, KvType::Q4] {
            for head_dim in [32, 45, 64, 6] {
                let shape = KvShape { sequences: 2, kv_heads: 3, head_dim, capacity: 20, dtype };
                let stretch = stretch(shape);
                let (mut one, mut two) = (One::new(&cpu, &stretch), One::new(&gpu, &stretch));
                let width = stretch.widths[0];
                let hidden: Vec<f32> = (0..10 * width).map(|_| stream.normal()).collect();
                for (sequence, position) in [(1, 0), (0, 0), (1, 10)] {
                    one.submit(sequence, position, &hidden);
                    two.submit(sequence, position, &hidden);
                }
                for span in [
                    KvSpan { sequence: 1, positions: 0..20 },
                    KvSpan { sequence: 1, positions: 7..12 },
                    KvSpan { sequence: 0, positions: 3..4 },
                    KvSpan { sequence: 0, positions: 2..2 },
                ] {
                    let (wanted, found) = (one.read(&span), two.read(&span));
                    let count = wanted.keys.len() + wanted.values.len();
                    let pairs = wanted.keys.iter().zip(&found.keys);
                    let unlike = pairs.chain(wanted.values.iter().zip(&found.values)).filter(|(a, b)| a != b);
                    assert_eq!(
                        (wanted.keys.len(), wanted.values.len()),
                        (found.keys.len(), found.values.len())
                    );
                    let unlike = unlike.count();
                    assert!(
                        unlike * 200 <= count,
                        "{dtype:?} {head_dim} {span:?}: {unlike} of {count} differ"
                    );
                    // And back, elsewhere: bytes of anybody's become these bytes.
                    let to = KvSpan { sequence: 0, positions: 10..10 + span.positions.len().min(9) };
                    let from = KvSpan {
                        sequence: span.sequence,
                        positions: span.positions.start..span.positions.start + to.positions.len(),
                    };
                    let rows = one.read(&from);
                    two.write(&to, &rows);
                    assert_eq!(two.read(&to), rows, "{dtype:?} {head_dim} {span:?}");
                    one.write(&to, &rows);
                    assert_eq!(one.read(&to), rows);
                }
                for backend in [&one, &two] {
                    for (sequence, positions) in [(2, 0..1), (0, 0..21)] {
                        let span = KvSpan { sequence, positions };
                        assert!(block_on(backend.backend.read_kv(backend.slot, span)).is_err());
                    }
                    let span = KvSpan { sequence: 0, positions: 0..2 };
                    let rows = backend.read(&KvSpan { sequence: 0, positions: 0..1 });
                    assert!(block_on(backend.backend.write_kv(backend.slot, span, &rows)).is_err());
                }
                for (backend, one) in [(&cpu as &dyn Backend, one), (&gpu, two)] {
                    drop(one.program);
                    backend.release(&[one.slot]);
                }
            }
        }
    }
}
