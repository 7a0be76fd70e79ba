//! Where layers pass through a device: what is reserved for them, and which layer takes which place.
//!
//! Pure: the planner counts by it what the engine then reserves.

use crate::Blueprint;
use halfbyte_backend::{Caps, Fault, Footprint, Kind, Layout, Purpose, Stretch, Want};
use std::ops::Range;

/// Places that a stretch of layers passes through, one after the other. Neighbouring layers have different places,
/// so that one is filled while the other computes: two for a model of equal layers, one for each kind where kinds
/// alternate.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Lanes {
    /// What is reserved, each once.
    pub(crate) wants: Vec<Want>,
    /// The places.
    pub(crate) lanes: Vec<Lane>,
    /// The place of each layer.
    pub(crate) of: Vec<usize>,
    /// The wants of each layer, in the order of its place's.
    pub(crate) block_wants: Vec<Vec<Want>>,
}

/// One place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Lane {
    /// The steps of the layers that pass through it.
    pub(crate) stretch: Stretch,
    /// For each of the stretch's wants its index in [`Lanes::wants`].
    pub(crate) slots: Vec<usize>,
}

impl Lanes {
    /// The places for `blocks`, each a layer by itself.
    pub(crate) fn new(blueprint: &Blueprint, blocks: Range<usize>) -> Self {
        let mut lanes = Self::default();
        for block in blocks {
            let stretch = blueprint.stretch(block..block + 1);
            lanes.block_wants.push(stretch.wants.clone());
            let before = lanes.of.last().copied();
            let free = |&at: &usize| Some(at) != before && alike(&lanes.lanes[at].stretch, &stretch);
            let found = (0..lanes.lanes.len()).find(free);
            let at = found.unwrap_or_else(|| lanes.open(stretch));
            lanes.of.push(at);
        }
        lanes
    }

    /// A new place for layers like this one.
    fn open(&mut self, stretch: Stretch) -> usize {
        let number = self.lanes.len();
        let slots = stretch.wants.iter().map(|want| {
            // Tables are the same for all, and only one layer at a time needs its keys and values.
            let shared = matches!(want.kind, Kind::Rope(_) | Kind::Kv(_));
            let held = self.wants.iter().position(|held| shared && held.kind == want.kind);
            held.unwrap_or_else(|| {
                let name = format!("streamed {number}: {}", want.name);
                self.wants.push(Want { name, ..want.clone() });
                self.wants.len() - 1
            })
        });
        let slots = slots.collect();
        self.lanes.push(Lane { stretch, slots });
        number
    }

    /// Bytes that they take on a device of this layout.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] if the device cannot hold or run such a layer.
    pub(crate) fn footprint(&self, layout: &dyn Layout, caps: &Caps) -> Result<Footprint, Fault> {
        let mut footprint = Footprint::new();
        for want in &self.wants {
            footprint.merge(&layout.want_footprint(want)?);
        }
        for lane in &self.lanes {
            footprint.merge(&layout.program(&lane.stretch, &lane_caps(caps))?);
        }
        Ok(footprint)
    }
}

/// What a program for one layer may be asked: it has no head.
pub(crate) fn lane_caps(caps: &Caps) -> Caps {
    Caps { rows: caps.rows, outputs: 1 }
}

/// Whether two layers do the same to weights that take the same place.
fn alike(one: &Stretch, two: &Stretch) -> bool {
    one.steps == two.steps
        && one.widths == two.widths
        && (&one.inputs, &one.outputs) == (&two.inputs, &two.outputs)
        && one.wants.len() == two.wants.len()
        && one.wants.iter().zip(&two.wants).all(|(one, two)| one.kind.lies_as(&two.kind))
}

/// The steps before the layers that stream, which stay where they are: an embedding, mostly.
pub(crate) fn front(blueprint: &Blueprint, stage: Range<usize>, blocks: &Range<usize>) -> Option<Stretch> {
    // A stage that ends there has a program for just that.
    (stage.start < blocks.start && blocks.start < stage.end)
        .then(|| blueprint.stretch(stage.start..blocks.start))
}

/// Bytes of the hidden states of `rows` rows between two of the layers.
pub(crate) fn hidden_bytes(blueprint: &Blueprint, blocks: &Range<usize>, rows: usize) -> u64 {
    let width = |at: usize| -> usize {
        let inputs = blueprint.blocks.get(at).map_or(&[][..], |block| &block.inputs);
        inputs.iter().map(|reg| blueprint.widths.get(usize::from(reg.0)).copied().unwrap_or(0)).sum()
    };
    let widest = (blocks.start..=blocks.end).map(width).max().unwrap_or(0);
    (rows * widest) as u64 * 4
}

/// What streaming takes on the device that keeps the layers: a program of the steps before them, and hidden states.
///
/// # Errors
/// [`Fault::Unsupported`] if the device cannot run these steps.
pub(crate) fn host_footprint(
    blueprint: &Blueprint,
    stage: Range<usize>,
    blocks: &Range<usize>,
    layout: &dyn Layout,
    caps: &Caps,
    rows: usize,
) -> Result<Footprint, Fault> {
    let mut footprint = match front(blueprint, stage, blocks) {
        Some(stretch) => layout.program(&stretch, &lane_caps(caps))?,
        None => Footprint::new(),
    };
    footprint.add(Purpose::Activations, hidden_bytes(blueprint, blocks, rows));
    Ok(footprint)
}
