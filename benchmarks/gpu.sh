#!/usr/bin/env bash
# What a quarter of an hour of a GPU adds: a larger denoiser of CIFAR-10, the tests of devices, and timings.
#
#     benchmarks/gpu.sh DATA OUT [MINUTES] [DEVICE]
#
# DATA is CIFAR-10's folder. The denoiser goes on from OUT where an earlier call left it. To try the script itself on a
# CPU: SMALL=1 benchmarks/gpu.sh DATA OUT 0.1 cpu
set -uo pipefail
data=$1 out=$2 minutes=${3:-8} device=${4:-cuda}
python=${PYTHON:-python3}
size=(--widths 128,256,256 --layers 2 --attention 2 --batch-size 512 --warmup 500 --workers 8)
speed=(--precision bf16 --channels-last --compile)
num=256
if [ -n "${SMALL:-}" ]; then size=(--widths 8,16 --batch-size 8 --warmup 5) speed=(--channels-last) num=2; fi
mkdir -p "$out"

part() { # NAME COMMAND…
  local name=$1 begun=$SECONDS
  shift
  "$@" > "$out/$name.log" 2>&1
  echo "$name: exit code $?, $((SECONDS - begun)) s; $(tail -n 1 "$out/$name.log")"
}

part train "$python" -m steersman train denoiser --out "$out/cifar10" --data "cifar10:$data" --noise edm "${size[@]}" \
  --flip --images 1000000000 --minutes "$minutes" --learning-rate 1e-3 --decay none --average 0.9998 --half "${speed[@]}"
part tests "$python" -m pytest -q -p no:cacheprovider tests/devices
part sample "$python" -m steersman sample --target baseball --num 16 --device "$device" --out "$out/baseballs" --overwrite
part bench "$python" -m steersman bench nrcg --denoiser "$out/cifar10" --classifier zoo:sportballs-mobilenet \
  --batch-size "$num" --device "$device" --out "$out/bench.json"
