#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds small wrong changes, one at a time, and asks the tests to notice each.

    tools/mutants.py [--count 150] [--seed 1] [--floors rules,tensor] [--report FILE] [--json FILE]
    tools/mutants.py --list            # what would be tried, without building

Works on a copy of the tree in build/mutants, so that nothing of yours is changed. Each mutant is built incrementally and
run against its floor's tests, then against those of the other floors; the first failure kills it. A mutant that does not
compile is not counted. tests/mutants.toml names the equivalent ones, with the reason.
"""
import argparse
import collections
import json
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import asdict, dataclass

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "mutants"
KNOWN = ROOT / "tests" / "mutants.toml"

FLOORS = ("base", "comm", "launch", "mesh", "tensor", "rules", "module", "pipeline", "verify", "train")
# Test programs by floor; all of them, a mutant's own floor first, are asked.
PROGRAMS = {
    "base": ("base_test",), "comm": ("comm_test",), "launch": ("launch_test",), "mesh": ("mesh_test",),
    "tensor": ("tensor_test", "dispatch_cost_test"), "rules": ("rules_test",), "module": ("module_test",),
    "pipeline": ("pipeline_test", "step_test", "step_memory_test"), "verify": ("verify_test",), "train": ("train_test",),
}


@dataclass(frozen=True)
class Change:
    """A kind of mistake: where `pattern` stands in a line of code, `replacement` stands instead."""

    kind: str
    pattern: re.Pattern
    replacement: str


def change(kind, pattern, replacement):
    return Change(kind, re.compile(pattern), replacement)


CHANGES = (
    change("comparison", r" < ", " <= "),
    change("comparison", r" <= ", " < "),
    change("comparison", r" > ", " >= "),
    change("comparison", r" >= ", " > "),
    change("comparison", r" == ", " != "),
    change("comparison", r" != ", " == "),
    change("logic", r" && ", " || "),
    change("logic", r" \|\| ", " && "),
    change("logic", r"(?<=[ (])!(?=[a-z])", ""),
    change("logic", r"\breturn true;", "return false;"),
    change("logic", r"\breturn false;", "return true;"),
    change("term", r"(?<=[\w)\]]) \+ 1\b", ""),
    change("term", r"(?<=[\w)\]]) - 1\b", ""),
    change("term", r"(?<=[\w)\]]) \+ (?=[a-z])", " - "),
    change("term", r"(?<=[\w)\]]) - (?=[a-z])", " + "),
    change("term", r"(?<=[\w)\]]) \* (?=[a-z])", " + "),
    change("extremum", r"\bstd::min\b", "std::max"),
    change("extremum", r"\bstd::max\b", "std::min"),
    change("dim", r"\bS\(0\)", "S(1)"),
    change("dim", r"\bS\(1\)", "S(0)"),
    change("dim", r"\bS\(dim\)", "S(dim + 1)"),
    change("dim", r"\bsize\(0\)", "size(1)"),
    change("placement", r"(?<=[{ ])R(?=[,}])", "P"),
    change("placement", r"(?<=[{ ])P(?=[,}])", "R"),
    change("placement", r"\bReplicate\(\)", "Partial()"),
    change("placement", r"\bis_partial\(\)", "is_shard()"),
    change("placement", r"\bis_shard\(\)", "is_partial()"),
    change("reduction", r"\bkSum\b", "kMax"),
    change("reduction", r"\bkMax\b", "kSum"),
    change("size", r"\bglobal_sizes\b", "local.sizes()"),
    change("size", r"\blocal_sizes\(([a-z_.]+),.*?\)", r"Sizes(\1.begin(), \1.end())"),
    change("key", r"^\s*key\.add\w*\(.*\);$", ""),
    change("key", r"^\s*words\.(push_back|insert)\(.*\);$", ""),
    change("call", r"^\s{2,}(?!return|throw|break|continue|delete|using|check)[a-z_]\w*(\.|->)[a-z_]\w*\([^=]*\);$", ""),
    change("constant", r"(?<=[ (,])0(?=[,;)])", "1"),
    change("constant", r"(?<=[ (,])1(?=[,;)])", "2"),
)


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    kind: str
    before: str
    after: str

    @property
    def floor(self):
        return self.file.split("/")[1]

    def name(self):
        return f"{self.file}:{self.line} [{self.kind}] {self.before.strip()}  ->  {self.after.strip() or '(nothing)'}"


def is_code(line):
    text = line.strip()
    return bool(text) and not text.startswith(("//", "#", "*", "namespace", "using ", "template", "static_assert"))


def says_something(line):
    """Texts for people are not what tests of numbers are for."""
    return '"' in line or "fmt::" in line or "check<" in line or "[[nodiscard]]" in line


def mutants_of(path):
    """Every mutant of a source file."""
    found = []
    file = str(path.relative_to(ROOT))
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not is_code(line) or says_something(line):
            continue
        code = line.split(" //")[0].rstrip()
        for kind in CHANGES:
            for match in kind.pattern.finditer(code):
                after = code[:match.start()] + match.expand(kind.replacement) + code[match.end():]
                if after != code:
                    found.append(Mutant(file, number, kind.kind, code, after))
    return found


def choose(floors, count, seed):
    """`count` mutants: floors in turn, and within a floor kinds in turn, so that no kind crowds out another."""
    draw = random.Random(seed)
    by_floor = {}
    for floor in floors:
        by_kind = collections.defaultdict(list)
        for path in sorted((ROOT / "src" / floor).rglob("*.cpp")):
            for mutant in mutants_of(path):
                by_kind[mutant.kind].append(mutant)
        for kind in by_kind.values():
            draw.shuffle(kind)
        by_floor[floor] = by_kind
    chosen, lines = [], set()
    turn = 0
    while len(chosen) < count and any(any(kinds.values()) for kinds in by_floor.values()):
        for floor in floors:
            kinds = [kind for kind in sorted(by_floor[floor]) if by_floor[floor][kind]]
            if not kinds or len(chosen) >= count:
                continue
            mutant = by_floor[floor][kinds[turn % len(kinds)]].pop()
            if (mutant.file, mutant.line) not in lines:
                lines.add((mutant.file, mutant.line))
                chosen.append(mutant)
        turn += 1
    return chosen


def equivalents():
    if not KNOWN.exists():
        return {}
    rows = tomllib.loads(KNOWN.read_text()).get("equivalent", [])
    return {(row["file"], row["before"].strip(), row["after"].strip()): row["reason"] for row in rows}


def shell(command, timeout=None, cwd=None):
    """Exit code and output; 124 after `timeout` seconds."""
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True)
    try:
        output, _ = process.communicate(timeout=timeout)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        import os
        import signal
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return 124, f"no end after {timeout} s"


class Tree:
    """The copy that mutants are made in."""

    def __init__(self, jobs):
        self.source, self.build, self.jobs = WORK / "tree", WORK / "build", jobs

    def prepare(self):
        self.source.mkdir(parents=True, exist_ok=True)
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
        files = [name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]
        for name in files:
            target = self.source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists() or target.read_bytes() != (ROOT / name).read_bytes():
                shutil.copy2(ROOT / name, target)
        for folder in (".venv", ".data"):
            if (ROOT / folder).exists() and not (self.source / folder).exists():
                (self.source / folder).symlink_to(ROOT / folder)
        code, output = shell(["cmake", "-S", str(self.source), "-B", str(self.build), "-G", "Ninja",
                              "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG", "-DTESSERA_DEV=ON"])
        if code != 0:
            sys.exit(output)
        code, output = self.compile(self.programs())
        if code != 0:
            sys.exit(f"mutants: the tree as it is does not compile\n{output[-3000:]}")

    @staticmethod
    def programs():
        return [program for floor in FLOORS for program in PROGRAMS[floor]]

    def compile(self, targets):
        return shell(["ninja", "-C", str(self.build), f"-j{self.jobs}", *targets], timeout=1200)

    def apply(self, mutant, back=False):
        path = self.source / mutant.file
        lines = path.read_text().splitlines(keepends=True)
        original = (ROOT / mutant.file).read_text().splitlines(keepends=True)
        lines[mutant.line - 1] = original[mutant.line - 1] if back else mutant.after + "\n"
        path.write_text("".join(lines))


def order_of(floor):
    """The floor's own tests, then the others from the ground up."""
    own = list(PROGRAMS[floor])
    return own + [program for program in Tree.programs() if program not in own]


def try_tests(tree, floor, timeout):
    """The first test program that fails and its first failed test, or nothing."""
    for program in order_of(floor):
        code, output = shell([str(tree.build / "bin" / program), "--gtest_brief=1"], timeout=timeout, cwd=tree.build)
        if code != 0:
            failed = re.search(r"\[  FAILED  \] (\S+)", output)
            return f"{program}: {failed.group(1).rstrip(',') if failed else f'exit {code}'}"
    return None


def judge(tree, mutant, timeout):
    """(verdict, by what): killed, survived, or does not compile."""
    tree.apply(mutant)
    try:
        # Warnings are errors: a mutant that only leaves a name unused would never be tried.
        code, output = tree.compile(order_of(mutant.floor))
        if code != 0:
            return "does not compile", output.strip().splitlines()[-1] if output.strip() else ""
        killer = try_tests(tree, mutant.floor, timeout)
        return ("killed", killer) if killer else ("survived", "")
    finally:
        tree.apply(mutant, back=True)


def report_text(results, seconds):
    counts = collections.Counter(result["verdict"] for result in results)
    judged = counts["killed"] + counts["survived"]
    share = 100 * counts["killed"] / judged if judged else 0
    lines = [f"{judged} mutants judged in {seconds / 60:.0f} min: {counts['killed']} killed ({share:.0f} of 100), "
             f"{counts['survived']} survived, {counts['equivalent']} equivalent, "
             f"{counts['does not compile']} did not compile", ""]
    for result in results:
        if result["verdict"] == "survived":
            lines.append(f"survived: {result['name']}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=150, help="mutants to try")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--floors", default=",".join(FLOORS), help="comma-separated; default: all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=int, default=300, help="seconds for one test program; a hang is a kill")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--json", help="one line per mutant")
    parser.add_argument("--report", help="the summary and the survivors, as text")
    flags = parser.parse_args()

    floors = flags.floors.split(",")
    unknown = [floor for floor in floors if floor not in FLOORS]
    if unknown:
        parser.error(f"--floors {unknown[0]}: allowed are {', '.join(FLOORS)}")
    chosen = choose(floors, flags.count, flags.seed)
    if flags.list:
        print("\n".join(mutant.name() for mutant in chosen))
        return 0

    known = equivalents()
    tree = Tree(flags.jobs)
    print("mutants: building the tree as it is", file=sys.stderr)
    tree.prepare()
    start = time.monotonic()
    results = []
    for index, mutant in enumerate(chosen, 1):
        reason = known.get((mutant.file, mutant.before.strip(), mutant.after.strip()))
        verdict, by = ("equivalent", reason) if reason else judge(tree, mutant, flags.timeout)
        results.append({**asdict(mutant), "name": mutant.name(), "verdict": verdict, "by": by})
        print(f"{index}/{len(chosen)} {verdict:16} {mutant.name()}  {by}", file=sys.stderr, flush=True)
        if flags.json:
            with open(flags.json, "a", encoding="utf-8") as file:
                file.write(json.dumps(results[-1]) + "\n")
    text = report_text(results, time.monotonic() - start)
    print(text)
    if flags.report:
        pathlib.Path(flags.report).write_text(text + "\n")
    return 1 if any(result["verdict"] == "survived" for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
