//! What was done, as an event says it.

use super::Loader;
use crate::KvType;
use halfbyte_placement::Costs;
use halfbyte_placement::ladder::{Action, State};

impl Loader {
    /// What is done, in words.
    pub(super) fn say(&self, actions: &[Action], to: &State) -> String {
        let costs = self.planning.costs();
        let device = |at: usize| to.devices[at].name.as_str();
        let words = actions.iter().map(|action| match action {
            Action::Release => "released caches and scratch and tried again".to_owned(),
            Action::Chunk(chunk) if *chunk < self.planning.options.chunk => "smaller chunks".into(),
            Action::Chunk(_) => "larger chunks".into(),
            Action::Move { blocks, from, to } => {
                let last = costs.name(blocks.end - 1);
                let names = match blocks.len() {
                    1 => last,
                    _ => format!("{} to {last}", costs.name(blocks.start)),
                };
                format!("{names} moved from {} to {}", device(*from), device(*to))
            }
            Action::Context(context) => format!("a context of {context}"),
            Action::Stream(true) => "layers stream for prompts again".into(),
            Action::Stream(false) => "layers stream no more for prompts".into(),
            Action::Kv(kv) => format!("the KV cache in {}, the text may differ", kv_name(*kv)),
        });
        let words: Vec<String> = words.collect();
        if words.is_empty() { "placed again".into() } else { words.join(", ") }
    }

    pub(super) fn describe(&self, state: &State) -> String {
        let plan = &state.plan;
        let stages = plan
            .stages
            .iter()
            .map(|stage| format!("{} blocks on {}", stage.blocks.len(), state.devices[stage.device].name));
        let stages = stages.collect::<Vec<_>>().join(", ");
        let chunk = state.setting.chunk.min(plan.context.max(1));
        format!("{stages}, {} tokens of context, {chunk} at once", plan.context)
    }
}

/// As `--kv-cache` has it.
fn kv_name(kv: KvType) -> &'static str {
    match kv {
        KvType::F32 => "f32",
        KvType::F16 => "f16",
        KvType::Q8 => "q8",
        KvType::Q4 => "q4",
    }
}
