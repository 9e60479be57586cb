#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What `make bench` measures, after set-up and build: JSON lines on stdout.
set -euo pipefail
cd "$(dirname "$0")/.."
build/release/bin/tessera bench op --json -
build/release/bin/tessera bench collectives --json -
