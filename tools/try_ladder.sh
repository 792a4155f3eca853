#!/bin/bash
# Every rung of the HF engine against eager, then what docs/h200 says of the ladder and of speed, anew on this GPU, one
# step after the other. Run from the repository root, where moe-harness[hf,profile] is importable, and vLLM by
# .venv-vllm/bin/python:
#   bash tools/try_ladder.sh CONFIG_FOLDER OUT      # CONFIG_FOLDER holds a config.json of Qwen3-30B-A3B
# Ends with ALLDONE. PARTS="check start" runs some only, BATCHES=1,16 fewer works of a ladder; one that was cut short goes
# on. Parts rounds, single, tp1 and tp2 are run only when named; tp2 needs two GPUs.
set -u
MODEL=$(cd "${1:?a folder with config.json}" && pwd); OUT=${2:?a folder to write to}
. tools/steps.sh
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd)
HF=(hf --without compile,compiled_scoring,tf32,numa)
ladder() {  # NAME SECONDS BATCHES ENGINE OPTION...
  step "$1" "$2" python3 -m harness ladder --model "$MODEL" --weights dummy --precision bf16,fp8 --quick --output-len 16 \
       --resume --output-dir "$OUT/$1" --batch-size "$3" --engine "${@:4}"
}
GPT_OSS='import sys; from transformers import AutoConfig
config = AutoConfig.for_model("gpt_oss", num_hidden_layers=24, num_local_experts=32, num_experts_per_tok=4)
config.architectures = ["GptOssForCausalLM"]; config.save_pretrained(sys.argv[1])'
WITH_TP=sdpa+grouped_experts+static_cache+cuda_graphs
tensor_parallel() {  # ENGINE TP RUNGS
  step "tp-$1-$2" 400 python3 -m harness run --engine "$1" --tp "$2" --rungs "$3" --model "$MODEL" --weights dummy \
       --precision bf16 --workload perf --batch-size 1,16 --input-len 512 --output-len 32 --num-iterations 3 --warmup-iterations 1 \
       --profile torch --output-dir "$OUT/tp"
}
for part in ${PARTS:-check start gptoss speed hf ledger vllm}; do case $part in
  check)  step check 300 python3 -m harness_hf.check ;;
  start)  step start 200 python3 benchmarks/speed.py --model "$MODEL" --only start --vllm "" --output "$OUT/start" ;;
  gptoss) step gptoss-layer 100 python3 benchmarks/fused.py --model gpt-oss-20b --layers 1 --only correct
          step gptoss 300 python3 benchmarks/fused.py --model gpt-oss-20b
          step gptoss-config 60 python3 -c "$GPT_OSS" "$OUT/gpt-oss-20b"
          MODEL=$OUT/gpt-oss-20b ladder gptoss-ladder 600 1 "${HF[@]}" --precision bf16 ;;
  speed)  step speed 1500 python3 benchmarks/speed.py --model "$MODEL" --rounds 1 --num-iterations 3 --output "$OUT/speed" ;;
  hf)     ladder hf 1500 "${BATCHES:-1,16,64}" "${HF[@]}" ;;
  ledger) ladder ledger 1200 1 "${HF[@]}" --profile --output-len 4 ;;  # the trace of one plain prefill holds 30,000 kernels
  rounds) ladder rounds 1200 1 hf --without compile,compiled_scoring --repeats 3 ;;  # intervals that know the starts' noise
  single) ladder single 1200 1 hf --without compiled_scoring --steps single ;;
  vllm)   ladder vllm 1800 "${BATCHES:-1,16,64}" vllm ;;
  tp1)    tensor_parallel hf 1 "$WITH_TP"; tensor_parallel vllm 1 compile+cuda_graphs ;;
  tp2)    tensor_parallel hf 2 "$WITH_TP"; tensor_parallel vllm 2 compile+cuda_graphs
          ladder tp2 400 1 hf --tp 2 --precision bf16 ;;  # KL of each rung on a model that is cut
  *)      echo "no part $part" ;;
esac; done
find "$OUT" -size +20M -delete   # traces; their analyses stay
echo ALLDONE
