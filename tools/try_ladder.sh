#!/bin/bash
# Every rung of the HF engine against eager, then what docs/h200 says of the ladder and of speed, anew on this GPU, one
# step after the other. Run from the repository root, where moe-harness[hf,profile] is importable, and vLLM by
# .venv-vllm/bin/python:
#   bash tools/try_ladder.sh CONFIG_FOLDER OUT      # CONFIG_FOLDER holds a config.json of Qwen3-30B-A3B
# Ends with ALLDONE. PARTS="check start" runs some only, BATCHES=1,16 fewer works; a ladder that was cut short goes on.
set -u
MODEL=$(cd "${1:?a folder with config.json}" && pwd); OUT=${2:?a folder to write to}
. tools/steps.sh
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd)
ladder() {
  step "$1" "$2" python3 -m harness ladder --engine "$1" --model "$MODEL" --weights dummy --precision bf16,fp8 --quick \
       --output-len 16 --batch-size "${BATCHES:-1,16,64}" --resume --output-dir "$OUT/$1" "${@:3}"
}
for part in ${PARTS:-check start hf gptoss vllm speed}; do case $part in
  check)  step check 300 python3 -m harness_hf.check ;;
  start)  step start 200 python3 benchmarks/speed.py --model "$MODEL" --only start --vllm "" --output "$OUT/start" ;;
  hf)     ladder hf 1500 --without compile,compiled_scoring,tf32,numa --profile ;;
  gptoss) step gptoss 300 python3 benchmarks/fused.py --model gpt-oss-20b ;;
  vllm)   ladder vllm 1800 ;;
  speed)  step speed 1500 python3 benchmarks/speed.py --model "$MODEL" --rounds 1 --num-iterations 3 --output "$OUT/speed" ;;
  *)      echo "no part $part" ;;
esac; done
find "$OUT" -size +20M -delete   # traces; their analyses stay
echo ALLDONE
