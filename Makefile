# Every target sets up what it needs: `make demo` and `make test` work on a fresh clone.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help setup demo soak-train soak-serve soak-steady test test-all test-faults fuzz lint types audit bench bench-encoders demo-bundle clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(STAMP)  ## make .venv with everything in it; does nothing the second time

# uv reads neither pip.conf nor PIP_*; what pip is told about indexes and wheel folders is handed over. pip is the fallback.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt uv || echo "no uv: falling back on pip"
	@told() { $(BIN)/python -m pip config list | sed -n "s/^[^=]*[.:]$$1='\(.*\)'$$/\1/p" | tail -n 1 | sed 's/\\n/ /g' | xargs; }; \
	links=$$(told find-links); index=$$(told index-url); extra=$$(told extra-index-url); \
	if [ -n "$$links" ]; then export UV_FIND_LINKS="$${UV_FIND_LINKS:-$${links// /,}}"; fi; \
	if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}"; fi; \
	if [ -n "$$extra" ]; then export UV_INDEX="$${UV_INDEX:-$$extra}" UV_INDEX_STRATEGY=unsafe-best-match; fi; \
	echo "installing into .venv (about a minute with uv, some minutes with pip)"; \
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt --build-constraints constraints.txt -e '.[dev]' \
	|| $(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## decode simulated recordings with the shipped bundle -> out/demo.png and scores
	$(BIN)/phosphene demo

# One process per core, each file in one of them.
SPREAD := -n logical --maxprocesses 8 --dist loadfile

test: $(STAMP)  ## the fast tests
	$(BIN)/python -m pytest $(SPREAD)

# Each starts services of its own, of which two keep four cores busy; only the files that have such tests are collected.
FAULTS_AT_ONCE = $(shell cores=$$(nproc 2>/dev/null || echo 1); if [ $$cores -ge 4 ]; then echo 2; else echo 0; fi)
test-faults: $(STAMP)  ## the fault, fuzz and load tests
	$(BIN)/python -m pytest -m faults -n $(FAULTS_AT_ONCE) --dist loadfile $$(grep -l 'mark.*faults' tests/test_*.py)

N ?= 2000
SEED ?= 0
fuzz: $(STAMP)  ## N mutants of recordings in six formats through HTTP (make fuzz N=100000)
	$(BIN)/python benchmarks/fuzz_uploads.py --mutants $(N) --seed $(SEED)

test-all: $(STAMP)  ## slow tests too; those that need a GPU skip themselves without one
	$(BIN)/python -m pytest $(SPREAD) -m "not network and not faults"

lint: $(STAMP)  ## ruff
	$(BIN)/ruff check .

types: $(STAMP)  ## mypy --strict over the four packages
	$(BIN)/mypy

# --strict: a package that the advisory service does not know is an error, not a package without findings.
audit:  ## known vulnerabilities of the versions in constraints.txt; asks an advisory service
	@test -x .venv/audit/bin/pip-audit || { $(PYTHON) -m venv .venv/audit \
	&& .venv/audit/bin/python -m pip install -qq --disable-pip-version-check pip-audit==2.10.1; }
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

bench: $(STAMP)  ## measure speed: service, encoders, wavelets, stream
	@set -e; for script in serve_overhead encoder_speed wavelet_speed streaming_latency; do \
	echo "== $$script"; $(BIN)/python "benchmarks/$$script.py"; done

bench-encoders: $(STAMP)  ## train every encoder and fusion on simulated brains -> BENCHMARKS.md; hours, resumes
	$(BIN)/python benchmarks/encoder_table.py
	$(BIN)/python benchmarks/learning_curve.py
	$(BIN)/python benchmarks/merging_table.py

soak-train: $(STAMP)  ## kill, break and resume trainings -> out/soak
	$(BIN)/python benchmarks/soak_train.py --out out/soak

soak-serve: $(STAMP)  ## load the service and kill its processes -> out/soak-serve.json
	$(BIN)/python benchmarks/soak_serve.py --out out/soak-serve.json

soak-steady: $(STAMP)  ## use the service for HOURS=4, and see that it does not grow -> out/soak-steady.json
	$(BIN)/python benchmarks/soak_steady.py --hours $(or $(HOURS),4) --out out/soak-steady.json

IMAGES ?=
demo-bundle: $(STAMP)  ## train the demo bundle again; IMAGES=folder trains on your pictures
	$(BIN)/python -m generation.train_demo $(if $(IMAGES),--images "$(IMAGES)")

clean:  ## remove what the other targets wrote, .venv excepted
	rm -rf out build dist .pytest_cache .mypy_cache .ruff_cache
