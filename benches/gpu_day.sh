#!/bin/sh
# Everything that is to be measured on a machine with a GPU, with a prebuilt `halfbyte` and nothing else.
#
# Usage: gpu_day.sh HALFBYTE [--device wgpu:0]... [--shapes "llama-2-7b tinyllama-1.1b"] [--out DIR] [--minutes 25] [--quick]
#
# For every GPU (or the devices that are named, a software one included): `doctor`, then `bench` of each shape. A device
# of CUDA (`cuda:N`; `cube:0` runs the same kernels on a wgpu adapter) is also measured by each way to launch and to look
# up, and in turns with the same card under wgpu and with transformers over bitsandbytes, where `$PYTHON` (else python3)
# has them. Where `llama-bench` is on the PATH and Python has `gguf`, llama.cpp is measured on Q4_0 files of the same
# shapes. CUDA's devices come first, and of each what matters most.
#
# JSON and what was said on stderr go to DIR/NAME/KIND (benches/results), NAME being the maker's name for the device, with
# `summary.txt` for people, to which every step adds its line as it ends: a run that is cut off can be read. Its last lines
# say what the figures decide. Every step has a limit of time, all together have `--minutes`; a step that fails, or for
# which there is no time, is named and the others go on, and the exit code is 1 then; what cannot be done here is named as
# skipped. `--quick` is for trying the script: short prompts and few tokens.
set -u

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
usage() { sed -n '4p' "$0" | cut -c3-; exit 2; }
[ $# -ge 1 ] || usage
halfbyte=$1
shift
devices="" shapes="llama-2-7b tinyllama-1.1b" out=$here/results minutes=25 quick=""
while [ $# -gt 0 ]; do
    case $1 in
        --device) [ $# -ge 2 ] || usage; devices="$devices $2"; shift 2 ;;
        --shapes) [ $# -ge 2 ] || usage; shapes=$2; shift 2 ;;
        --out) [ $# -ge 2 ] || usage; out=$2; shift 2 ;;
        --minutes) [ $# -ge 2 ] || usage; minutes=$2; shift 2 ;;
        --quick) quick=1; shift ;;
        *) usage ;;
    esac
done
deadline=$(($(date +%s) + minutes * 60))

prefill=512,2048 decode_at=0,4096 tokens=64 repeats=5 prompt=512
if [ -n "$quick" ]; then prefill=16 decode_at=0,64 tokens=4 repeats=1 prompt=16; fi
first_prompt=${prefill%%,*}

# One line for each device: NAME|ADAPTER|KIND.
listed=$("$halfbyte" devices --json 2>/dev/null | tr '{' '\n' |
    sed -n 's/.*"device":"\([^"]*\)","adapter":"\([^"]*\)".*"kind":"\([^"]*\)".*/\1|\2|\3/p')
[ -n "$listed" ] || { echo "error: \`$halfbyte devices --json\` lists no device" >&2; exit 1; }
if [ -z "$devices" ]; then
    gpus=$(echo "$listed" | sed -n 's/^\([^|]*\)|.*|\(discrete_gpu\|integrated_gpu\)$/\1/p')
    devices="$(echo "$gpus" | grep '^cuda:') $(echo "$gpus" | grep -v '^cuda:')"
    [ -n "$gpus" ] || { echo "error: no GPU here; name a software one with --device to try the script" >&2; exit 1; }
fi

failed="" setting=""
# with VARIABLE=VALUE COMMAND...: one of the functions below, whose `halfbyte` gets this setting.
with() {
    setting=$1
    shift
    "$@"
    setting=""
}
say() { echo "$1" >>"$dir/summary.txt"; echo "$device: $1"; }

# step SECONDS FILE COMMAND...: its stdout to FILE, its stderr to the log beside it.
step() {
    limit=$1 file=$2
    shift 2
    step=${file%.*}
    left=$((deadline - $(date +%s)))
    if [ "$left" -lt 10 ]; then
        say "$step: no time left"
        failed="$failed $device:$step"
        return 1
    fi
    [ "$limit" -le "$left" ] || limit=$left
    # shellcheck disable=SC2086
    timeout -k 5 "$limit" env $setting "$@" >"$dir/$file" 2>"$dir/$step.log"
    code=$?
    [ "$code" -ne 0 ] || return 0
    case $code in
        124 | 137) why="cut off after $limit s" ;;
        *) why="exit code $code" ;;
    esac
    say "$step: FAILED, $why: $(tail -n 1 "$dir/$step.log")"
    failed="$failed $device:$step"
    return 1
}

# figures NAME: the rows of a bench, one line each.
figures() {
    tr '{' '\n' <"$dir/$1.json" | sed -n \
        -e 's/.*"prefill_tokens":\([0-9]*\),"prefill_tokens_per_second":\([0-9]*\.[0-9]\).*/prefill \1: \2 tokens\/s/p' \
        -e 's/.*"context":\([0-9]*\),"decode_tokens_per_second":\([0-9]*\.[0-9]\).*"share_of_limit":\([0-9]*\.[0-9]\{0,3\}\).*"dispatches_per_token":\([0-9.]*\).*/decode at \1: \2 tokens\/s, \3 of the read bandwidth, \4 launches/p' \
        -e 's/.*"context":\([0-9]*\),"decode_tokens_per_second":\([0-9]*\.[0-9]\).*"share_of_limit":\([0-9]*\.[0-9]\{0,3\}\).*/decode at \1: \2 tokens\/s, \3 of the read bandwidth/p' \
        -e 's/.*"host_seconds_per_token":\([0-9.e-]*\).*/host seconds a token: \1/p' |
        while read -r line; do say "$1: $line"; done
}

# bench NAME DEVICE SHAPE MORE...: all figures of a shape.
bench() {
    name=$1 on=$2 shape=$3
    shift 3
    step 240 "$name.json" "$halfbyte" bench --shape "$shape" --device-map "$on" --tokens "$tokens" --repeats "$repeats" \
        "$@" --json && figures "$name"
}

# doctor NAME: the conformance table, a line a case in the log. The first run compiles every kernel, one after the other.
doctor() {
    step 400 "$1.txt" "$halfbyte" doctor --device "$device" --cases
    say "$1: $(grep -c ' passed (' "$dir/$1.log") passed, $(grep -c ' failed: ' "$dir/$1.log") failed"
}

# llama.cpp beside it, if it is there.
llama() {
    if ! command -v llama-bench >/dev/null 2>&1; then
        say "llama-bench-$1: skipped, no llama-bench on the PATH"
        return 0
    fi
    file=${TMPDIR:-/tmp}/halfbyte-$1-q4_0.gguf
    if [ ! -f "$file" ]; then
        timeout 180 "${PYTHON:-python3}" "$here/make_gguf.py" "$1" "$file" >"$dir/gguf-$1.log" 2>&1 || {
            rm -f "$file"
            say "llama-bench-$1: skipped, no file for it: pip install -r benches/requirements.txt, and see gguf-$1.log"
            return 0
        }
    fi
    for part in "prefill -p $prefill -n 0" "decode -p 0 -n $tokens -d $decode_at"; do
        # shellcheck disable=SC2086
        set -- "$1" $part
        shape=$1 kind=$2
        shift 2
        step 180 "llama-bench-$shape-$kind.json" llama-bench -m "$file" -ngl 99 "$@" -r "$repeats" -o json &&
            sed -n 's/.*"avg_ts": \([0-9.]*\).*/\1/p' "$dir/llama-bench-$shape-$kind.json" |
            while read -r rate; do say "llama-bench-$shape-$kind: $rate tokens/s"; done
        set -- "$shape"
    done
}

# transformers over bitsandbytes between two runs of ours, if a Python has both.
bitsandbytes() {
    if [ "${device%%:*}" != cuda ]; then
        say "bitsandbytes-$1: skipped, $device is no device of CUDA"
        return 0
    fi
    if ! "${PYTHON:-python3}" -c 'import bitsandbytes, torch, transformers' 2>"$dir/bitsandbytes-import.log"; then
        say "bitsandbytes-$1: skipped, ${PYTHON:-python3} lacks it: $(tail -n 1 "$dir/bitsandbytes-import.log")"
        return 0
    fi
    step 240 "bitsandbytes-$1.json" "${PYTHON:-python3}" "$here/bitsandbytes_cuda.py" "$halfbyte" --device "$device" \
        --shape "$1" --prompt "$prompt" --tokens "$tokens" --runs "$repeats" --json || return 0
    tr '{' '\n' <"$dir/bitsandbytes-$1.json" | sed -n \
        -e 's/.*"name": "\([^"]*\)".*second": \([0-9.]*\).*second": \([0-9.]*\).*/\1: prefill \2, decode \3 tokens\/s/p' \
        -e 's/.*"prefill_ratio": \([0-9.]*\), "decode_ratio": \([0-9.]*\).*/slower halfbyte over faster bitsandbytes: prefill \1, decode \2/p' |
        while read -r line; do say "bitsandbytes-$1: $line"; done
}

# What the figures decide. rate NAME KEY: tokens a second of a bench at KEY (`decode at 0`), as its lines above say.
rate() { sed -n "s|^$1: $2: \([0-9.]*\) tokens/s.*|\1|p" "$dir/summary.txt" | head -n 1; }

# choose WHAT CHOICE=RATE...: all of them, and the fastest.
choose() {
    what=$1
    shift
    said=$(printf '%s\n' "$@" | awk -F= '$2 > 0 {
            list = list (list ? ", " : "") $1 " " $2
            if ($2 > best) { best = $2; name = $1 }
        } END { if (name) print list ": " name }')
    say "decision, $what: ${said:-nothing was measured}"
}

# gap WAY: the time of a token that is not reading at the read bandwidth, for each of its separate launches. Idle time
# between kernels is within it, and so is whatever a kernel loses.
gap() {
    launches=$(sed -n "s|^launch-cubecl-$first: decode at 0: .*, \([0-9.]*\) launches|\1|p" "$dir/summary.txt")
    sed -n "s|^launch-$1-$first: decode at 0: \([0-9.]*\) tokens/s, \([0-9.]*\) of.*|\1 \2|p" "$dir/summary.txt" |
        awk -v launches="${launches:-0}" '$1 > 0 && launches > 0 { printf "%.2f", (1 - $2) / $1 / launches * 1e6 }'
}

decisions() {
    [ "${device%%:*}" = cuda ] || say "what follows decides nothing: $device is no device of CUDA"
    ways="" gaps=""
    for way in cubecl stream graph; do
        ways="$ways $way=$(rate "launch-$way-$first" 'decode at 0')"
        gaps="$gaps $way $(gap "$way")"
    done
    # shellcheck disable=SC2086
    choose "ways to launch (tokens/s)" $ways
    say "decision, one persistent kernel: a launch takes µs beyond reading:$gaps; a grid-wide barrier takes 1 to 2"
    choose "lookups (tokens/s)" "table=$(rate "bench-$first" 'decode at 0')" \
        "pairs=$(rate "lookup-pairs-$first" 'decode at 0')"
    choose "tensor cores (tokens/s of prompts)" "on=$(rate "bench-$first" "prefill $first_prompt")" \
        "off=$(rate "cores-off-$first" "prefill $first_prompt")"
    choose "CUDA or wgpu (tokens/s)" "cuda=$(rate "turn-1-cuda-$first" 'decode at 0')" \
        "wgpu=$(rate "turn-1-wgpu-$first" 'decode at 0')"
}

# What only CUDA's kernels have: ways to launch, to look up, and to multiply in prompts.
cuda() {
    first=${shapes%% *}
    if [ "${device%%:*}" != cuda ]; then
        say "$device has neither a driver below CubeCL nor tensor cores: ways to launch, lookups and cores try this script"
    fi
    doctor doctor
    bench "bench-$first" "$device" "$first" --prefill "$prefill" --decode-at "$decode_at"
    # In turns with the same card under wgpu.
    twin=$(echo "$listed" | grep -v "^$device|" | sed -n 's/^\(wgpu:[0-9]*\)|.*/\1/p' | head -n 1)
    if [ -n "$twin" ]; then
        for turn in 1 2; do
            bench "turn-$turn-cuda-$first" "$device" "$first" --prefill "$first_prompt" --decode-at 0
            bench "turn-$turn-wgpu-$first" "$twin" "$first" --prefill "$first_prompt" --decode-at 0
        done
    else
        say "turn-1-wgpu-$first: skipped, no wgpu device here"
    fi
    bitsandbytes "$first"
    llama "$first"
    for way in cubecl stream graph; do
        with HALFBYTE_CUDA_LAUNCH=$way bench "launch-$way-$first" "$device" "$first" --prefill "$first_prompt" --decode-at 0
    done
    with HALFBYTE_CUDA_LOOKUP=pairs bench "lookup-pairs-$first" "$device" "$first" --prefill "$first_prompt" --decode-at 0
    with HALFBYTE_CUDA_CORES=off bench "cores-off-$first" "$device" "$first" --prefill "$first_prompt" --decode-at 0
    decisions
    with HALFBYTE_CUDA_LAUNCH=graph doctor doctor-graph
    with HALFBYTE_CUDA_LOOKUP=pairs doctor doctor-pairs
    for shape in $shapes; do
        [ "$shape" = "$first" ] || bench "bench-$shape" "$device" "$shape" --prefill "$prefill" --decode-at "$decode_at"
    done
}

any_gpu() {
    doctor doctor
    for shape in $shapes; do
        bench "bench-$shape" "$device" "$shape" --prefill "$prefill" --decode-at "$decode_at" --profile
        llama "$shape"
    done
}

for device in $devices; do
    adapter=$(echo "$listed" | sed -n "s/^$device|\(.*\)|.*/\1/p")
    [ -n "$adapter" ] || { echo "error: no device $device here" >&2; failed="$failed $device"; continue; }
    name=$(echo "$adapter" | tr 'A-Z' 'a-z' | sed 's/[^a-z0-9]\{1,\}/-/g; s/^-//; s/-$//')
    dir=$out/$name/$(echo "$device" | sed 's/:.*//')
    mkdir -p "$dir" || exit 1
    echo "$adapter ($device), $(date -u +%Y-%m-%d), $("$halfbyte" --version)" >"$dir/summary.txt"
    "$halfbyte" devices --json >"$dir/devices.json" 2>/dev/null
    if command -v nvidia-smi >/dev/null 2>&1; then
        timeout 20 nvidia-smi -q >"$dir/nvidia-smi.txt" 2>&1
    fi
    case $device in
        cuda:* | cube:*) cuda ;;
        *) any_gpu ;;
    esac
    echo "$device: results in $dir"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
