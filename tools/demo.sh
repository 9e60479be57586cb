#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What `make demo` shows, after set-up and build: a GPT on real text over four ranks, a CNN on real digits, and the proof
# that both compute what one device computes.
set -euo pipefail
cd "$(dirname "$0")/.."
tessera=build/${PRESET:-release}/bin/tessera

say() { printf '\n=== %s\n' "$*" >&2; }

say "a GPT of 1.3 million parameters on text, 4 local ranks as dp=2 x tp=2"
"$tessera" train --model gpt --mesh dp=2,tp=2 --steps 120 --lr 2e-3 --clip 1.0 --eval-every 40

say "a CNN on the UCI digits, 4 local ranks as dp=4"
"$tessera" train --model cnn --mesh dp=4 --batch 64 --epochs 10 --lr 3e-3 --eval-every 60

say "the same computations on one device, in double precision: losses, gradients and parameters must agree to 1e-12"
"$tessera" verify --model gpt --mesh dp=2,tp=2
"$tessera" verify --model cnn --mesh dp=4 --batch 64
