#!/usr/bin/env bash
# What a machine with a GPU is asked first: two commands of under 7 minutes each, the most valuable
# first, on PyTorch with CUDA 13.0 and nothing else.
#
#     benchmarks/gpu_day.sh first OUT
#     benchmarks/gpu_day.sh second OUT [SITE] [PREPARED]
#
# OUT gets a line of JSON for each step as it ends (day.jsonl), the results of the benchmarks as they
# grow, and what the tools said (*.log). SITE is a folder of wheels, installed with `pip install
# --no-index --no-deps --target SITE *.whl`; PREPARED is what `gpu.py --prepare PREPARED` made elsewhere.
# A step that cannot run says why, and the next one runs.
set -uo pipefail
cd "$(dirname "$0")/.."
part=${1:?first or second} out=${2:?a folder for the results} site=${3:-} prepared=${4:-}
mkdir -p "$out"
out=$(cd "$out" && pwd)
PYTHON=${PYTHON:-python3}
export PYTHONPATH="${site:+$site:}runtime:models:export:benchmarks" PYTHONUNBUFFERED=1
export PARAMORPH_REFERENCE=${PARAMORPH_REFERENCE:-$PWD/shared/reference} PARAMORPH_TEST_DEVICE=cuda

# step NAME SECONDS COMMAND …: at most so long; a line in day.jsonl either way.
step() {
    local name=$1 limit=$2 began=$SECONDS code=0
    shift 2
    echo "== $name" >&2
    timeout --kill-after 10 "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
    "$PYTHON" - "$out" "$name" "$((SECONDS - began))" "$code" "$*" <<'PYTHON_END'
import json, sys
from pathlib import Path

out, name, seconds, code, command = sys.argv[1:]
said = (Path(out) / f"{name}.log").read_text(encoding="utf-8", errors="replace")
line = {"step": name, "seconds": int(seconds), "exit_code": int(code), "command": command}
with (Path(out) / "day.jsonl").open("a", encoding="utf-8") as day:
    print(json.dumps(line | {"said": said[-4000:]}), file=day)
print(f"   {seconds} s, exit code {code}: {(said.strip().splitlines() or [''])[-1][:200]}", file=sys.stderr)
PYTHON_END
}

torch=("torch fp32" "torch fp16" "torch bf16" "torch.compile fp16" "torch.compile bf16" "torch.compile fp32")
engines=("torch fp32" "tensorrt-rtx fp16" "tensorrt-rtx fp16, no CUDA graph" "tensorrt-rtx fp32"
    "tensorrt fp16" "onnxruntime cuda fp16" "onnxruntime cuda fp32")
refined=("tensorrt-rtx fp16" "onnxruntime cuda fp16")

case $part in
first)
    step machine 20 sh -c 'nvidia-smi; nvcc --version; "$0" -m pip list' "$PYTHON"
    step plugin-kernel 90 "$PYTHON" benchmarks/plugin_kernel.py --out "$out"
    step golden 60 "$PYTHON" -m pytest --noconftest -p no:cacheprovider -rA tests/models/test_golden.py
    step torch 230 "$PYTHON" benchmarks/gpu.py --networks paramorph brain-t1-small --seconds 2 \
        --timeout 60 --name gpu-torch --out "$out" --contenders "${torch[@]}"
    ;;
second)
    step engines 130 "$PYTHON" benchmarks/gpu.py --networks brain-t1-small paramorph --seconds 2 \
        --timeout 80 --name gpu-engines --out "$out" --contenders "${engines[@]}" \
        ${prepared:+--prepared "$prepared"}
    step refined 45 "$PYTHON" benchmarks/gpu.py --networks brain-t1-small:refined --seconds 2 \
        --timeout 30 --name gpu-refined --out "$out" --contenders "${refined[@]}" \
        ${prepared:+--prepared "$prepared"}
    step training 235 "$PYTHON" benchmarks/training_step.py --out "$out"
    ;;
*)
    echo "gpu_day.sh: expected first or second, got $part" >&2
    exit 2
    ;;
esac
echo "$out/day.jsonl"
