# The two commands: `make run` measures the embedded model, `make test` runs every test.
#   make run ARGS="--precision bf16,nvfp4"    make test ARGS="-k faults"    make run PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

.PHONY: run test clean
.DELETE_ON_ERROR:

run: $(VENV)/.hf
	$(VENV)/bin/harness run $(ARGS)

test: $(VENV)/.hf,test
	$(VENV)/bin/pytest $(ARGS)

# The stamp's name is the extras that are installed.
$(VENV)/.%: setup.cfg pyproject.toml constraints/cpu.txt tools/make_venv.sh
	sh tools/make_venv.sh $(PYTHON) $(VENV) $*
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
