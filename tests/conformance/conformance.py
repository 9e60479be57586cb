#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs PyTorch's own operator database through mesh tensors and says which operators are equal, and which shard.

    conformance.py --tessera build/release/bin/tessera --library build/release/lib/libtessera.so [--match REGEX]

Needs a Python that can import torch (of the LibTorch that Tessera was built with), numpy, expecttest and hypothesis:
--python, else the variable TESSERA_PYTHON_TORCH. Without one it skips (exit code 77). Each operator runs on several ranks
that check each other; a crash or a hang costs that operator alone. Exit code 1 if any operator is wrong.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import report

HERE = pathlib.Path(__file__).resolve().parent
SKIPPED = 77
SILENCE_S = 90  # an operator's longest silence before it counts as a hang


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tessera", required=True, help="the program, for `tessera run`")
    parser.add_argument("--library", required=True, help="libtessera.so")
    parser.add_argument("--python", default="", help="default: the variable TESSERA_PYTHON_TORCH")
    parser.add_argument("--mesh", action="append", help="default: dp=2, dp=3 and dp=2,tp=2")
    parser.add_argument("--match", default="", help="only operators whose name matches")
    parser.add_argument("--dtype", default="", help="only float64 or float32")
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--placements", type=int, default=10)
    parser.add_argument("--results", help="folder that keeps the records; what stands there is not run again")
    parser.add_argument("--table", help="Markdown file whose generated section is rewritten")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further operator after this time")
    return parser.parse_args()


def python_or_skip(arguments) -> str:
    python = arguments.python or os.environ.get("TESSERA_PYTHON_TORCH", "")
    if not python:
        print("SKIPPED: no Python with torch; set TESSERA_PYTHON_TORCH to one that can import torch, numpy, expecttest and "
              "hypothesis")
        sys.exit(SKIPPED)
    probe = subprocess.run([python, "-c", "import torch, numpy, expecttest, hypothesis"], capture_output=True,
                           text=True)
    if probe.returncode:
        print(f"SKIPPED: {python}: {probe.stderr.strip().splitlines()[-1]}")
        sys.exit(SKIPPED)
    return python


def list_operators(python: str) -> dict:
    """Names, and what DTensor of the same torch has rules for."""
    result = subprocess.run([python, str(HERE / "list_operators.py")], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"conformance: the operator database cannot be read: {result.stderr.strip().splitlines()[-1]}")
    return json.loads(result.stdout.splitlines()[-1])


def size_of(mesh: str) -> int:
    size = 1
    for axis in mesh.split(","):
        size *= int(axis.split("=")[1])
    return size


class Job:
    """Operators on one mesh, started again behind each that brings its ranks down."""

    def __init__(self, arguments, python: str, mesh: str, folder: pathlib.Path, deadline: float):
        self.arguments = arguments
        self.python = python
        self.mesh = mesh
        self.out = folder / mesh.replace(",", "_").replace("=", "")
        self.deadline = deadline

    def lines(self, rank: int = 0) -> list:
        path = pathlib.Path(f"{self.out}.{rank}")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def unfinished(self):
        """The operator that was started last and left no record."""
        lines = self.lines()
        return lines[-1] if lines and "started" in lines[-1] else None

    def run(self, names: list):
        done = {line["operator"] for line in self.lines() if "operator" in line}
        names = [name for name in names if name not in done]
        while names and time.monotonic() < self.deadline:
            ending = self.run_once(names)
            if unfinished := self.unfinished():
                self.record_death(unfinished, ending)
            elif ending == "exit code 0" or time.monotonic() >= self.deadline:
                return
            done = {line["operator"] for line in self.lines() if "operator" in line}
            remaining = [name for name in names if name not in done]
            if len(remaining) == len(names):
                sys.exit(f"conformance: the ranks of mesh {self.mesh} do not start: {ending}")
            names = remaining

    def record_death(self, unfinished: dict, ending: str):
        record = {"operator": unfinished["started"], "dtype": unfinished["dtype"], "died": True,
                  "counts": {"equal": 0, "refused": 0, "error": 1, "wrong": 0}, "sharded_calls": 0,
                  "sharded_calls_without_fallback": 0, "calls_that_stay_sharded": 0, "aten_sharded": [], "aten_fallbacks": {},
                  "examples": [{"outcome": "error", "what": "the ranks died", "text": ending}]}
        with open(f"{self.out}.0", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def run_once(self, names: list) -> str:
        """How it ended, in words."""
        list_file = pathlib.Path(f"{self.out}.names")
        list_file.write_text(json.dumps(names))
        command = [self.arguments.tessera, "run", "--nproc", str(size_of(self.mesh)), "--", self.python,
                   str(HERE / "rank.py"), "--library", self.arguments.library, "--mesh", self.mesh, "--operators",
                   str(list_file), "--out", str(self.out), "--samples", str(self.arguments.samples), "--placements",
                   str(self.arguments.placements), "--dtype", self.arguments.dtype]
        with tempfile.TemporaryFile("w+") as output:
            job = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                                   env={**os.environ, "TESSERA_TIMEOUT": "30", "PYTHONPATH": str(HERE),
                                        "PYTHONDONTWRITEBYTECODE": "1"})
            ending = self.watch(job)
            output.seek(0)
            said = [line for line in output.read().splitlines() if line.strip()]
        return ending + (f": {said[-1][:200]}" if said and ending != "exit code 0" else "")

    def watch(self, job) -> str:
        size, since = -1, time.monotonic()
        path = pathlib.Path(f"{self.out}.0")
        while job.poll() is None:
            time.sleep(0.2)
            now = path.stat().st_size if path.exists() else 0
            if now != size:
                size, since = now, time.monotonic()
            if time.monotonic() - since > SILENCE_S or time.monotonic() > self.deadline:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
                return f"no sign of life for {SILENCE_S} s"
        return f"exit code {job.returncode}"


def main():
    arguments = parse_arguments()
    python = python_or_skip(arguments)
    database = list_operators(python)
    names = [name for name in database["operators"] if re.search(arguments.match, name)]
    if not names:
        sys.exit(f"conformance: --match {arguments.match} matches none of {len(database['operators'])} operators")
    deadline = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(arguments.results or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [Job(arguments, python, mesh, folder, deadline)
                for mesh in arguments.mesh or ["dp=2", "dp=3", "dp=2,tp=2"]]
        for job in jobs:
            job.run(names)
        results = report.Results(names, database, {job.mesh: [job.lines(rank) for rank in range(size_of(job.mesh))]
                                                   for job in jobs})
    results.print()
    if arguments.table:
        results.write_table(pathlib.Path(arguments.table))
    sys.exit(1 if results.wrong() else 0)


if __name__ == "__main__":
    main()
