"""Decode and prefill of a Llama's shape on CUDA: transformers with bitsandbytes' NF4, between two runs of halfbyte.

Random weights, no download. Both quantize with double quantization and blocks of 64. (`bitsandbytes_cpu.py` is for the
CPU; `--device cpu` here only tries the script.)

    python benches/bitsandbytes_cuda.py halfbyte --device cuda:0 --shape llama-2-7b --prompt 512 --tokens 64 --json

`--json` gives rows on stdout: `name`, `prefill_tokens_per_second`, `decode_tokens_per_second`; and `slower_over_faster`,
how many times as fast halfbyte is at least: `prefill_ratio`, `decode_ratio`.
"""

import argparse
import json
import statistics
import subprocess
import time

import bitsandbytes as bnb
import torch
from transformers import LlamaConfig, LlamaForCausalLM

# hidden, layers, heads, key-value heads, intermediate
SHAPES = {
    "llama-160m": (768, 12, 12, 12, 2048),
    "tinyllama-1.1b": (2048, 22, 32, 4, 5632),
    "llama-2-7b": (4096, 32, 32, 32, 11008),
}
VOCABULARY = 32000


def halfbyte(args):
    """Tokens a second: prefill of the prompt, decode."""
    command = [args.halfbyte, "bench", "--shape", args.shape, "--device-map", args.device]
    if args.device == "cpu":
        command += ["--threads", str(args.threads)]
    command += ["--prefill", str(args.prompt), "--decode-at", str(args.prompt), "--tokens", str(args.tokens), "--json"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["rows"]
    prefill = next(row["prefill_tokens_per_second"] for row in rows if row["prefill_tokens_per_second"])
    decode = next(row["decode_tokens_per_second"] for row in rows if row["decode_tokens_per_second"])
    return prefill, decode


def four_bits(linear, dtype, device):
    """`linear`'s shape in NF4, of random weights that are made where they are quantized."""
    weight = torch.empty(linear.out_features, linear.in_features, dtype=dtype, device=device)
    torch.nn.init.normal_(weight, std=0.02)
    layer = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, quant_type="nf4"
    )
    layer.weight = bnb.nn.Params4bit(
        weight.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    return layer.to(device)


def quantized(shape, dtype, device, positions):
    """The model with its linear layers in NF4, as transformers puts them there."""
    hidden, layers, heads, kv_heads, intermediate = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=intermediate, vocab_size=VOCABULARY, max_position_embeddings=max(2048, positions),
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(dtype)
    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in list(block.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    setattr(block, name, four_bits(linear, dtype, device))
    # What is left on `meta` is small but for the embedding and the head.
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                real = torch.empty(parameter.shape, dtype=dtype, device=device)
                setattr(module, name, torch.nn.Parameter(real.normal_(std=0.02), requires_grad=False))
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    return model.eval()


@torch.inference_mode()
def bitsandbytes(args, dtype):
    """Tokens a second: prefill of the prompt, decode; medians."""
    model = quantized(args.shape, dtype, args.device, args.prompt + args.tokens + 1)
    wait = (lambda: torch.cuda.synchronize(args.device)) if args.device.startswith("cuda") else lambda: None
    ids = torch.randint(0, VOCABULARY, (1, args.prompt), device=args.device)
    prefill, decode = [], []
    for run in range(args.runs + 1):
        wait()
        start = time.perf_counter()
        out = model(ids, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        wait()
        prompt_seconds = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(args.tokens):
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        wait()
        decode_seconds = time.perf_counter() - start
        # The first run warms up.
        if run > 0:
            prefill.append(args.prompt / prompt_seconds)
            decode.append(args.tokens / decode_seconds)
    return statistics.median(prefill), statistics.median(decode)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("halfbyte", help="the command, built for release")
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try the script")
    parser.add_argument("--shape", default="tinyllama-1.1b", choices=SHAPES)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtypes = (torch.float32, torch.bfloat16) if args.device == "cpu" else (torch.float16, torch.bfloat16)
    rows = [("halfbyte, before", *halfbyte(args))]
    for dtype in dtypes:
        rows.append((f"bitsandbytes {bnb.__version__}, {dtype}", *bitsandbytes(args, dtype)))
    rows.append(("halfbyte, after", *halfbyte(args)))
    ours = [min(rows[0][i], rows[-1][i]) for i in (1, 2)]
    theirs = [max(row[i] for row in rows[1:-1]) for i in (1, 2)]
    prefill, decode = (our / their for our, their in zip(ours, theirs))
    if args.json:
        names = ("name", "prefill_tokens_per_second", "decode_tokens_per_second")
        ratios = {"prefill_ratio": round(prefill, 3), "decode_ratio": round(decode, 3)}
        print(json.dumps({"shape": args.shape, "rows": [dict(zip(names, row)) for row in rows], "slower_over_faster": ratios}))
        return
    for name, prefill_rate, decode_rate in rows:
        print(f"{name:40} prefill {args.prompt}: {prefill_rate:8.2f}   decode: {decode_rate:8.3f}")
    print(f"slower halfbyte over faster bitsandbytes: prefill {prefill:.1f}, decode {decode:.1f}")


main()
