# SPDX-License-Identifier: Apache-2.0
# Short names for set-up, build, demo, test and bench. The build itself is CMake: see CMakePresets.json.
#
#   TESSERA_TORCH=/path/to/torch   build against this LibTorch
#   BENCH_FLAGS=--quick            see tools/bench.py --help
#   MUTANTS_FLAGS="--count 20"     see tools/mutants.py --help
#   KILLS=100                      schedules of make kills
#   JOBS=2                         compilers and tests at once; each compiler needs about 2 GB
JOBS ?= 2
KILLS ?= 100
PRESET ?= release
TESSERA_TORCH ?=
export TESSERA_TORCH

.PHONY: help setup configure build demo test bench mutants kills format clean
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' Makefile

setup: ## brings packages, LibTorch and the digits data set, where they are missing
	@tools/setup.sh

configure: setup
	@cmake --preset $(PRESET) $(if $(TESSERA_TORCH),-DTESSERA_TORCH="$(TESSERA_TORCH)")

build: configure ## build/release/bin/tessera, libtessera, tests and examples
	@cmake --build --preset $(PRESET) -j $(JOBS)

demo: configure ## trains a small model on several local ranks; builds the program alone
	@cmake --build --preset $(PRESET) -j $(JOBS) --target tessera_cli
	@tools/demo.sh

test: build ## every test but those that need a GPU
	@ctest --preset $(PRESET) -j $(JOBS)

bench: build ## measurements, beside PyTorch and MPI where TESSERA_PEERS names them
	@tools/bench.sh $(BENCH_FLAGS)

mutants: setup ## seeds 150 small mistakes, one by one, and asks the tests to notice them; hours
	@python3 tools/mutants.py --jobs $(JOBS) $(MUTANTS_FLAGS)

kills: build ## trains, kills and resumes by 100 random schedules; an hour
	@python3 tests/cli/checkpoint_test.py build/$(PRESET)/bin/tessera Kills --schedules $(KILLS)

format: ## formats every tracked C++ file with the pinned clang-format
	@tools/format.sh

clean: ## removes build/; keeps .venv and .data
	@cmake -E rm -rf build
