//! What is lost by caches of fewer bits and by f16 slabs: the mean Kullback-Leibler divergence of the next
//! token's distribution from that of 32 bits, in nats a token.
//!
//! The bounds are twice what was measured when they were set (`cargo test -p halfbyte-wgpu --test quality
//! -- --nocapture` prints it; ARCHITECTURE.md has the figures): a kernel that rounds once too often, or forms a
//! scale of the wrong block, loses more than that.

mod models;

use halfbyte_backend::{Backend, Canonical, DType, Fut, KvType, Segment, WeightSource};
use halfbyte_checkpoint::Checkpoint;
use halfbyte_inference::{CheckpointSource, logits};
use halfbyte_quant::QuantSpec;
use halfbyte_wgpu::{Options, Tuning};
use models::{device, load, open};
use pollster::block_on;
use std::borrow::Cow;
use std::rc::Rc;

/// Mean of `sum p ln (p / q)` over rows, in f64.
fn divergence(wanted: &[f32], found: &[f32], vocabulary: usize) -> f64 {
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&x| f64::from(x - largest).exp()).sum();
        row.iter().map(|&x| f64::from(x - largest) - sum.ln()).collect()
    };
    assert_eq!(wanted.len(), found.len());
    let rows = wanted.len() / vocabulary;
    let of_row = |(p, q): (&[f32], &[f32])| -> f64 {
        let (p, q) = (log_softmax(p), log_softmax(q));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
    };
    wanted.chunks(vocabulary).zip(found.chunks(vocabulary)).map(of_row).sum::<f64>() / rows as f64
}

/// A model, what feeds it, and what it reads.
struct Subject<'a> {
    checkpoint: &'a Checkpoint,
    source: &'a dyn WeightSource,
    quant: Option<QuantSpec>,
    tokens: Vec<u32>,
}

impl Subject<'_> {
    fn logits(&self, kv: KvType, backend: Rc<dyn Backend>) -> (Vec<f32>, usize) {
        let mut engine = load(self.checkpoint, self.source, self.quant, kv, backend, 64);
        let logits = block_on(logits(&mut engine, 0, &self.tokens)).unwrap();
        (logits, engine.blueprint().logits)
    }

    /// Divergences of f16, q8 and q4 caches and of f16 slabs.
    fn measure(&self, name: &str) -> [f64; 4] {
        let gpu = |half_slabs| {
            let tuning = Tuning { half_slabs, ..Tuning::gpu(None) };
            device(Options { tuning: Some(tuning), ..Options::default() })
        };
        let exact = gpu(false);
        let (wanted, vocabulary) = self.logits(KvType::F32, Rc::clone(&exact));
        let with = |kv| divergence(&wanted, &self.logits(kv, Rc::clone(&exact)).0, vocabulary);
        let half = divergence(&wanted, &self.logits(KvType::F32, gpu(true)).0, vocabulary);
        let found = [with(KvType::F16), with(KvType::Q8), with(KvType::Q4), half];
        println!(
            "{name}: f16 {:.2e}, q8 {:.2e}, q4 {:.2e}, f16 slabs {:.2e}",
            found[0], found[1], found[2], found[3]
        );
        found
    }
}

fn gate(name: &str, found: [f64; 4], bounds: [f64; 4]) {
    for ((what, found), bound) in
        ["f16 cache", "q8 cache", "q4 cache", "f16 slabs"].iter().zip(found).zip(bounds)
    {
        assert!(found <= bound, "{name}, {what}: {found:.2e} nats, over {bound:.2e}");
        // Nothing is lost only where nothing was done.
        assert!(found > 0.0, "{name}, {what}: no loss at all");
    }
}

#[test]
fn stories() {
    let checkpoint = open("models/stories");
    let tokenizer = checkpoint.tokenizer().unwrap();
    let text = include_str!("../../../models/stories/heldout.txt");
    let tokens: Vec<u32> = tokenizer.encode(text, true).unwrap().into_iter().take(448).collect();
    let source = CheckpointSource::new(&checkpoint);
    let quant = Some(QuantSpec::default());
    let subject = Subject { checkpoint: &checkpoint, source: &source, quant, tokens };
    gate("stories", subject.measure("stories"), [3e-7, 1e-4, 3.6e-2, 4e-7]);
}

/// A model of random weights whose embedding is a thousand times larger in two channels, as the residual
/// streams of large models are (Dettmers et al. 2022), and whose logits are as sharp as a trained model's.
struct Outliers<'a>(CheckpointSource<'a>);

impl WeightSource for Outliers<'_> {
    fn segment<'a>(&'a self, segment: &'a Segment) -> Fut<'a, Canonical<'a>> {
        Box::pin(async move {
            let canonical = self.0.segment(segment).await?;
            let (embedding, head) =
                (segment.tensor == "model.embed_tokens.weight", segment.tensor == "lm_head.weight");
            let Canonical::Dense { dtype: DType::F32, bytes } = &canonical else { return Ok(canonical) };
            if !embedding && !head {
                return Ok(canonical);
            }
            let scaled = |(i, bytes): (usize, &[u8])| {
                let value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                let factor = match i % segment.cols {
                    5 | 40 if embedding => 1000.0,
                    _ if head => 10.0,
                    _ => 1.0,
                };
                (value * factor).to_le_bytes()
            };
            let bytes: Vec<u8> = bytes.chunks_exact(4).enumerate().flat_map(scaled).collect();
            Ok(Canonical::Dense { dtype: DType::F32, bytes: Cow::Owned(bytes) })
        })
    }

    fn vector<'a>(&'a self, name: &'a str, len: usize) -> Fut<'a, Vec<f32>> {
        self.0.vector(name, len)
    }
}

#[test]
fn outlier_channels() {
    let checkpoint = open("tests/fixtures/models/llama_mha");
    let source = Outliers(CheckpointSource::new(&checkpoint));
    let tokens = (0..120).map(|i| 3 + i * 37 % 311).collect();
    let quant = Some(QuantSpec::default());
    let subject = Subject { checkpoint: &checkpoint, source: &source, quant, tokens };
    gate("outliers", subject.measure("outliers"), [1e-9, 2e-8, 1.1e-5, 3.2e-6]);
}
