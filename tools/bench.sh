#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What `make bench` measures, after set-up and build; arguments go to tools/bench.py (--help lists them).
set -euo pipefail
exec python3 "$(dirname "$0")/bench.py" "$@"
