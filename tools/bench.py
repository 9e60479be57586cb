#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures Tessera side by side with PyTorch and MPI, in interleaved rounds, and reports ratios with their spread.

    tools/bench.py            about 6 minutes; with peers, rewrites the tables of docs/performance.md
    tools/bench.py --quick    about 1 minute; prints only

Peers are the programs in a folder: train.py, workloads.py, op_overhead.py, collectives.py, mpi_collectives.cpp and the
setup.sh that makes their Python environment. Without them Tessera is measured alone.

    TESSERA_PEERS=DIR         the folder (default: ../shared/peers)
    TESSERA_PEERS_VENV=DIR    their Python environment (default: build/peers-venv, made by setup.sh when absent)
    BENCH_ROUNDS=N            rounds (default 5)

Exit code 1 if something could not be measured or losses differ; slow is not an error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import bench_report

ROOT = Path(__file__).resolve().parent.parent
RELEASE = ROOT / "build/release/bin/tessera"
WORK = ROOT / "build/bench-files"
DOCUMENT = ROOT / "docs/performance.md"
RANKS = 2
RUN_LIMIT_S = 120


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


@dataclass
class Peers:
    """What there is to compare with; None where it is absent, and why."""

    folder: Path | None = None
    python: Path | None = None
    mpi: list[str] | None = None
    absent: list[str] = field(default_factory=list)


@dataclass
class Size:
    """What is measured, and how much of it."""

    tessera: str
    rounds: int
    max_bytes: int
    op_repeats: int
    steps: dict[str, tuple[int, int]]  # model: steps, of which warm-up
    verbose: bool = False

    @staticmethod
    def full(tessera: str, rounds: int) -> Size:
        return Size(tessera, rounds, 1 << 26, 15, {"gpt": (15, 5), "mlp": (40, 5)})

    @staticmethod
    def quick(tessera: str, rounds: int) -> Size:
        return Size(tessera, rounds, 1 << 20, 5, {"gpt": (6, 2), "mlp": (15, 3)})


@dataclass
class Run:
    """One command of a round. `key` names its result; `kind` says how its lines are read."""

    key: str
    kind: str
    command: list[str]


# --- what is run ------------------------------------------------------------------------------------------------------

TESSERA_MODELS = {
    "gpt": "--model gpt --layers 4 --hidden 256 --heads 4 --vocab 256 --seq-len 128 --batch 8 --optimizer adamw",
    "mlp": "--model mlp --sizes 784,1024,1024,1024,10 --batch 128 --optimizer sgd --momentum 0.9",
}
PEER_MODELS = {
    "gpt": "--model gpt --layers 4 --hidden 256 --heads 4 --vocab 256 --seq 128 --batch 8 --optimizer adamw",
    "mlp": "--model mlp --sizes 784 1024 1024 1024 10 --batch 128 --optimizer sgd --momentum 0.9",
}
COMMON = "--lr 1e-3 --weight-decay 0.01".split()


def tessera_train(model: str, mesh: str, size: Size, weights: Path | None) -> list[str]:
    steps, warmup = size.steps[model]
    command = [size.tessera, "bench", "train", *TESSERA_MODELS[model].split(), *COMMON, "--data", "synthetic"]
    command += ["--steps", str(steps), "--warmup", str(warmup), "--json", "-"]
    if mesh:
        command += ["--mesh", mesh]
    return command + (["--weights", str(weights)] if weights else [])


def peer_train(peers: Peers, model: str, strategy: str, size: Size, weights: Path) -> list[str]:
    steps, warmup = size.steps[model]
    program = [str(peers.folder / "train.py"), "--strategy", strategy, *PEER_MODELS[model].split(), *COMMON]
    program += ["--device", "cpu", "--steps", str(steps), "--warmup", str(warmup), "--weights", str(weights)]
    return [str(peers.python), *program] if strategy == "single" else [*torchrun(peers), *program]


def torchrun(peers: Peers) -> list[str]:
    return [str(peers.python.parent / "torchrun"), "--standalone", "--nproc-per-node", str(RANKS)]


def train_runs(peers: Peers, model: str, size: Size, weights: Path | None) -> list[Run]:
    """A peer and its counterpart stand next to each other."""
    rows = [("single", "", "single"), ("mesh1", "dp=1", None), ("dp", f"dp={RANKS}", "ddp"), ("tp", f"tp={RANKS}", "tp")]
    runs = []
    for name, mesh, strategy in rows:
        if peers.python and weights and strategy:
            runs.append(Run(f"{model}/{name}/peer", "train", peer_train(peers, model, strategy, size, weights)))
        runs.append(Run(f"{model}/{name}/tessera", "train", tessera_train(model, mesh, size, weights)))
    return runs


def collective_runs(peers: Peers, size: Size) -> list[Run]:
    tessera = [size.tessera, "bench", "collectives", "--nproc", str(RANKS), "--max-bytes", str(size.max_bytes), "--json", "-"]
    runs = [Run(f"collectives/{name}", "collectives", [*tessera, "--transport", name]) for name in ("thread", "shm")]
    if peers.python:
        program = [str(peers.folder / "collectives.py"), "--max-bytes", str(size.max_bytes)]
        runs.insert(1, Run("collectives/gloo", "collectives", [*torchrun(peers), *program]))
    if peers.mpi:
        runs.append(Run("collectives/mpi", "collectives", [*peers.mpi, str(size.max_bytes)]))
    return runs


def op_runs(peers: Peers, size: Size) -> list[Run]:
    runs = [Run("op/tessera", "op", [size.tessera, "bench", "op", "--repeats", str(7 * size.op_repeats), "--json", "-"])]
    if peers.python:
        program = [str(peers.python), str(peers.folder / "op_overhead.py"), "--repeats", str(size.op_repeats)]
        runs.append(Run("op/peer", "op", program))
    return runs


# --- peers ------------------------------------------------------------------------------------------------------------


def find_peers() -> Peers:
    peers = Peers()
    given = os.environ.get("TESSERA_PEERS")
    folder = Path(given) if given else ROOT.parent / "shared/peers"
    if not (folder / "train.py").is_file():
        peers.absent.append(f"{folder} holds no peers" if given else "no folder of peers (TESSERA_PEERS names one)")
        return peers
    peers.folder = folder.resolve()
    peers.python = peer_python(peers)
    peers.mpi = mpi_program(peers)
    return peers


def peer_python(peers: Peers) -> Path | None:
    venv = Path(os.environ.get("TESSERA_PEERS_VENV", ROOT / "build/peers-venv")).absolute()
    python = venv / "bin/python"
    if not python.exists():
        say(f"making the peers' Python environment in {venv} (PyTorch: up to 5 GB)")
        made = subprocess.run([str(peers.folder / "setup.sh"), str(venv)], stdout=sys.stderr)
        if made.returncode != 0:
            peers.absent.append("PyTorch: the peers' setup.sh failed")
            return None
    if subprocess.run([str(python), "-c", "import torch, numpy, safetensors"], capture_output=True).returncode != 0:
        peers.absent.append(f"PyTorch: {python} cannot import torch, numpy and safetensors")
        return None
    return python


def mpi_program(peers: Peers) -> list[str] | None:
    source = peers.folder / "mpi_collectives.cpp"
    if not (shutil.which("mpicxx") and shutil.which("mpirun") and source.is_file()):
        peers.absent.append("MPI: no mpicxx and mpirun (libopenmpi-dev, openmpi-bin)")
        return None
    program = WORK / "mpi_collectives"
    made = subprocess.run(["mpicxx", "-std=c++17", "-O2", "-o", str(program), str(source)], stderr=sys.stderr)
    if made.returncode != 0:
        peers.absent.append("MPI: mpi_collectives.cpp does not compile")
        return None
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return ["mpirun", "--oversubscribe", *as_root, "-n", str(RANKS), str(program)]


def dump_weights(peers: Peers, model: str) -> Path | None:
    """The same initial weights for everybody."""
    if not peers.python:
        return None
    file = WORK / f"{model}.safetensors"
    flags = PEER_MODELS[model].split(" --batch")[0].split()
    subprocess.run(
        [str(peers.python), str(peers.folder / "workloads.py"), *flags, "--dump-weights", str(file)],
        check=True, stdout=subprocess.DEVNULL, env=environment())
    return file


# --- running ----------------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(port), "PYTHONDONTWRITEBYTECODE": "1"}


def execute(run: Run) -> list[dict]:
    """The JSON lines of one run; none if it failed."""
    try:
        done = subprocess.run(run.command, capture_output=True, text=True, timeout=RUN_LIMIT_S, env=environment())
        problem = f"exit code {done.returncode}" if done.returncode != 0 else ""
        errors = done.stderr
    except subprocess.TimeoutExpired as expired:
        problem, errors = f"no end after {RUN_LIMIT_S} s", (expired.stderr or b"").decode(errors="replace")
    if problem:
        last = [line for line in errors.splitlines() if line.strip()][-3:]
        say(f"{run.key} failed: {problem}: {' | '.join(last)}\n  {' '.join(run.command)}")
        return []
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def measure(size: Size, peers: Peers) -> dict[str, list[list[dict]]]:
    """Key of a run -> the lines of each round. Every other round runs backwards, so that neither side is always first."""
    weights = {model: dump_weights(peers, model) for model in size.steps}
    runs = op_runs(peers, size) + collective_runs(peers, size)
    for model in size.steps:
        runs += train_runs(peers, model, size, weights[model])
    results: dict[str, list[list[dict]]] = {run.key: [] for run in runs}
    for index in range(size.rounds):
        start = time.monotonic()
        for run in runs if index % 2 == 0 else reversed(runs):
            run_start = time.monotonic()
            results[run.key].append(execute(run))
            if size.verbose:
                say(f"{run.key}: {time.monotonic() - run_start:.1f} s")
        say(f"round {index + 1} of {size.rounds}: {time.monotonic() - start:.0f} s")
        (WORK / "results.json").write_text(json.dumps(results) + "\n")  # what there is, should a later round be cut off
    return results


def first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else "unknown"


def cpu_model() -> str:
    try:
        names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else "unknown CPU"


def describe_machine(tessera: str, peers: Peers) -> dict[str, str]:
    changed = first_line(["git", "status", "--porcelain", "--untracked-files=no", "--", "src", "include"]) != "unknown"
    commit = first_line(["git", "rev-parse", "--short", "HEAD"]) + (" with uncommitted changes" if changed else "")
    facts = {"machine": f"{len(os.sched_getaffinity(0))} cores, {cpu_model()}",
             "Tessera": f"{first_line([tessera, '--version'])}, commit {commit}"}
    if peers.python:
        facts["PyTorch"] = first_line([str(peers.python), "-c", "import torch; print(torch.__version__)"])
    if peers.mpi:
        facts["MPI"] = first_line(["mpirun", "--version"])
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds of less, printed only")
    parser.add_argument("--rounds", type=int, help="overrides BENCH_ROUNDS")
    parser.add_argument("--no-write", action="store_true", help="leave docs/performance.md as it is")
    parser.add_argument("--verbose", action="store_true", help="say how long each run takes")
    parser.add_argument("--tessera", type=Path, default=RELEASE, help="the program (default: build/release/bin/tessera)")
    args = parser.parse_args()
    if not args.tessera.exists():
        say(f"{args.tessera} is not there; `make build` makes it")
        return 1
    tessera = str(args.tessera.resolve())
    WORK.mkdir(parents=True, exist_ok=True)

    rounds = args.rounds or (2 if args.quick else int(os.environ.get("BENCH_ROUNDS", "5")))
    size = Size.quick(tessera, rounds) if args.quick else Size.full(tessera, rounds)
    size.verbose = args.verbose
    peers = find_peers()
    for reason in peers.absent:
        say(f"not measured: {reason}")
    results = measure(size, peers)
    command = "make bench" if not args.quick else "make bench BENCH_FLAGS=--quick"
    facts = {**describe_machine(tessera, peers), "command": f"`{command}`, {rounds} rounds"}
    report = bench_report.Report(results, facts, peers.absent)
    print(report.markdown())
    if peers.python and not args.quick and not args.no_write:
        bench_report.write_between_markers(DOCUMENT, report.markdown())
        say(f"wrote {DOCUMENT.relative_to(ROOT)}")
    elif not args.quick and not args.no_write:
        say("docs/performance.md is left as it is: its tables compare with peers")
    for problem in report.problems:
        say(problem)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
