"""Decode and prefill of TinyLlama's shape on the CPU: transformers with bitsandbytes' NF4, between two runs of halfbyte.

Random weights, no download. Both quantize with double quantization and blocks of 64, on the same threads.

    cargo build --release -p halfbyte-cli
    target/interop/bin/python benches/bitsandbytes_cpu.py target/release/halfbyte 4
"""

import json
import statistics
import subprocess
import sys
import time

import bitsandbytes as bnb
import torch
from transformers import LlamaConfig, LlamaForCausalLM

PROMPT, TOKENS, RUNS = 128, 4, 3


def halfbyte(binary, threads):
    """Tokens a second: prefill of PROMPT, decode."""
    command = [binary, "bench", "--shape", "tinyllama-1.1b", "--device-map", "cpu", "--threads", str(threads)]
    command += ["--prefill", str(PROMPT), "--decode-at", str(PROMPT), "--json"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["rows"]
    prefill = next(row["prefill_tokens_per_second"] for row in rows if row["prefill_tokens_per_second"])
    decode = next(row["decode_tokens_per_second"] for row in rows if row["decode_tokens_per_second"])
    return prefill, decode


def quantized(dtype):
    """The model with its linear layers in NF4, as transformers puts them there."""
    config = LlamaConfig(
        hidden_size=2048, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
        intermediate_size=5632, vocab_size=32000, max_position_embeddings=2048,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(dtype).to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in list(block.named_children()):
                if not isinstance(linear, torch.nn.Linear):
                    continue
                weight = bnb.nn.Params4bit(
                    linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
                )
                four_bits = bnb.nn.Linear4bit(
                    linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, quant_type="nf4"
                )
                four_bits.weight = weight
                setattr(block, name, four_bits.to("cpu"))
    return model.eval()


@torch.inference_mode()
def bitsandbytes(dtype):
    """Tokens a second: prefill of PROMPT, decode; medians of RUNS."""
    model = quantized(dtype)
    ids = torch.randint(0, 32000, (1, PROMPT))
    prefill, decode = [], []
    for _ in range(RUNS):
        start = time.perf_counter()
        out = model(ids, use_cache=True, logits_to_keep=1)
        prefill.append(PROMPT / (time.perf_counter() - start))
        token = out.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        for _ in range(TOKENS):
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        decode.append(TOKENS / (time.perf_counter() - start))
    return statistics.median(prefill), statistics.median(decode)


def main():
    binary, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    rows = [("halfbyte, before", *halfbyte(binary, threads))]
    for dtype in (torch.float32, torch.bfloat16):
        rows.append((f"bitsandbytes {bnb.__version__}, {dtype}", *bitsandbytes(dtype)))
    rows.append(("halfbyte, after", *halfbyte(binary, threads)))
    for name, prefill, decode in rows:
        print(f"{name:40} prefill {PROMPT}: {prefill:8.2f}   decode: {decode:8.3f}")
    ours = [min(rows[0][i], rows[-1][i]) for i in (1, 2)]
    theirs = [max(row[i] for row in rows[1:-1]) for i in (1, 2)]
    print(f"slower halfbyte over faster bitsandbytes: prefill {ours[0] / theirs[0]:.1f}, decode {ours[1] / theirs[1]:.1f}")


main()
