# GNU make and a POSIX sh; needs Python 3.11 or newer with its venv module. Everything lands in this folder.
#
#   make demo     set up, fetch a 98 MB model, talk to it here      (MODEL=gemma3: Gemma 3 270M completes text)
#   make test     the tests that need nothing but the package
#   make check    lint, types, and the same tests at full size against torch, transformers and llama.cpp
#   make bench    speed on this machine, beside the machine's own limit
#   make demo-pack  the same model as one executable file, made and asked a question
#   make wheel    a wheel in dist/ that carries machine code and runs without Numba
#
# pip's own configuration (PIP_* variables, pip.conf) is respected.

.DELETE_ON_ERROR:
.PHONY: help demo demo-pack test check lint bench wheel lock clean

MODEL ?= smollm2
TEST_ARGS ?=

help:
	@sed -n '3,9s/^#//p' Makefile

# --- environments: made once, again only when a lock file changes; the stamp is written last -------------------------

.venv/ready: requirements.lock pyproject.toml
	@sh tools/setup_venv.sh .venv requirements.lock

.venv-check/ready: requirements-check.lock requirements.lock pyproject.toml
	@sh tools/setup_venv.sh .venv-check requirements-check.lock

# --- what people run ------------------------------------------------------------------------------------------------

demo: .venv/ready
	@sh tools/demo.sh $(MODEL)

demo-pack: .venv/ready
	@model=$$(.venv/bin/python tools/get_model.py $(MODEL)) && mkdir -p build && \
		.venv/bin/gemmafile pack "$$model" -o build/demo.llamafile --accept-license && \
		build/demo.llamafile --temp 0 -n 40 -p "Once upon a time"

test: .venv/ready
	@for model in smollm2 gemma3; do .venv/bin/python tools/get_model.py $$model >/dev/null || \
		echo "tests that need $$model will be skipped" >&2; done
	.venv/bin/python -m pytest -q $(TEST_ARGS)

check: lint .venv-check/ready
	@for model in smollm2 gemma3 gemma2-tokenizer; do .venv-check/bin/python tools/get_model.py $$model >/dev/null || \
		echo "checks that need $$model will be skipped" >&2; done
	.venv-check/bin/python tools/build_llamacpp.py
	.venv-check/bin/python -m tests.oracles.make_goldens --diff
	GEMMAFILE_FULL=1 .venv-check/bin/python -m pytest -q $(TEST_ARGS)
	sh tools/check_aarch64.sh .venv-check/bin/python
	sh tools/build_wheel.sh .venv-check/bin/python build/checked
	model=$$(.venv-check/bin/python tools/get_model.py smollm2) && \
		sh tools/check_packed.sh .venv-check/bin/python "$$model"
	model=$$(.venv-check/bin/python tools/get_model.py smollm2) && \
		sh tools/check_wheel.sh .venv-check/bin/python build/checked/gemmafile-*.whl "$$model"

lint: .venv-check/ready
	.venv-check/bin/ruff check .
	.venv-check/bin/ruff format --check .
	.venv-check/bin/mypy

bench: .venv/ready
	@model=$$(.venv/bin/python tools/get_model.py $(MODEL)) && .venv/bin/gemmafile bench "$$model" $(if $(wildcard .llamacpp/bin/llama-bench),--vs llamacpp)

wheel: .venv/ready
	@sh tools/build_wheel.sh .venv/bin/python dist

# --- upkeep ---------------------------------------------------------------------------------------------------------

lock: .venv/ready
	.venv/bin/python tools/lock.py

clean:
	rm -rf .venv .venv-check .pytest_cache .hypothesis .mypy_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "kept: .models (delete it by hand to fetch the models again)"
