# Thin calls of scripts/. `make demo` and `make test` work on a fresh clone with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
VLLM := .venv-vllm/.installed

.PHONY: demo test test-slow test-vllm lint audit docs mutate clean

demo: $(STAMP)
	$(VENV)/bin/xwin run recipes/tiny.yaml

test: $(STAMP)
	scripts/check

test-slow: $(STAMP)
	scripts/slow

# vLLM in an environment of its own; not part of what CI runs
test-vllm: $(VLLM)
	.venv-vllm/bin/python -m pytest tests/engines/test_vllm*.py -m vllm --capture=no --timeout=1800

lint: $(STAMP)
	scripts/lint

audit:
	$(PYTHON) scripts/audit

docs: $(STAMP)
	scripts/docs

mutate: $(STAMP)
	scripts/mutate

$(STAMP): pyproject.toml constraints.txt scripts/install
	PYTHON=$(PYTHON) scripts/install $(VENV)
	touch $@

$(VLLM): pyproject.toml constraints-vllm.txt scripts/vllm-env
	PYTHON=$(PYTHON) scripts/vllm-env .venv-vllm
	touch $@

clean:
	rm -rf $(VENV) .venv-vllm .venv-audit mutants build *.egg-info src/*.egg-info
