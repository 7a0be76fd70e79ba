"""Writes a checkpoint of Llama-2-7B's true shape: bf16 weights without meaning, 13.5 GB in three shards.

Usage: make_llama_2_7b.py DIR. Needs numpy only. Weights are normal with a standard deviation of 0.02, drawn
once for a pool from which every tensor takes a piece at another place.
"""

import json
import sys
from pathlib import Path

import numpy as np

HIDDEN, INTERMEDIATE, LAYERS, HEADS, VOCAB = 4096, 11008, 32, 32, 32000
SHARD_BYTES = 4_900_000_000


def tensors():
    """Names and shapes in the order of a state dict."""
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{name}.self_attn.{part}.weight", (HIDDEN, HIDDEN)
        yield f"{name}.mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN)
        yield f"{name}.mlp.up_proj.weight", (INTERMEDIATE, HIDDEN)
        yield f"{name}.mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)
        yield f"{name}.input_layernorm.weight", (HIDDEN,)
        yield f"{name}.post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": HEADS,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": VOCAB,
}


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    normal = random.standard_normal(VOCAB * HIDDEN + (1 << 24), dtype=np.float32)
    pool = ((normal * 0.02).view(np.uint32) >> 16).astype(np.uint16)
    del normal

    shards, filled = [[]], 0
    for name, shape in tensors():
        size = 2 * int(np.prod(shape))
        if filled and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape, size))
        filled += size

    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for name, shape, size in shard:
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            at += size
            weight_map[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(out / file, "wb") as written:
            written.write(len(text).to_bytes(8, "little") + text)
            for name, shape, size in shard:
                if len(shape) == 1:
                    data = np.full(shape, 0x3F80, np.uint16)  # 1.0
                else:
                    begin = int(random.integers(0, len(pool) - size // 2))
                    data = pool[begin : begin + size // 2]
                written.write(data.tobytes())
    total = sum(size for shard in shards for _, _, size in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2))
    print(f"{total} bytes in {len(shards)} shards in {out}")


if __name__ == "__main__":
    main()
