# SPDX-License-Identifier: Apache-2.0
# Short names for set-up, build, demo, test and bench. The build itself is CMake: see CMakePresets.json.
#
#   TESSERA_TORCH=/path/to/torch   build against this LibTorch
#   BENCH_FLAGS=--quick            see tools/bench.py --help
#   JOBS=2                         compilers and tests at once; each compiler needs about 2 GB
JOBS ?= 2
PRESET ?= release
TESSERA_TORCH ?=
export TESSERA_TORCH

.PHONY: help setup build demo test bench format clean
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' Makefile

setup: ## brings packages, LibTorch and the digits data set, where they are missing
	@tools/setup.sh

build: setup ## build/release/bin/tessera, libtessera, tests and examples
	@cmake --preset $(PRESET) $(if $(TESSERA_TORCH),-DTESSERA_TORCH="$(TESSERA_TORCH)")
	@cmake --build --preset $(PRESET) -j $(JOBS)

demo: build ## trains a small model on several local ranks
	@tools/demo.sh

test: build ## every test but those that need a GPU
	@ctest --preset $(PRESET) -j $(JOBS)

bench: build ## measurements, beside PyTorch and MPI where TESSERA_PEERS names them
	@tools/bench.sh $(BENCH_FLAGS)

format: ## formats every tracked C++ file with the pinned clang-format
	@tools/format.sh

clean: ## removes build/; keeps .venv and .data
	@cmake -E rm -rf build
