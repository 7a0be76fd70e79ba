//! What a plan says: of devices, of layers, of what streams, and why not.

use crate::devices::DISK;
use crate::planning::{ModelCosts, Planning, gpu_name};
use crate::rates::{RateSource, Rates};
use crate::weight_report::{WeightReport, weights};
use crate::{Error, StreamLayers};
use halfbyte_backend::{Footprint, Kind, Purpose};
use halfbyte_checkpoint::Checkpoint;
use halfbyte_placement::streaming::{Unstreamed, unstreamed};
use halfbyte_placement::{Device, DeviceClass, Plan, Reason, max_context, rates};
use std::collections::BTreeSet;

/// A block of the model and where it will live.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LayerReport {
    /// Its name: `model.embed_tokens`, `model.layers.0`, `lm_head`.
    pub name: String,
    /// Its device.
    pub device: String,
    /// Bytes of its weights and KV cache there.
    pub bytes: u64,
    /// Its matrices and the format of each.
    pub weights: Vec<WeightReport>,
}

/// What a device will hold.
#[derive(Debug, Clone, serde::Serialize)]
pub struct PlannedDevice {
    /// The device.
    pub device: String,
    /// Bytes that may be held on it; of the disk, bytes of files that may be read on it, `None` for as many as it takes.
    pub budget_bytes: Option<u64>,
    /// Where the budget comes from.
    pub budget_source: String,
    /// Bytes of memory that will be held on it, of all purposes. What layers on the disk take is the host's
    /// memory.
    pub planned_bytes: u64,
    /// Bytes of files that will be read where they lie, for every token.
    pub mapped_bytes: u64,
    /// Weights, embeddings and rope tables.
    pub weights_bytes: u64,
    /// Keys and values.
    pub kv_cache_bytes: u64,
    /// Registers and logits.
    pub activation_bytes: u64,
    /// Scratch and staging.
    pub scratch_bytes: u64,
    /// What it does in a second, where that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
    /// What disturbed the measurement of its rates, if they are to be measured again at the next start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rates_disturbed: Option<String>,
}

/// What a device in use is taken to read.
#[derive(Debug, Clone, serde::Serialize)]
pub struct UsedRate {
    /// The device.
    pub device: String,
    /// Bytes of weights a second.
    pub read_bytes_per_second: f64,
    /// Who says so.
    pub source: RateSource,
}

/// Layers that live on the CPU or the disk and stream to a GPU for prompts.
#[derive(Debug, Clone, serde::Serialize)]
pub struct StreamedReport {
    /// The GPU.
    pub device: String,
    /// How many layers.
    pub layers: usize,
    /// The fewest tokens of a prompt at once for which they do.
    pub from_tokens: usize,
    /// Bytes that this takes on the GPU: room for two layers, and their programs.
    pub bytes: u64,
}

/// Whether a model fits, and how.
#[derive(Debug, Clone, serde::Serialize)]
pub struct PlanReport {
    /// The model.
    pub model: String,
    /// Whether it fits.
    pub fits: bool,
    /// Every device that may be used.
    pub devices: Vec<PlannedDevice>,
    /// Every block, in order; empty if it does not fit.
    pub layers: Vec<LayerReport>,
    /// Tokens of context that are planned for.
    pub context: usize,
    /// The largest context that fits at all, up to what the model was made for.
    pub max_context: Option<usize>,
    /// Bytes of weights that are still to be downloaded.
    pub download_bytes: u64,
    /// What the rates predict for decoding, where they are known.
    pub predicted_tokens_per_second: Option<f64>,
    /// What the prediction rests on; empty where there is none.
    pub predicted_from: Vec<UsedRate>,
    /// The layers that stream to a GPU for prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streamed: Option<StreamedReport>,
    /// Why the layers on the CPU or the disk do not stream to a GPU for prompts, where there are such layers, a GPU, and
    /// leave to do so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_streamed: Option<String>,
    /// What would fit, each planned: options to give, and a smaller model of the same family by name.
    pub remedies: Vec<String>,
    /// Why it does not fit, in one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
}
impl Planning {
    /// Why layers of the host do not stream, where there are such layers, a GPU, and leave to do so.
    fn why_not_streamed(&self, plan: &Plan, devices: &[Device]) -> Option<String> {
        if self.request.streaming == StreamLayers::Never || plan.streamed.is_some() {
            return None;
        }
        let why = unstreamed(devices, &self.costs(), plan)?;
        if self.request.streaming == StreamLayers::Always {
            return Some(self.why_nothing_streams(plan));
        }
        let is_gpu = |&device: &usize| devices[device].kind == DeviceClass::Gpu;
        let gpu = plan.stages.iter().map(|stage| stage.device).find(is_gpu);
        let giga = |rate: f64| format!("{:.2} G", rate / 1e9);
        Some(match why {
            Unstreamed::Unknown(device) => {
                format!("the rates of {} are not known", devices[device].name)
            }
            Unstreamed::Never(speeds) => format!(
                "no prompt is long enough: of products a second {} does {}, what holds the layers {}, and weights \
                 reach it at {}B a second",
                gpu.map_or("the GPU", |gpu| gpu_name(self, gpu)),
                giga(speeds.gpu_products),
                giga(speeds.host_products),
                giga(speeds.upload_bytes),
            ),
            Unstreamed::Beyond(rows) => {
                format!("it would pay from {rows} tokens on, more than the context of {}", plan.context)
            }
            Unstreamed::NoRoom(rows) => {
                format!(
                    "it would pay from {rows} tokens on, but not for the room that it takes from other layers"
                )
            }
        })
    }

    /// What the plan says, or why there is none.
    ///
    /// # Errors
    /// A request that contradicts itself.
    pub(crate) fn report(&self) -> Result<PlanReport, Error> {
        let devices = self.devices();
        let costs = self.costs();
        let planned = match self.plan(&devices, &costs) {
            // A request that contradicts itself is no question of memory.
            Err(refusal) if matches!(refusal.reason, Reason::Invalid(_)) => return Err(refusal.into()),
            planned => planned,
        };
        let longest = max_context(&devices, &costs, &self.request.policy, self.model_context);
        let footprints: Vec<Footprint> = (0..devices.len())
            .map(|device| planned.as_ref().map(|plan| plan.footprint(device)).unwrap_or_default())
            .collect();
        let rows = devices.iter().zip(&footprints).zip(&self.candidates).map(|((device, bytes), one)| {
            PlannedDevice {
                device: device.name.clone(),
                budget_bytes: match device.kind {
                    DeviceClass::Disk => device.files,
                    _ => Some(device.budget),
                },
                budget_source: match (device.kind, device.files) {
                    (DeviceClass::Disk, files)
                        if files.is_some() && files == self.options.max_memory.get(DISK).copied() =>
                    {
                        "--max-memory".into()
                    }
                    (DeviceClass::Disk, Some(_)) => "what is free on it for the model's 4-bit form".into(),
                    (DeviceClass::Disk, None) => {
                        "its files are there; what it takes of memory is the CPU's".into()
                    }
                    _ => device.budget_source.clone(),
                },
                planned_bytes: bytes.total(),
                mapped_bytes: bytes.mapped(),
                weights_bytes: bytes.get(Purpose::Weights)
                    + bytes.get(Purpose::Embeddings)
                    + bytes.get(Purpose::RopeTable),
                kv_cache_bytes: bytes.get(Purpose::KvCache),
                activation_bytes: bytes.get(Purpose::Activations) + bytes.get(Purpose::Logits),
                scratch_bytes: bytes.get(Purpose::Scratch) + bytes.get(Purpose::Staging),
                rates: Rates::of(device),
                rates_disturbed: one.rated.disturbed.clone(),
            }
        });
        let layers = match &planned {
            Ok(plan) => self.layers(plan, &devices, &costs)?,
            Err(_) => Vec::new(),
        };
        Ok(PlanReport {
            model: self.model.name().to_owned(),
            fits: planned.is_ok(),
            devices: rows.collect(),
            layers,
            context: planned.as_ref().map_or_else(|refusal| refusal.context, |plan| plan.context),
            max_context: longest,
            download_bytes: self.model.checkpoint().map_or(0, Checkpoint::missing_bytes),
            streamed: planned.as_ref().ok().and_then(|plan| plan.streamed.as_ref()).map(|streamed| {
                StreamedReport {
                    device: devices[streamed.device].name.clone(),
                    layers: streamed.blocks.len(),
                    from_tokens: streamed.from_rows,
                    bytes: streamed.footprint.total(),
                }
            }),
            not_streamed: planned.as_ref().ok().and_then(|plan| self.why_not_streamed(plan, &devices)),
            predicted_tokens_per_second: planned
                .as_ref()
                .ok()
                .and_then(|plan| plan.predicted_tokens_per_second),
            predicted_from: planned
                .as_ref()
                .map_or_else(|_| Vec::new(), |plan| self.used_rates(plan, &devices)),
            remedies: planned.as_ref().err().map_or_else(Vec::new, |refusal| {
                refusal.remedies.iter().map(|remedy| remedy.options.clone()).collect()
            }),
            refusal: planned.err().map(|refusal| refusal.to_string()),
        })
    }

    /// What the prediction of a plan rests on.
    fn used_rates(&self, plan: &Plan, devices: &[Device]) -> Vec<UsedRate> {
        if plan.predicted_tokens_per_second.is_none() {
            return Vec::new();
        }
        let (used, rates) = (plan.stages.iter().map(|stage| stage.device), rates(devices));
        let rate = |device: usize| UsedRate {
            device: devices[device].name.clone(),
            read_bytes_per_second: rates[device],
            source: self.candidates[device].rated.source,
        };
        used.collect::<BTreeSet<usize>>().into_iter().map(rate).collect()
    }

    /// Each block's own wants; a tied tensor is counted with each block that holds it.
    fn layers(
        &self,
        plan: &Plan,
        devices: &[Device],
        costs: &ModelCosts<'_>,
    ) -> Result<Vec<LayerReport>, Error> {
        let blueprint = costs.blueprint(plan.context)?;
        let mut layers = Vec::new();
        for (index, block) in blueprint.blocks.iter().enumerate() {
            let Some(device) = plan.device_of(index) else { continue };
            let layout = self.candidates[device].backend.layout();
            let mut bytes = 0;
            let stretch = blueprint.stretch(index..index + 1);
            for want in &stretch.wants {
                if !matches!(want.kind, Kind::Rope(_)) {
                    let footprint = layout.want_footprint(want)?;
                    bytes += footprint.total() + footprint.mapped();
                }
            }
            layers.push(LayerReport {
                name: block.name.clone(),
                device: devices[device].name.clone(),
                bytes,
                weights: weights(&stretch.wants),
            });
        }
        Ok(layers)
    }
}
