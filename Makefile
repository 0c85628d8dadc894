# Thin calls of scripts/. `make demo` and `make test` work on a fresh clone with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow lint audit docs mutate clean

demo: $(STAMP)
	$(VENV)/bin/xwin run recipes/tiny.yaml

test: $(STAMP)
	scripts/check

test-slow: $(STAMP)
	scripts/slow

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

clean:
	rm -rf $(VENV) .venv-audit mutants build *.egg-info src/*.egg-info
