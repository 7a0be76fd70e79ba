//! A backend in f64, written from the definitions of the steps and nothing else: slow, and as exact as
//! f32 inputs allow. It shows that the table can be passed, and that its mutants cannot.

mod program;
mod steps;

use half::{bf16, f16};
use halfbyte_backend::{
    Backend, Canonical, Caps, DType, DeviceInfo, DeviceKind, Fault, Footprint, Fut, Kind, KvShape, Layout,
    Ledger, LinearShape, Memory, Program, Purpose, Slot, Stretch, Want, WeightSource,
};
use program::Compiled;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// What a slot holds.
pub enum Held {
    /// `[rows, cols]` in the layer's order of rows, and `[rows]`.
    Matrix { cols: usize, values: Vec<f64>, bias: Vec<f64> },
    /// Weight and bias, `[len]`.
    Norm { weight: Vec<f64>, bias: Vec<f64> },
    /// `[positions, pairs, 2]`
    Rope { pairs: usize, values: Vec<f64> },
    /// Keys and values, each `[sequences, slots, kv_heads, head_dim]`.
    Kv { shape: KvShape, keys: Vec<f64>, values: Vec<f64> },
}

type Slots = Rc<RefCell<BTreeMap<u64, Held>>>;

/// The backend.
pub struct Oracle {
    info: DeviceInfo,
    ledger: Rc<Ledger>,
    slots: Slots,
    /// Tickets of the ledger by slot.
    tickets: RefCell<BTreeMap<u64, u64>>,
    /// What it gets wrong.
    pub flaw: Flaw,
}

/// Something that a backend could get wrong and that no change of a case expresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "the backends' own tests include this file and use the right one alone")]
pub enum Flaw {
    /// Nothing.
    None,
    /// The layout forgets eight bytes of a program.
    Layout,
    /// A released slot stays in the ledger.
    Leak,
    /// Requests that contradict the program are answered.
    AcceptsAll,
    /// A ring has a slot less than it should.
    ShortRing,
    /// A causal row sees the position after its own, whatever was there before.
    SeesNext,
    /// Any logit that rounding could put first wins. No flaw: cases must not hang on rounding.
    TakesNear,
    /// A linear step adds to its output where it should write it.
    AddsToOutput,
    /// The highest id wins among equals.
    HighestTie,
    /// All rows go on with the first choice.
    FirstChoice,
    /// Greedy choices are not kept for the next submission.
    ForgetsChoice,
}

impl Flaw {
    /// After how many positions a slot is taken again.
    fn around(self, shape: &KvShape) -> usize {
        shape.slots() - usize::from(self == Flaw::ShortRing && shape.ring.is_some())
    }
}

impl Oracle {
    pub fn new() -> Self {
        let info = DeviceInfo {
            name: "oracle".into(),
            adapter: "f64".into(),
            driver: String::new(),
            kind: DeviceKind::Cpu,
            limits: Vec::new(),
        };
        Self {
            info,
            ledger: Rc::default(),
            slots: Rc::default(),
            tickets: RefCell::default(),
            flaw: Flaw::None,
        }
    }
}

impl Layout for Oracle {
    fn want(&self, kind: &Kind) -> Result<u64, Fault> {
        Ok(match kind {
            Kind::Linear(shape) => (shape.rows() * (shape.cols() + 1)) as u64 * 8,
            Kind::Norm(shape) => shape.len as u64 * 16,
            Kind::Rope(shape) => shape.bytes() * 2,
            Kind::Kv(shape) => {
                (2 * shape.sequences * shape.slots() * shape.kv_heads * shape.head_dim) as u64 * 8
            }
        })
    }

    fn program(&self, stretch: &Stretch, caps: &Caps) -> Result<Footprint, Fault> {
        let forgotten = if self.flaw == Flaw::Layout { 8 } else { 0 };
        Ok(Footprint::of(Purpose::Activations, register_bytes(stretch, caps) - forgotten))
    }

    fn resident(&self) -> Footprint {
        Footprint::new()
    }
}

impl Backend for Oracle {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn layout(&self) -> &dyn Layout {
        self
    }

    fn memory(&self) -> Memory {
        Memory { pool: "oracle".into(), total: None, free: None, source: "nowhere".into() }
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn reserve<'a>(&'a self, wants: &'a [Want]) -> Fut<'a, Vec<Slot>> {
        Box::pin(async move {
            let mut slots = Vec::new();
            for want in wants {
                let id = self.ledger.enter(&want.name, want.purpose, self.want(&want.kind)?);
                self.tickets.borrow_mut().insert(id, id);
                self.slots.borrow_mut().insert(id, empty(&want.kind));
                slots.push(Slot(id));
            }
            Ok(slots)
        })
    }

    fn upload<'a>(&'a self, slot: Slot, want: &'a Want, source: &'a dyn WeightSource) -> Fut<'a, ()> {
        Box::pin(async move {
            let held = match &want.kind {
                Kind::Linear(shape) => matrix(shape, source).await?,
                Kind::Norm(shape) => {
                    let weight = source.vector(&shape.weight, shape.len).await?;
                    let bias = match &shape.bias {
                        Some(name) => source.vector(name, shape.len).await?,
                        None => vec![0.0; shape.len],
                    };
                    Held::Norm { weight: widen(&weight), bias: widen(&bias) }
                }
                Kind::Rope(_) | Kind::Kv(_) => return Err(Fault::Internal("nothing to upload".into())),
            };
            self.slots.borrow_mut().insert(slot.0, held);
            Ok(())
        })
    }

    fn release(&self, slots: &[Slot]) {
        let leaked = usize::from(self.flaw == Flaw::Leak);
        for slot in slots.iter().skip(leaked) {
            self.slots.borrow_mut().remove(&slot.0);
            if let Some(ticket) = self.tickets.borrow_mut().remove(&slot.0) {
                self.ledger.strike(ticket);
            }
        }
    }

    fn compile<'a>(
        &'a self,
        stretch: &'a Stretch,
        slots: &'a [Slot],
        caps: Caps,
    ) -> Fut<'a, Box<dyn Program>> {
        Box::pin(async move {
            stretch.check()?;
            let bytes = register_bytes(stretch, &caps);
            let ticket = self.ledger.enter("registers", Purpose::Activations, bytes);
            let compiled = Compiled::new(
                stretch,
                slots,
                caps,
                self.slots.clone(),
                self.ledger.clone(),
                ticket,
                self.flaw,
            );
            Ok(Box::new(compiled) as Box<dyn Program>)
        })
    }
}

fn register_bytes(stretch: &Stretch, caps: &Caps) -> u64 {
    (stretch.widths.iter().sum::<usize>() * caps.rows) as u64 * 8
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// A slot before its upload.
fn empty(kind: &Kind) -> Held {
    match kind {
        Kind::Linear(_) | Kind::Norm(_) => Held::Norm { weight: Vec::new(), bias: Vec::new() },
        Kind::Rope(shape) => {
            let table = shape.table();
            Held::Rope { pairs: table.pairs, values: widen(&table.values) }
        }
        Kind::Kv(shape) => {
            let len = shape.sequences * shape.slots() * shape.kv_heads * shape.head_dim;
            Held::Kv { shape: *shape, keys: vec![0.0; len], values: vec![0.0; len] }
        }
    }
}

async fn matrix(shape: &LinearShape, source: &dyn WeightSource) -> Result<Held, Fault> {
    let (rows, cols) = (shape.rows(), shape.cols());
    let mut segments = Vec::new();
    let mut biases = Vec::new();
    for segment in &shape.segments {
        segments.push(match source.segment(segment).await? {
            Canonical::Quantized(quantized) => widen(&quantized.dequantize()),
            Canonical::Dense { dtype, bytes } => dense(dtype, &bytes),
        });
        biases.push(match &segment.bias {
            Some(name) => widen(&source.vector(name, segment.rows).await?),
            None => vec![0.0; segment.rows],
        });
    }
    let order: Vec<(usize, usize)> = (0..rows).map(|row| shape.source_row(row)).collect();
    let row = |&(segment, row): &(usize, usize)| segments[segment][row * cols..][..cols].to_vec();
    let values = order.iter().flat_map(row).collect();
    let bias = order.iter().map(|&(segment, row)| biases[segment][row]).collect();
    Ok(Held::Matrix { cols, values, bias })
}

fn dense(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let halves = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        DType::F32 => {
            bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
        }
        DType::F16 => halves().map(|b| f16::from_le_bytes(b).to_f64()).collect(),
        DType::Bf16 => halves().map(|b| bf16::from_le_bytes(b).to_f64()).collect(),
    }
}
