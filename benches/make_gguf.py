"""Writes a GGUF file of a Llama's true shape in Q4_0, of random blocks: for llama.cpp's llama-bench.

Usage: make_gguf.py SHAPE FILE [--head q4_0|q6_k|f16]. Needs `gguf` and `numpy` from PyPI. Every matrix is
Q4_0, the embedding and the head included, so that a token reads as few bytes as llama.cpp can make of this
shape; `llama-quantize` keeps the head in Q6_K, which `--head q6_k` writes. Weights are codes without meaning
under one scale, norms are 1.
"""

import argparse

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

# hidden, intermediate, layers, heads, KV heads, vocabulary, positions: as `halfbyte bench --shape`.
SHAPES = {
    "llama-160m": (768, 2048, 12, 12, 12, 32000, 2048),
    "tinyllama-1.1b": (2048, 5632, 22, 32, 4, 32000, 2048),
    "llama-2-7b": (4096, 11008, 32, 32, 32, 32000, 4096),
}

# Bytes from the start of a block to its f16 scale. Q4_0: 32 weights; Q6_K: 256.
SCALE_AT = {Type.Q4_0: 0, Type.Q6_K: 208}


def tensors(shape, head):
    """Names, shapes and types in the file's order."""
    hidden, intermediate, layers, heads, kv_heads, vocab, _ = shape
    kv = hidden // heads * kv_heads
    yield "token_embd.weight", (vocab, hidden), Type.Q4_0
    for layer in range(layers):
        name = f"blk.{layer}"
        yield f"{name}.attn_norm.weight", (hidden,), Type.F32
        yield f"{name}.attn_q.weight", (hidden, hidden), Type.Q4_0
        yield f"{name}.attn_k.weight", (kv, hidden), Type.Q4_0
        yield f"{name}.attn_v.weight", (kv, hidden), Type.Q4_0
        yield f"{name}.attn_output.weight", (hidden, hidden), Type.Q4_0
        yield f"{name}.ffn_norm.weight", (hidden,), Type.F32
        yield f"{name}.ffn_gate.weight", (intermediate, hidden), Type.Q4_0
        yield f"{name}.ffn_up.weight", (intermediate, hidden), Type.Q4_0
        yield f"{name}.ffn_down.weight", (hidden, intermediate), Type.Q4_0
    yield "output_norm.weight", (hidden,), Type.F32
    yield "output.weight", (vocab, hidden), head


def data(random, shape, kind):
    """A tensor's values: f32 or f16, or the bytes of its blocks, `[rows, bytes]`."""
    if kind == Type.F32:
        return np.ones(shape, np.float32)
    if kind == Type.F16:
        return (random.standard_normal(shape, dtype=np.float32) * 0.02).astype(np.float16)
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    rows, cols = shape
    blocks = random.integers(0, 256, (rows * cols // weights, size), dtype=np.uint8)
    at = SCALE_AT[kind]
    scale = 0.005 if kind == Type.Q4_0 else 1e-5
    blocks[:, at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return blocks.reshape(rows, cols // weights * size)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("file")
    parser.add_argument("--head", choices=["q4_0", "q6_k", "f16"], default="q4_0")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    hidden, intermediate, layers, heads, kv_heads, vocab, positions = shape

    writer = gguf.GGUFWriter(args.file, "llama")
    writer.add_name(f"{args.shape}, random")
    writer.add_context_length(positions)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    # A vocabulary without meaning: llama.cpp wants one even where nothing is tokenized.
    writer.add_tokenizer_model("llama")
    special = ["<unk>", "<s>", "</s>"]
    writer.add_token_list(special + [f"<{index}>" for index in range(len(special), vocab)])
    writer.add_token_scores([0.0] * vocab)
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (vocab - len(kinds)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    head = Type[args.head.upper()]
    for name, size, kind in tensors(shape, head):
        if kind in gguf.GGML_QUANT_SIZES and kind not in (Type.F32, Type.F16):
            weights, block = gguf.GGML_QUANT_SIZES[kind]
            stored = (size[0], size[1] // weights * block)
            nbytes = stored[0] * stored[1]
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), nbytes, kind)
        else:
            dtype = np.dtype(np.float32 if kind == Type.F32 else np.float16)
            writer.add_tensor_info(name, size, dtype, int(np.prod(size)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(7)
    for _, size, kind in tensors(shape, head):
        writer.write_tensor_data(data(random, size, kind))
    writer.close()


if __name__ == "__main__":
    main()
