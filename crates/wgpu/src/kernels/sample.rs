//! `sample.wgsl`: a choice by chance.

use super::{Places, Register};
use crate::pipeline::{Extent, Launch};
use halfbyte_shaders::{Flags, Kernel, Variant};

/// Threads of a workgroup; each keeps candidates of its own.
pub(crate) const THREADS: usize = 128;

/// What is drawn from, and what is remembered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample<'a> {
    pub(crate) places: Places<'a>,
    pub(crate) logits: Register<'a>,
    pub(crate) vocabulary: usize,
    pub(crate) chosen: &'a wgpu::Buffer,
    pub(crate) seen: &'a wgpu::Buffer,
    pub(crate) candidates: &'a wgpu::Buffer,
}

/// Words of a sequence's set of seen tokens.
pub(crate) fn seen_words(vocabulary: usize) -> usize {
    vocabulary.div_ceil(32)
}

/// Draws a token for each row of logits.
pub(crate) fn launch<'a>(sample: &Sample<'a>) -> Launch<'a> {
    let mut launch = Launch {
        variant: Variant { kernel: Kernel::Sample, flags: Flags::default() },
        constants: vec![
            ("VOCABULARY", sample.vocabulary as f64),
            ("STRIDE", sample.logits.stride as f64),
            ("SEEN_WORDS", seen_words(sample.vocabulary) as f64),
        ],
        bindings: Vec::new(),
        grid: [Extent::Outputs(1), Extent::Fixed(1), Extent::Fixed(1)],
    };
    sample.places.bind(&mut launch);
    launch.read(1, sample.logits.buffer);
    launch.write(2, sample.chosen);
    launch.write(3, sample.seen);
    launch.write(4, sample.candidates);
    launch
}
