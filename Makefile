# SPDX-License-Identifier: MIT
#
# Thin: every target forwards to cmake, ctest or the built program.  P picks the preset of
# CMakePresets.json: release (default, in build/), dev (sanitizers), tsan, fuzz, ... (in build/$P).
P      ?= release
LABEL  ?=
N      ?= 30
PREFIX ?= /usr/local
FUZZ   ?=
BENCH  ?= --hidden 2048 --inter 768 --experts 128 --topk 8 --tokens 1,16,256 --dtype bf16

BUILD := $(if $(filter release,$(P)),build,build/$(P))
JOBS  ?= $(shell nproc 2>/dev/null || echo 2)
RUN   := python3 tests/run.py $(BUILD) --jobs 2

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := all
.PHONY: all deps run test check-bits test-golden test-grad test-dist test-serve test-python \
        test-large bench fuzz lint cuda install clean help

all: deps $(BUILD)/CTestTestfile.cmake ## build the library, the program and the tests (P=release|dev|tsan)
	@cmake --build $(BUILD) -j $(JOBS)

# The last file that a successful configure writes.
$(BUILD)/CTestTestfile.cmake: | deps
	@cmake --preset $(P)

deps: ## install what is missing, with apt-get; asks once on a terminal
	@scripts/deps.sh

run: all ## the main job: the model that ships writes a scene, and says how fast
	@printf 'ROMEO:'
	@$(BUILD)/cmoe generate models/shakespeare-moe --prompt "ROMEO:" --max-tokens 300 --seed 1 --cache-dir none
	@printf '\nNext:\n  build/cmoe chat MODEL          talk with a model from your disk\n%s\n%s\n' \
	  '  build/cmoe train --help        how this one was made: models/shakespeare-moe/README.md' \
	  '  build/cmoe demo                one layer: routing, proofs, share of the machine'"'"'s limit'

test: all ## every test that needs no GPU and no network (LABEL=threads: only those)
	@$(RUN) --exclude large $(if $(LABEL),--label $(LABEL))

check-bits: all ## the same bits over batches, positions, threads, addresses, ISAs (N=seconds)
	@$(BUILD)/tests/bits/bits $(N)

test-golden: all ## against values from transformers, and from numpy in float64
	@$(RUN) --label golden --show

test-grad: all ## gradients against finite differences
	@$(RUN) --label grad --show

test-dist: deps ## 1, 2 and 4 ranks: the same bits as one
	@echo "test-dist: 0 passed, 0 failed (no communicator but the local one yet)"

test-serve: deps ## the HTTP server
	@echo "test-serve: 0 passed, 0 failed (no server yet)"

test-python: all ## the Python binding
	@$(RUN) --label python

test-large: all ## more than 2^31 elements, every float through vmath, a model of 8 GB: many minutes
	@$(RUN) --label large --show --jobs 1

bench: all ## time a layer (BENCH="--hidden H --inter I ..."), JSON with BENCH="... --json"
	@$(BUILD)/cmoe bench layer $(BENCH)

fuzz: deps ## feed random bytes to every parser (FUZZ_RUNS=10000000 for each; needs clang)
	@python3 tests/fuzz/run.py $(if $(FUZZ_RUNS),--runs $(FUZZ_RUNS)) $(FUZZ)

lint: deps ## who includes whom, forbidden calls, SPDX lines, format
	@python3 tests/lint/lint.py

cuda: deps ## the CUDA plugin
	@echo "cuda: nothing to build (no CUDA kernels yet)"; exit 1

install: all ## headers, libraries, program, pkg-config and CMake files into PREFIX
	@cmake --install $(BUILD) --prefix "$(PREFIX)"

clean: ## remove what this preset built; other presets, which lie below build/, stay
	@find $(BUILD) -mindepth 1 -maxdepth 1 $(if $(filter release,$(P)),! -name dev ! -name tsan ! -name fuzz ! -name cuda ! -name mpi) -exec rm -rf {} + 2>/dev/null || true

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' Makefile
