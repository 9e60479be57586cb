#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Brings what the build needs and is not there yet: packages, LibTorch, the digits data set. Running it again is free.
#
#   TESSERA_TORCH=/path/to/torch   use this LibTorch instead of downloading one; so does CMAKE_PREFIX_PATH
#   TORCH_VERSION=2.11.0           which wheel to download; see tools/versions.env for the other pins
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/versions.env

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# --- packages ---------------------------------------------------------------------------------------------------------

missing_packages() {
  local name _
  while read -r name _; do
    case "$name" in ''|'#'*) continue ;; esac
    dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || echo "$name"
  done < tools/apt-packages.txt
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

install_packages() {
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    say "packages: not Debian or Ubuntu; the build needs what tools/apt-packages.txt lists"
    return
  fi
  local missing
  missing=$(missing_packages | xargs)
  if [ -z "$missing" ]; then
    say "packages: all there"
    return
  fi
  if [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; then
    fail "packages missing and neither root nor sudo: ask for  apt-get install $missing"
  fi
  say "packages: installing $missing"
  as_root apt-get update -qq
  # shellcheck disable=SC2086  # one word per package
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# --- LibTorch ---------------------------------------------------------------------------------------------------------

venv_python=.venv/bin/python

make_venv() {
  if [ ! -x "$venv_python" ]; then
    say "python: making the private environment .venv"
    python3 -m venv .venv
  fi
}

pip_install() { "$venv_python" -m pip install --quiet --disable-pip-version-check --no-deps "$@"; }

holds_torch() {
  local place=$1 root
  for root in "$place" "$place/torch" "$place/libtorch" "$place/../.." "$place/../../.." \
              "$place"/lib/python3*/site-packages/torch; do
    [ -e "$root/include/ATen/core/Tensor.h" ] && [ -e "$root/lib/libtorch_cpu.so" ] && return 0
  done
  return 1
}

# The LibTorch that the user or the machine already has: its place, or nothing. CMake checks version and ABI.
given_torch() {
  local place
  if [ -n "${TESSERA_TORCH:-}" ]; then
    holds_torch "$TESSERA_TORCH" || fail "TESSERA_TORCH=$TESSERA_TORCH holds no LibTorch (no include/ATen, lib/libtorch_cpu.so)"
    echo "$TESSERA_TORCH"
    return
  fi
  local IFS=':;'
  for place in ${CMAKE_PREFIX_PATH:-}; do
    if holds_torch "$place"; then echo "$place"; return; fi
  done
  [ -d .venv ] || python_torch
}

# The wheel of the interpreter on the PATH, if it is new enough.
python_torch() {
  TORCH_MINIMUM=$TORCH_MINIMUM python3 - <<'PYTHON' 2>/dev/null || true
import importlib.util, os, pathlib, re
spec = importlib.util.find_spec("torch")
root = pathlib.Path(spec.submodule_search_locations[0]) if spec else None
if root and (root / "include/ATen/core/Tensor.h").exists():
    found = re.search(r"__version__ = '(\d+)\.(\d+)", (root / "version.py").read_text())
    if [int(n) for n in found.groups()] >= [int(n) for n in os.environ["TORCH_MINIMUM"].split(".")]:
        print(root)
PYTHON
}

venv_torch() { "$venv_python" -c 'import sysconfig; print(sysconfig.get_path("purelib") + "/torch")'; }

venv_torch_version() { sed -n "s/^__version__ = '\([0-9.]*\).*/\1/p" "$(venv_torch)/version.py" 2>/dev/null || true; }

install_cuda_runtime() {
  local torch=$1
  if ldd "$torch/lib/libtorch_cpu.so" | grep -Eq 'lib(cudart|cupti).*not found'; then
    say "LibTorch: no CUDA toolkit here; adding the two libraries that a CUDA build needs to start (13 MB)"
    pip_install "nvidia-cuda-runtime==$CUDA_RUNTIME_VERSION" "nvidia-cuda-cupti==$CUDA_CUPTI_VERSION"
  fi
}

install_torch() {
  local given
  given=$(given_torch)
  if [ -n "$given" ]; then
    say "LibTorch: using $given"
    return
  fi
  make_venv
  if [ "$(venv_torch_version)" != "$TORCH_VERSION" ]; then
    say "LibTorch: downloading the wheel torch==$TORCH_VERSION into .venv (0.5 GB, 1.2 GB on disk)"
    pip_install "torch==$TORCH_VERSION"
  else
    say "LibTorch: $TORCH_VERSION in .venv"
  fi
  install_cuda_runtime "$(venv_torch)"
  make_python_torch "$(venv_torch)"
}

# --- a Python that imports torch, for the conformance test ------------------------------------------------------------

python_torch_program=.venv/bin/python-torch

# The CUDA wheel's libtorch_cuda names a dozen NVIDIA libraries, gigabytes of them. Nothing in them is called without a
# GPU, so an empty library stands in for each that is missing, and Python binds symbols when they are called.
make_python_torch() {
  local torch=$1 absent=.venv/absent library
  if [ -x "$python_torch_program" ]; then
    say "python: $python_torch_program is there"
    return
  fi
  say "python: adding what importing torch needs, for the conformance test (30 MB, 106 MB on disk)"
  # shellcheck disable=SC2046  # one word per package
  pip_install --no-compile $(sed '/^#/d' tools/python-packages.txt)
  mkdir -p "$absent"
  for library in $(ldd "$torch"/lib/libtorch_python.so "$torch"/lib/libtorch_cuda.so 2>/dev/null |
                   awk '/not found/ {print $1}' | sort -u); do
    cc -shared -x c /dev/null -o "$absent/$library" -Wl,-soname,"$library"
  done
  printf 'import os\nimport sys\nsys.setdlopenflags(os.RTLD_LAZY)\n' > "$absent/sitecustomize.py"
  cat > "$python_torch_program" <<'WRAPPER'
#!/bin/sh
# Python with torch for a machine without a GPU; see tools/setup.sh.
home=$(cd "$(dirname "$0")/.." && pwd)
LD_LIBRARY_PATH=$home/absent${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
PYTHONPATH=$home/absent${PYTHONPATH:+:$PYTHONPATH}
export LD_LIBRARY_PATH PYTHONPATH
exec "$home/bin/python" "$@"
WRAPPER
  chmod +x "$python_torch_program"
}

# --- data -------------------------------------------------------------------------------------------------------------

digits=.data/digits.csv

# 1,797 pictures of 8 x 8 pixels, 0 to 16, then the digit: a file inside the scikit-learn wheel.
fetch_digits() {
  if [ -s "$digits" ]; then
    say "data: $digits is there"
    return
  fi
  make_venv
  say "data: taking the digits out of scikit-learn $SCIKIT_LEARN_VERSION (13 MB; nothing of it is installed)"
  local folder
  folder=$(mktemp -d)
  # The wheel is only unpacked, so one for any interpreter and machine will do.
  "$venv_python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version 3.11 --platform manylinux2014_x86_64 --dest "$folder" "scikit-learn==$SCIKIT_LEARN_VERSION"
  mkdir -p .data
  "$venv_python" tools/unpack_digits.py "$folder"/scikit_learn-*.whl "$digits"
  rm -rf "$folder"
}

install_packages
install_torch
fetch_digits
say "done"
