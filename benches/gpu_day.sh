#!/bin/sh
# Everything that is to be measured on a machine with a GPU, with a prebuilt `halfbyte` and nothing else.
#
# Usage: gpu_day.sh HALFBYTE [--device wgpu:0]... [--shapes "tinyllama-1.1b llama-2-7b"] [--out DIR] [--quick]
#
# For every GPU (or the devices that are named, a software one included): `doctor`, then `bench --profile` of each shape,
# prompts of 512 and 2048, contexts of 0 and 4096. JSON and what was said on stderr go to DIR/NAME (benches/results), NAME
# being the maker's name for the device, with `summary.txt` for people. `--quick` is for trying the script: short prompts
# and few tokens. Where `llama-bench` is on the PATH and Python has `gguf` ($PYTHON, else python3), llama.cpp's Vulkan
# is measured on Q4_0 files of the same shapes. A step that fails is named and the others go on; the exit code is 1 then.
set -u

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
usage() { sed -n '4p' "$0" | cut -c3-; exit 2; }
[ $# -ge 1 ] || usage
halfbyte=$1
shift
devices="" shapes="tinyllama-1.1b llama-2-7b" out=$here/results quick=""
while [ $# -gt 0 ]; do
    case $1 in
        --device) [ $# -ge 2 ] || usage; devices="$devices $2"; shift 2 ;;
        --shapes) [ $# -ge 2 ] || usage; shapes=$2; shift 2 ;;
        --out) [ $# -ge 2 ] || usage; out=$2; shift 2 ;;
        --quick) quick=1; shift ;;
        *) usage ;;
    esac
done

prefill=512,2048 decode_at=0,4096 tokens=64 repeats=5
if [ -n "$quick" ]; then prefill=16 decode_at=0,64 tokens=4 repeats=1; fi

# One line for each device: NAME|ADAPTER|KIND.
listed=$("$halfbyte" devices --json | tr '{' '\n' |
    sed -n 's/.*"device":"\([^"]*\)","adapter":"\([^"]*\)".*"kind":"\([^"]*\)".*/\1|\2|\3/p') || exit 1
[ -n "$listed" ] || { echo "error: \`$halfbyte devices --json\` lists no device" >&2; exit 1; }
if [ -z "$devices" ]; then
    devices=$(echo "$listed" | sed -n 's/^\([^|]*\)|.*|\(discrete_gpu\|integrated_gpu\)$/\1/p')
    [ -n "$devices" ] || { echo "error: no GPU here; name a software one with --device to try the script" >&2; exit 1; }
fi

failed=""
# step NAME COMMAND...: its stdout to NAME.json, its stderr to NAME.log.
step() {
    name=$1
    shift
    echo "$device: $name"
    if ! "$@" >"$dir/$name.json" 2>"$dir/$name.log"; then
        echo "  failed: $(tail -n 1 "$dir/$name.log")"
        failed="$failed $device:$name"
    fi
}

# llama.cpp beside it, if it is there.
peer() {
    shape=$1
    command -v llama-bench >/dev/null 2>&1 || return 0
    file=${TMPDIR:-/tmp}/halfbyte-$shape-q4_0.gguf
    if [ ! -f "$file" ]; then
        "${PYTHON:-python3}" "$here/make_gguf.py" "$shape" "$file" >"$dir/gguf-$shape.log" 2>&1 || {
            echo "$device: llama-bench is here, but no Python with gguf: pip install -r $here/requirements.txt"
            return 0
        }
    fi
    step "llama-bench-$shape-prefill" llama-bench -m "$file" -ngl 99 -p "$prefill" -n 0 -r "$repeats" -o json
    step "llama-bench-$shape-decode" llama-bench -m "$file" -ngl 99 -p 0 -n "$tokens" -d "$decode_at" -r "$repeats" -o json
}

for device in $devices; do
    adapter=$(echo "$listed" | sed -n "s/^$device|\(.*\)|.*/\1/p")
    [ -n "$adapter" ] || { echo "error: no device $device here" >&2; failed="$failed $device"; continue; }
    name=$(echo "$adapter" | tr 'A-Z' 'a-z' | sed 's/[^a-z0-9]\{1,\}/-/g; s/^-//; s/-$//')
    dir=$out/$name/$(echo "$device" | sed 's/:.*//')
    mkdir -p "$dir" || exit 1
    "$halfbyte" devices --json >"$dir/devices.json" 2>/dev/null
    if command -v nvidia-smi >/dev/null 2>&1; then
        nvidia-smi -q >"$dir/nvidia-smi.txt" 2>&1
    fi
    step doctor "$halfbyte" doctor --device "$device" --json
    for shape in $shapes; do
        step "bench-$shape" "$halfbyte" bench --shape "$shape" --device-map "$device" --prefill "$prefill" \
            --decode-at "$decode_at" --tokens "$tokens" --repeats "$repeats" --profile --json
        peer "$shape"
    done
    {
        echo "$adapter ($device), $(date -u +%Y-%m-%d)"
        for shape in $shapes; do
            echo "$shape"
            tr '{' '\n' <"$dir/bench-$shape.json" | sed -n \
                -e 's/.*"prefill_tokens":\([0-9]*\),"prefill_tokens_per_second":\([0-9]*\.[0-9]\).*/  prefill \1: \2 tokens\/s/p' \
                -e 's/.*"context":\([0-9]*\),"decode_tokens_per_second":\([0-9]*\.[0-9]\).*"share_of_limit":\([0-9.]*\).*/  decode at \1: \2 tokens\/s, \3 of the read bandwidth/p' \
                -e 's/.*"host_seconds_per_token":\([0-9.e-]*\).*/  host seconds a token: \1/p'
        done
    } >"$dir/summary.txt"
    echo "$device: results in $dir"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
