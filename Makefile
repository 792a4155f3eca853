# The two commands: `make run` measures the embedded model, `make test` runs every test.
# `make venv-vllm` builds vLLM's own environment, which `harness run --engine vllm` finds.
#   make run ARGS="--precision bf16,nvfp4"    make test JOBS=1 ARGS="-k faults"    make run PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
JOBS ?= 2

.PHONY: run test venv-vllm clean
.DELETE_ON_ERROR:

run: $(VENV)/.hf,profile,report
	$(VENV)/bin/harness run $(ARGS)

test: $(VENV)/.hf,profile,report,ray,mlflow,test .venv-vllm/.vllm,test
	$(VENV)/bin/pytest -n $(JOBS) --dist loadscope --no-loadscope-reorder $(ARGS)

venv-vllm: .venv-vllm/.vllm

# The stamp's name is the extras that are installed.
MADE_FROM = setup.cfg pyproject.toml constraints/cpu.txt tools/make_venv.sh
$(VENV)/.%: $(MADE_FROM)
	sh tools/make_venv.sh $(PYTHON) $(VENV) $*
	touch $@

.venv-vllm/.%: $(MADE_FROM)
	sh tools/make_venv.sh $(PYTHON) .venv-vllm $*
	touch $@

clean:
	rm -rf $(VENV) .venv-vllm build dist *.egg-info
