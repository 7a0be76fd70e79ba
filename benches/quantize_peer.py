"""Quantizes the largest linear of Llama-2-7B, 4096 x 11008 in fp16, with bitsandbytes and with halfbyte in turn.

Usage: quantize_peer.py BENCH [THREADS], where BENCH is the binary of `cargo bench -p halfbyte-quant --no-run`
(benches/quantize.rs) and the Python that runs this has tests/interop/requirements.txt (`cargo xtask interop` makes
one: target/interop). Both peers get the same threads; halfbyte is measured before and after bitsandbytes, so that a
machine that changes its pace shows. Prints the machine's memory read rate beside them.
"""

import os
import re
import subprocess
import sys
import time

BENCH, THREADS = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2
CPUS = sorted(os.sched_getaffinity(0))[:THREADS]
os.sched_setaffinity(0, CPUS)
os.environ.update(OMP_NUM_THREADS=str(THREADS), RAYON_NUM_THREADS=str(THREADS), CUDA_VISIBLE_DEVICES="")

import bitsandbytes
import bitsandbytes.functional as functional
import torch

torch.set_num_threads(THREADS)
ROWS, COLUMNS = 4096, 11008
BYTES = 2 * ROWS * COLUMNS


def halfbyte():
    """GB/s of fp16, by criterion's middle estimate."""
    command = [BENCH, "--bench", "4096x11008/quantize f16 to nf4", "--noplot"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    low, low_unit, middle, unit = re.search(r"thrpt:\s+\[(\S+) (\S+) (\S+) (\S+) ", text).groups()
    return float(middle) * {"MiB/s": 2**20, "GiB/s": 2**30, "MB/s": 1e6, "GB/s": 1e9}[unit] / 1e9


def peer(weight):
    """GB/s of fp16: the best of five."""
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        best = min(best, time.perf_counter() - begin)
    return BYTES / best / 1e9


def read_rate():
    """GB/s at which all threads together sum 2 GiB of memory."""
    memory = torch.ones(1 << 29, dtype=torch.int32)
    memory.sum()
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        memory.max()
        best = min(best, time.perf_counter() - begin)
    return memory.numel() * 4 / best / 1e9


def main():
    torch.manual_seed(0)
    weight = (torch.randn(ROWS, COLUMNS) * 0.02).half()
    functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    before, theirs, after = halfbyte(), peer(weight), halfbyte()
    ours = min(before, after)
    print(f"{THREADS} threads; bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}")
    print(f"memory read rate           {read_rate():7.2f} GB/s")
    print(f"bitsandbytes quantize_4bit {theirs:7.3f} GB/s of fp16")
    print(f"halfbyte quantize          {before:7.3f} and {after:.3f} GB/s of fp16, {ours / theirs:.0f} times as fast")


if __name__ == "__main__":
    main()
