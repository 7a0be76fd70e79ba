"""Decode and prefill on the CPU: transformers with bitsandbytes' NF4 and halfbyte's, in turns on the same threads.

Weights are random codes, so that nothing is downloaded or quantized; both sides have double quantization, blocks of 64
and a 16-bit head. bitsandbytes runs twice: as it comes (`packed`: on a processor with AVX512-BF16 its own kernel,
over weights that the first pass rearranges, activations in bf16), and as it does everywhere else (`dequantized`: each
matrix to 16 or 32 bits, then torch's product). Both run in bf16 and f32.

    cargo build --release -p halfbyte-cli
    target/interop/bin/python benches/bitsandbytes_cpu.py target/release/halfbyte --shape tinyllama-1.1b
"""

import argparse
import json
import os
import statistics
import subprocess
import time

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState, create_dynamic_map, get_4bit_type
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "llama-160m": dict(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12, intermediate_size=2048
    ),
    "tinyllama-1.1b": dict(
        hidden_size=2048, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4, intermediate_size=5632
    ),
    "llama-2-7b": dict(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, intermediate_size=11008
    ),
}


def random_linear(rows, columns, dtype, packed):
    """A Linear4bit of random codes and scales."""
    count = rows * columns
    scales = torch.randint(0, 256, (count // 64,), dtype=torch.uint8)
    nested = QuantState(
        absmax=torch.full((-(-scales.numel() // 256),), 0.01), blocksize=256, code=create_dynamic_map(),
        dtype=torch.float32,
    )
    state = QuantState(
        absmax=scales, shape=torch.Size((rows, columns)), code=get_4bit_type("nf4", device="cpu"), blocksize=64,
        quant_type="nf4", dtype=dtype, offset=torch.tensor(0.03), state2=nested,
    )
    linear = bnb.nn.Linear4bit(columns, rows, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")
    codes = torch.randint(0, 256, (count // 2, 1), dtype=torch.uint8)
    linear.weight = bnb.nn.Params4bit(
        codes, requires_grad=False, quant_state=state, blocksize=64, quant_type="nf4", bnb_quantized=True, module=linear
    )
    linear.quant_state = state
    linear.support_avx512bf16_for_cpu = linear.support_avx512bf16_for_cpu and packed
    return linear


def model_of(shape, dtype, packed):
    """The model with its linear layers in NF4, as transformers puts them there."""
    config = LlamaConfig(vocab_size=32000, max_position_embeddings=4096, **SHAPES[shape])
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype)
        for layer in model.model.layers:
            for block in (layer.self_attn, layer.mlp):
                for name, linear in list(block.named_children()):
                    if isinstance(linear, torch.nn.Linear):
                        with torch.device("cpu"):
                            made = random_linear(linear.out_features, linear.in_features, dtype, packed)
                        setattr(block, name, made)
    # What is still on the meta device: embedding, norms and head.
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                value = torch.full(parameter.shape, 1.0, dtype=dtype)
                value = value.normal_(std=0.02) if value.dim() == 2 else value
                setattr(module, name, torch.nn.Parameter(value, requires_grad=False))
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


@torch.inference_mode()
def bitsandbytes(model, prompt, tokens):
    """Tokens a second of one prompt, and of decoding after it."""
    ids = torch.randint(0, 32000, (1, prompt))
    start = time.perf_counter()
    out = model(ids, use_cache=True, logits_to_keep=1)
    prefill = prompt / (time.perf_counter() - start)
    token = out.logits[:, -1:].argmax(-1)
    start = time.perf_counter()
    for _ in range(tokens):
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
    return prefill, tokens / (time.perf_counter() - start)


def halfbyte(binary, shape, threads, prompt, tokens, math):
    """The same of halfbyte, which loads and warms up first."""
    command = [binary, "bench", "--shape", shape, "--device-map", "cpu", "--threads", str(threads), "--json"]
    command += ["--prefill", str(prompt), "--decode-at", str(prompt), "--tokens", str(tokens), "--repeats", "1"]
    environment = os.environ | {"HALFBYTE_CPU_MATH": math}
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    rows = json.loads(answer)["rows"]
    prefill = next(row["prefill_tokens_per_second"] for row in rows if row["prefill_tokens_per_second"])
    decode = next(row["decode_tokens_per_second"] for row in rows if row["decode_tokens_per_second"])
    return prefill, decode


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama-1.1b")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", default="bfloat16,float32", help="of bitsandbytes, with commas")
    parser.add_argument("--ways", default="packed,dequantized", help="of bitsandbytes, with commas")
    parser.add_argument("--maths", default="exact,fast", help="of halfbyte, with commas")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    def peer(model):
        return lambda: bitsandbytes(model, args.prompt, args.tokens)

    def ours(math):
        return lambda: halfbyte(args.binary, args.shape, args.threads, args.prompt, args.tokens, math)

    sides = {}
    for dtype in args.dtypes.split(","):
        for way in args.ways.split(","):
            model = model_of(args.shape, getattr(torch, dtype), way == "packed")
            # The first pass packs the weights.
            bitsandbytes(model, args.prompt, 1)
            sides[f"bitsandbytes {bnb.__version__}, {dtype}, {way}"] = peer(model)
    for math in args.maths.split(","):
        sides[f"halfbyte, {math}"] = ours(math)
    found = {name: [] for name in sides}
    for turn in range(args.rounds):
        order = list(sides) if turn % 2 == 0 else list(reversed(sides))
        for name in order:
            found[name].append(sides[name]())
    medians = {}
    for name, turns in found.items():
        medians[name] = [statistics.median(values) for values in zip(*turns)]
        spread = [f"{m:.2f} ({min(v):.2f} to {max(v):.2f})" for m, v in zip(medians[name], zip(*turns))]
        print(f"{name:48} prefill {args.prompt}: {spread[0]:28} decode: {spread[1]}", flush=True)
    best = [max(m[i] for name, m in medians.items() if name.startswith("bits")) for i in (0, 1)]
    for name, of in medians.items():
        if name.startswith("halfbyte"):
            print(f"{name} over the fastest of bitsandbytes: prefill {of[0] / best[0]:.1f}, decode {of[1] / best[1]:.1f}")


main()
