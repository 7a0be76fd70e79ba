//! Keys and values as they leave a cache and as they come back: in the form that every backend has in common.

use crate::random::Stream;
use crate::{
    Attend, Backend, Caps, Fault, Input, Kind, KvRows, KvShape, KvSpan, KvType, Output, Place, Program,
    Purpose, Reg, Rows, Slot, Step, Stretch, Want, WantId,
};

/// Rows of a submission.
const ROWS: u32 = 10;

/// What `reference` writes `subject` reads, and the other way round: the very records, but where a number lies between
/// two codes (one byte of 200); and records that were written come back as they are.
///
/// # Errors
/// What differs, or what a backend says.
pub async fn compare_kv(
    reference: &dyn Backend,
    subject: &dyn Backend,
    dtype: KvType,
    head_dim: usize,
) -> Result<(), String> {
    let shape = KvShape { sequences: 2, kv_heads: 3, head_dim, capacity: 20, ring: None, dtype };
    let ring = KvShape { capacity: 40, ring: Some(20), ..shape };
    for (shape, window) in [(shape, None), (ring, Some(11))] {
        let stretch = stretch(shape, window);
        let said = |fault: Fault| format!("{shape:?}: {fault}");
        let mut one = One::new(reference, &stretch).await.map_err(said)?;
        let mut two = One::new(subject, &stretch).await.map_err(said)?;
        let outcome = match shape.ring {
            None => compare(&mut one, &mut two, &stretch).await,
            Some(_) => compare_rings(&mut one, &mut two, &stretch).await,
        };
        one.close();
        two.close();
        outcome.map_err(|error| format!("{shape:?}: {error}"))?;
    }
    Ok(())
}

/// Spans that go around a ring of 20 slots.
async fn compare_rings(one: &mut One<'_>, two: &mut One<'_>, stretch: &Stretch) -> Result<(), String> {
    let said = |fault: Fault| fault.to_string();
    let mut stream = Stream::new(43);
    let hidden: Vec<f32> = (0..ROWS as usize * stretch.widths[0]).map(|_| stream.normal()).collect();
    for position in [0, 10, 20] {
        one.submit(1, position, &hidden).await.map_err(said)?;
        two.submit(1, position, &hidden).await.map_err(said)?;
    }
    for positions in [10..30, 15..25, 20..30] {
        let span = KvSpan { sequence: 1, positions };
        let (wanted, found) = (one.read(&span).await.map_err(said)?, two.read(&span).await.map_err(said)?);
        same_records(&wanted, &found).map_err(|error| format!("{span:?}: {error}"))?;
    }
    let rows = one.read(&KvSpan { sequence: 1, positions: 12..26 }).await.map_err(said)?;
    let to = KvSpan { sequence: 0, positions: 33..40 };
    for backend in [&*one, &*two] {
        let rows = backend.read(&KvSpan { sequence: 1, positions: 17..24 }).await.map_err(said)?;
        backend.write(&to, &rows).await.map_err(said)?;
        if backend.read(&to).await.map_err(said)? != rows {
            return Err(format!("{to:?} is read otherwise than it was written"));
        }
        if backend.read(&KvSpan { sequence: 1, positions: 9..30 }).await.is_ok() {
            return Err("more positions are read than there are slots".into());
        }
    }
    let span = KvSpan { sequence: 1, positions: 12..26 };
    two.write(&span, &rows).await.map_err(said)?;
    if two.read(&span).await.map_err(said)? != rows {
        return Err(format!("the subject reads {span:?} otherwise than it was written"));
    }
    Ok(())
}

async fn compare(one: &mut One<'_>, two: &mut One<'_>, stretch: &Stretch) -> Result<(), String> {
    let said = |fault: Fault| fault.to_string();
    let mut stream = Stream::new(41);
    let hidden: Vec<f32> = (0..ROWS as usize * stretch.widths[0]).map(|_| stream.normal()).collect();
    for (sequence, position) in [(1, 0), (0, 0), (1, 10)] {
        one.submit(sequence, position, &hidden).await.map_err(said)?;
        two.submit(sequence, position, &hidden).await.map_err(said)?;
    }
    for (sequence, positions) in [(1, 0..20), (1, 7..12), (0, 3..4), (0, 2..2)] {
        let span = KvSpan { sequence, positions };
        let (wanted, found) = (one.read(&span).await.map_err(said)?, two.read(&span).await.map_err(said)?);
        same_records(&wanted, &found).map_err(|error| format!("{span:?}: {error}"))?;
        // And back, elsewhere: bytes of anybody's become these bytes.
        let count = span.positions.len().min(9);
        let from = KvSpan { sequence, positions: span.positions.start..span.positions.start + count };
        let to = KvSpan { sequence: 0, positions: 10..10 + count };
        let rows = one.read(&from).await.map_err(said)?;
        for (name, backend) in [("reference", &*one), ("subject", &*two)] {
            // Beside them nothing changes.
            let beside = KvSpan { sequence: 0, positions: 0..10 };
            let before = backend.read(&beside).await.map_err(said)?;
            backend.write(&to, &rows).await.map_err(said)?;
            if backend.read(&to).await.map_err(said)? != rows {
                return Err(format!("the {name} reads {to:?} otherwise than it was written"));
            }
            if backend.read(&beside).await.map_err(said)? != before {
                return Err(format!("the {name} writes {to:?} and something else, too"));
            }
        }
    }
    for backend in [&*one, &*two] {
        for (sequence, positions) in [(2, 0..1), (0, 0..21)] {
            if backend.read(&KvSpan { sequence, positions }).await.is_ok() {
                return Err("a span beyond the cache is read".into());
            }
        }
        let rows = backend.read(&KvSpan { sequence: 0, positions: 0..1 }).await.map_err(said)?;
        if backend.write(&KvSpan { sequence: 0, positions: 0..2 }, &rows).await.is_ok() {
            return Err("one position is written as two".into());
        }
    }
    Ok(())
}

fn same_records(wanted: &KvRows, found: &KvRows) -> Result<(), String> {
    let lengths = |rows: &KvRows| (rows.keys.len(), rows.values.len());
    if lengths(wanted) != lengths(found) {
        return Err(format!("{:?} bytes where {:?} are due", lengths(found), lengths(wanted)));
    }
    let pairs = wanted.keys.iter().zip(&found.keys).chain(wanted.values.iter().zip(&found.values));
    let (count, unlike) = (wanted.keys.len() * 2, pairs.filter(|(a, b)| a != b).count());
    if unlike * 200 > count { Err(format!("{unlike} of {count} bytes differ")) } else { Ok(()) }
}

/// One attention over a cache.
fn stretch(shape: KvShape, window: Option<usize>) -> Stretch {
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
        window,
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
    async fn new(backend: &'b dyn Backend, stretch: &Stretch) -> Result<Self, Fault> {
        let slots = backend.reserve(&stretch.wants).await?;
        let program = backend.compile(stretch, &slots, Caps { rows: 16, outputs: 1 }).await?;
        Ok(Self { backend, slot: slots[0], program })
    }

    async fn submit(&mut self, sequence: u32, position: u32, hidden: &[f32]) -> Result<(), Fault> {
        let places: Vec<Place> =
            (position..position + ROWS).map(|position| Place { sequence, position, token_type: 0 }).collect();
        let rows = Rows { input: Input::Hidden(hidden), places: &places, output: Output::Hidden };
        self.program.submit(&rows)?.await.map(|_| ())
    }

    async fn read(&self, span: &KvSpan) -> Result<KvRows, Fault> {
        self.backend.read_kv(self.slot, span.clone()).await
    }

    async fn write(&self, span: &KvSpan, rows: &KvRows) -> Result<(), Fault> {
        self.backend.write_kv(self.slot, span.clone(), rows).await
    }

    fn close(self) {
        drop(self.program);
        self.backend.release(&[self.slot]);
    }
}
