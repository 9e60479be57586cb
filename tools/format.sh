#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Formats every tracked C++ file; with --check it only says which ones differ, and fails.
# Versions of clang-format disagree in details, so only the pinned one counts; without it there is nothing to do.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/versions.env

formatter=
for candidate in "clang-format-$CLANG_FORMAT_VERSION" clang-format; do
  if command -v "$candidate" >/dev/null && "$candidate" --version | grep -q "version $CLANG_FORMAT_VERSION\."; then
    formatter=$candidate
    break
  fi
done
if [ -z "$formatter" ]; then
  echo "format: clang-format $CLANG_FORMAT_VERSION is not here; nothing done" >&2
  exit 0
fi

mode=(-i)
[ "${1:-}" = --check ] && mode=(--dry-run -Werror)
git ls-files -z '*.h' '*.cpp' '*.cu' | xargs -0 -r "$formatter" "${mode[@]}"
