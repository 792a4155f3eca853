#!/bin/bash
# The parts of try_ladder.sh that docs/h200 still lacks, on a machine of two GPUs, side by side where one is enough: half an
# hour. Run as try_ladder.sh; ends with ALLDONE.
#   bash tools/try_two_gpus.sh CONFIG_FOLDER OUT
set -u
MODEL=${1:?a folder with config.json} OUT=${2:?a folder to write to}
mkdir -p "$OUT"
on() {  # GPUS PARTS
  CUDA_VISIBLE_DEVICES=$1 PARTS=$2 bash tools/try_ladder.sh "$MODEL" "$OUT/gpus$1" >>"$OUT/gpus$1.log" 2>&1
}
on 0 "speed ledger" &
on 1 vllm &
wait
on 0,1 tp
on 0 gptoss &
on 1 single &
wait
echo ALLDONE
