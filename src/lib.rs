//! Run Hugging Face models in 4 bits on any GPU, the CPU, or both at once.
//!
//! ```
//! use halfbyte::{CausalLm, Flow, GenerateOptions};
//!
//! # fn main() -> Result<(), halfbyte::Error> {
//! // A Hub id such as "meta-llama/Llama-2-7b-hf", a local directory, or the bundled "stories".
//! let mut model = CausalLm::from_pretrained("stories")?;
//! let options = GenerateOptions { max_new_tokens: 20, ..model.default_options() };
//! let story = model.generate("Once there was", &options, &mut |text| {
//!     print!("{text}");
//!     Flow::Continue
//! })?;
//! assert_eq!(story.token_ids.len(), 20);
//! # Ok(())
//! # }
//! ```
//!
//! What Python spells `AutoModelForCausalLM.from_pretrained(id, device_map="auto",
//! quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
//! bnb_4bit_use_double_quant=True))` is the default here; [`LoadOptions`] has the counterpart of every
//! word of it.
//!
//! Before anything is loaded, [`plan`] says what will live where, in bytes, and whether it fits; loading
//! follows that plan. Calls block: this crate is the outermost door. Underneath, everything is futures.

#![forbid(unsafe_code)]

mod attempts;
mod auto_model;
mod batch_attempts;
mod bench;
mod causal_lm;
mod chat;
mod cuda_devices;
mod devices;
mod doctor;
mod embedder;
mod error;
mod event;
mod file_form;
mod four_bit_cache;
mod heard;
mod holdings;
mod loading;
mod memory_report;
mod model_source;
mod opened;
mod options;
mod plan_report;
mod planning;
mod pressure;
mod profile;
mod progress;
mod quantize;
mod rates;
mod recovery;
mod sequence_classifier;
mod token_classifier;
mod unused_layers;
mod watch;
mod weight_report;
mod witness;

pub use auto_model::AutoModel;
pub use bench::{BenchDevice, BenchOptions, BenchReport, BenchRow, bench};
pub use causal_lm::{CausalLm, GenerateOptions, Generation, Stop};
pub use chat::Chat;
pub use devices::{DeviceReport, DevicesReport, devices};
pub use doctor::{DoctorCase, DoctorDevice, DoctorReport, doctor};
pub use embedder::{Embedder, Pooling};
pub use error::Error;
pub use event::{Event, EventKind, Subscription, on_event};
pub use four_bit_cache::FourBitCache;
pub use halfbyte_allocation::{Allocator, share_arenas};
pub use halfbyte_backend::{FaultCounts, FaultSpec, KvType, SampleParams, argmax, human_bytes};
pub use halfbyte_checkpoint::{Checkpoint, TensorDtype};
pub use halfbyte_inference::{Encoded, Features, Flow, Score, Task};
pub use halfbyte_placement::{Refusal, Remedy};
pub use halfbyte_quant::{QuantSpec, QuantType};
pub use heard::Heard;
pub use loading::Loaded;
pub use memory_report::{MemoryRow, PurposeRow};
pub use model_source::ModelSource;
pub use options::{
    ComputeDtype, CpuMath, DeviceMap, LoadOptions, StreamLayers, Token, parse_bytes, parse_max_memory,
    parse_pretend_memory, parse_stream_layers,
};
pub use plan_report::{LayerReport, PlanReport, PlannedDevice, StreamedReport, UsedRate};
pub use planning::plan;
pub use profile::{DecodeProfile, StepProfile};
pub use progress::{Progress, Silent};
pub use quantize::{QuantizeOptions, QuantizeReport, quantize};
pub use rates::{RateSource, Rates};
pub use sequence_classifier::{Classification, LabelScore, SequenceClassifier};
pub use token_classifier::{Entity, TokenClassifier, TokenLabel};
pub use watch::{MemoryEvent, MemorySample, Watch, watch};
pub use weight_report::WeightReport;
pub use witness::{peak_resident, private_resident};
