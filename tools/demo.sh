#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What `make demo` shows, after set-up and build.
set -euo pipefail
cd "$(dirname "$0")/.."
build/release/bin/tessera --version
