//! The numbers of each model's `config.json`.

/// Models of one maker and one tokenizer.
pub(super) struct Family {
    pub(super) architecture: &'static str,
    /// Rows of the embedding: what tells families of one architecture apart.
    pub(super) vocabularies: &'static [usize],
    /// What its `config.json` has besides sizes.
    pub(super) config: &'static str,
    /// From small to large.
    pub(super) members: &'static [Member],
}

/// One of them in its sizes.
pub(super) struct Member {
    /// The base model, and the one that was trained to talk; one of them may be missing.
    pub(super) base: Option<&'static str>,
    pub(super) chat: Option<&'static str>,
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) intermediate: usize,
    pub(super) vocabulary: usize,
    pub(super) positions: usize,
    pub(super) tied: bool,
}

/// A row of the table: names, then hidden size, layers, heads, heads of keys and values, head size, feed-forward
/// size, vocabulary, positions, and whether the head is the embedding.
const fn member(
    [base, chat]: [&'static str; 2],
    [hidden, layers, heads, kv_heads, head_dim, intermediate, vocabulary, positions]: [usize; 8],
    tied: bool,
) -> Member {
    const fn there(name: &'static str) -> Option<&'static str> {
        if name.is_empty() { None } else { Some(name) }
    }
    let (base, chat) = (there(base), there(chat));
    Member {
        base,
        chat,
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate,
        vocabulary,
        positions,
        tied,
    }
}

// A model a line.
#[rustfmt::skip]
pub(super) const FAMILIES: &[Family] = &[
    Family {
        architecture: "LlamaForCausalLM",
        vocabularies: &[128256],
        config: r#""model_type": "llama", "hidden_act": "silu""#,
        members: &[
            member(["meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"], [2048, 16, 32, 8, 64, 8192, 128256, 131072], true),
            member(["meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct"], [3072, 28, 24, 8, 128, 8192, 128256, 131072], true),
            member(["meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"], [4096, 32, 32, 8, 128, 14336, 128256, 131072], false),
            member(["meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-70B-Instruct"], [8192, 80, 64, 8, 128, 28672, 128256, 131072], false),
        ],
    },
    Family {
        architecture: "LlamaForCausalLM",
        vocabularies: &[32000],
        config: r#""model_type": "llama", "hidden_act": "silu""#,
        members: &[
            member(["", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"], [2048, 22, 32, 4, 64, 5632, 32000, 2048], false),
            member(["meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf"], [4096, 32, 32, 32, 128, 11008, 32000, 4096], false),
            member(["meta-llama/Llama-2-13b-hf", "meta-llama/Llama-2-13b-chat-hf"], [5120, 40, 40, 40, 128, 13824, 32000, 4096], false),
            member(["meta-llama/Llama-2-70b-hf", "meta-llama/Llama-2-70b-chat-hf"], [8192, 80, 64, 8, 128, 28672, 32000, 4096], false),
        ],
    },
    Family {
        architecture: "LlamaForCausalLM",
        vocabularies: &[49152],
        config: r#""model_type": "llama", "hidden_act": "silu""#,
        members: &[
            member(["HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct"], [576, 30, 9, 3, 64, 1536, 49152, 8192], true),
            member(["HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-360M-Instruct"], [960, 32, 15, 5, 64, 2560, 49152, 8192], true),
            member(["HuggingFaceTB/SmolLM2-1.7B", "HuggingFaceTB/SmolLM2-1.7B-Instruct"], [2048, 24, 32, 32, 64, 8192, 49152, 8192], true),
        ],
    },
    Family {
        architecture: "Qwen2ForCausalLM",
        vocabularies: &[151936, 152064],
        config: r#""model_type": "qwen2", "hidden_act": "silu""#,
        members: &[
            member(["Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct"], [896, 24, 14, 2, 64, 4864, 151936, 32768], true),
            member(["Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B-Instruct"], [1536, 28, 12, 2, 128, 8960, 151936, 32768], true),
            member(["Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-3B-Instruct"], [2048, 36, 16, 2, 128, 11008, 151936, 32768], true),
            member(["Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"], [3584, 28, 28, 4, 128, 18944, 152064, 32768], false),
            member(["Qwen/Qwen2.5-14B", "Qwen/Qwen2.5-14B-Instruct"], [5120, 48, 40, 8, 128, 13824, 152064, 32768], false),
            member(["Qwen/Qwen2.5-32B", "Qwen/Qwen2.5-32B-Instruct"], [5120, 64, 40, 8, 128, 27648, 152064, 32768], false),
            member(["Qwen/Qwen2.5-72B", "Qwen/Qwen2.5-72B-Instruct"], [8192, 80, 64, 8, 128, 29568, 152064, 32768], false),
        ],
    },
    Family {
        // The names without `Base` are the ones that were trained to talk.
        architecture: "Qwen3ForCausalLM",
        vocabularies: &[151936],
        config: r#""model_type": "qwen3", "hidden_act": "silu""#,
        members: &[
            member(["Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-0.6B"], [1024, 28, 16, 8, 128, 3072, 151936, 32768], true),
            member(["Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-1.7B"], [2048, 28, 16, 8, 128, 6144, 151936, 32768], true),
            member(["Qwen/Qwen3-4B-Base", "Qwen/Qwen3-4B"], [2560, 36, 32, 8, 128, 9728, 151936, 32768], true),
            member(["Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B"], [4096, 36, 32, 8, 128, 12288, 151936, 32768], false),
            member(["Qwen/Qwen3-14B-Base", "Qwen/Qwen3-14B"], [5120, 40, 40, 8, 128, 17408, 151936, 32768], false),
            member(["", "Qwen/Qwen3-32B"], [5120, 64, 64, 8, 128, 25600, 151936, 40960], false),
        ],
    },
    Family {
        architecture: "MistralForCausalLM",
        vocabularies: &[131072],
        config: r#""model_type": "mistral", "hidden_act": "silu""#,
        members: &[
            member(["mistralai/Mistral-Nemo-Base-2407", "mistralai/Mistral-Nemo-Instruct-2407"], [5120, 40, 32, 8, 128, 14336, 131072, 131072], false),
            member(["mistralai/Mistral-Small-24B-Base-2501", "mistralai/Mistral-Small-24B-Instruct-2501"], [5120, 40, 32, 8, 128, 32768, 131072, 32768], false),
        ],
    },
    Family {
        architecture: "Phi3ForCausalLM",
        vocabularies: &[32064],
        config: r#""model_type": "phi3", "hidden_act": "silu""#,
        members: &[
            member(["", "microsoft/Phi-3-mini-4k-instruct"], [3072, 32, 32, 32, 96, 8192, 32064, 4096], false),
            member(["", "microsoft/Phi-3-medium-4k-instruct"], [5120, 40, 40, 10, 128, 17920, 32064, 4096], false),
        ],
    },
    Family {
        architecture: "Gemma2ForCausalLM",
        vocabularies: &[256000],
        config: r#""model_type": "gemma2", "sliding_window": 4096"#,
        members: &[
            member(["google/gemma-2-2b", "google/gemma-2-2b-it"], [2304, 26, 8, 4, 256, 9216, 256000, 8192], true),
            member(["google/gemma-2-9b", "google/gemma-2-9b-it"], [3584, 42, 16, 8, 256, 14336, 256000, 8192], true),
            member(["google/gemma-2-27b", "google/gemma-2-27b-it"], [4608, 46, 32, 16, 128, 36864, 256000, 8192], true),
        ],
    },
    Family {
        architecture: "Gemma3ForCausalLM",
        vocabularies: &[262144],
        config: r#""model_type": "gemma3_text", "sliding_window": 512, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0"#,
        members: &[
            member(["google/gemma-3-270m", "google/gemma-3-270m-it"], [640, 18, 4, 1, 256, 2048, 262144, 32768], true),
            member(["google/gemma-3-1b-pt", "google/gemma-3-1b-it"], [1152, 26, 4, 1, 256, 6912, 262144, 32768], true),
        ],
    },
];
