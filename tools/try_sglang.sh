#!/bin/bash
# Does the SGLang plugin hold on this GPU? Names, conformance, tinymoe beside hf, and Qwen3-30B-A3B's shape with random
# weights at each precision, one step after the other: what fails costs its own step only. Run from the repository root:
#   bash tools/try_sglang.sh CONFIG_FOLDER OUT      # CONFIG_FOLDER holds a config.json of Qwen3-30B-A3B
# SGLang and moe-harness (constraints/sglang.txt) are importable; it takes over 10 minutes and ends with ALLDONE.
set -u
MODEL=$(cd "${1:?a folder with config.json}" && pwd); OUT=${2:?a folder to write to}; TREE=$PWD
. tools/steps.sh
export CUDA_HOME=${CUDA_HOME:-$(dirname "$(dirname "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")")}
export SGLANG_JIT_DEEPGEMM_PRECOMPILE=false   # all shapes beforehand takes many minutes
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) && cd "$OUT"
H="python3 -m harness"
step versions 60 python3 -c 'import sglang, sgl_kernel, flashinfer, torch, transformers as t; print(sglang.__version__, torch.__version__, torch.version.cuda, t.__version__, flashinfer.__version__)'
step names 120 python3 -m pytest -p no:cacheprovider -x "$TREE/tests/engines/test_sglang.py" -k installed
step doctor 60 $H doctor
step conformance 500 python3 -m pytest -p no:cacheprovider "$TREE/tests/engines/test_sglang.py"
step tinymoe 580 $H run --engine hf,sglang --precision fp32,bf16 --workload ppl,perf --output-dir "$OUT/tiny" --json
for precision in bf16 fp8 fp8_block nvfp4; do   # one by one: what fails costs its own step only
  step "q30_$precision" 590 $H run --engine sglang --model "$MODEL" --weights dummy --precision $precision --workload perf \
       --batch-size 1,16 --profile torch --output-dir "$OUT/q30" --json
done
find "$OUT" -size +20M -delete   # traces; their analyses stay
echo ALLDONE
