#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks the rules of the source tree that a compiler does not: what may include what, print, and read.

    tools/check_floors.py [ROOT]

Reads tools/floors.txt. Prints one line per violation, `path:line: [rule] what and why`; exits with 1 if there is any.
"""
import argparse
import pathlib
import re
import sys
from dataclasses import dataclass, field

CODE_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
HASH_SUFFIXES = {".py", ".sh", ".cmake"}
SPDX = "SPDX-License-Identifier: Apache-2.0"

INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]')
CONDITIONAL = re.compile(r"^\s*#\s*if")
# What opens a brace that is not a function body.
SCOPE = re.compile(r'^(inline\s+)?namespace\b|^extern\s*(""\s*)?$|^(typedef\s+)?(class|struct|union|enum)\b')


@dataclass(frozen=True)
class TextRule:
    """A pattern that may stand only in some floors or files."""

    name: str
    pattern: re.Pattern
    allowed: tuple  # prefixes of paths
    reason: str
    trees: tuple = ("include/", "src/")


TEXT_RULES = (
    TextRule("environment", re.compile(r"\b(secure_getenv|getenv|setenv|putenv|unsetenv)\s*\("), ("src/launch/",),
             "only launch reads the environment; pass the value as an option"),
    TextRule("printing",
             re.compile(r"\bstd::(cout|cerr|clog)\b|\b(?:std::)?(?:f|v|vf)?printf\s*\(|\bf?puts\s*\(|\bfmt::print(ln)?\b"),
             ("src/base/log", "src/cli/"), "only base/log and cli print; use tessera::base::info or warn"),
    TextRule("hot path", re.compile(r"\bcheck<"), (),
             "every operator passes here, and check() makes its arguments, texts among them, on every call; use if and throw",
             ("src/tensor/dispatch.cpp", "src/tensor/call.cpp", "src/tensor/call_results.cpp")),
    TextRule("seed", re.compile(r"\brandom_device\b|\bsrand\s*\(|\btime\s*\(\s*(nullptr|NULL|0)\s*\)"), (),
             "seeds have names and values; nothing is drawn from the clock or the machine",
             ("include/", "src/", "tests/", "examples/")),
)


@dataclass
class Config:
    heights: dict = field(default_factory=dict)
    plugins: set = field(default_factory=set)
    allowed: dict = field(default_factory=dict)  # (rule, path) -> line in floors.txt


@dataclass(frozen=True)
class Violation:
    path: str
    line: int
    rule: str
    message: str

    def __str__(self):
        return f"{self.path}:{self.line}: [{self.rule}] {self.message}"


def read_config(path):
    config = Config()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] in ("floor", "plugin") and len(words) == 3 and words[2].isdigit():
            config.heights[words[1]] = int(words[2])
            if words[0] == "plugin":
                config.plugins.add(words[1])
        elif allow := re.fullmatch(r"allow (\S+) (\S+): \S.*", line):
            config.allowed[allow.groups()] = number
        else:
            raise SystemExit(f"{path}:{number}: not `floor NAME HEIGHT`, `plugin NAME HEIGHT` or "
                             f"`allow RULE PATH: REASON`: {line}")
    return config


def blank_comments_and_literals(text):
    """The same text with comments gone and literals emptied, line numbers kept."""
    pattern = re.compile(r'R"(\w*)\(.*?\)\1"|//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])+\'',
                         re.DOTALL)

    def blank(match):
        lines = "\n" * match.group(0).count("\n")
        return lines if match.group(0).startswith("/") else '""' + lines

    return pattern.sub(blank, text)


def conditionals_in_bodies(text):
    """Numbers of the lines (from 1) where a preprocessor condition stands inside a function body."""
    found = []
    bodies = []  # one flag per open brace: is it (inside) a function body?
    heading = ""
    directive = False
    for number, line in enumerate(text.splitlines(), 1):
        if directive or line.lstrip().startswith("#"):
            if not directive and CONDITIONAL.match(line) and bodies and bodies[-1]:
                found.append(number)
            directive = line.rstrip().endswith("\\")
            continue
        for character in line:
            if character == "{":
                bodies.append(bool(bodies and bodies[-1]) or is_body(heading))
                heading = ""
            elif character == "}":
                if bodies:
                    bodies.pop()
                heading = ""
            elif character == ";":
                heading = ""
            else:
                heading += character
        heading += " "
    return found


def is_body(heading):
    heading = re.sub(r"\[\[.*?\]\]|\balignas\s*\([^)]*\)", " ", heading).strip()
    while heading.startswith("template"):
        depth = 0
        for index, character in enumerate(heading):
            depth += {"<": 1, ">": -1}.get(character, 0)
            if character == ">" and depth == 0:
                break
        heading = heading[index + 1:].strip()
        heading = re.sub(r"^requires\s+[\w:<>, ]+?(?=\b(class|struct)\b)", "", heading)
    heading = re.sub(r"^((public|private|protected)\s*:\s*)+", "", heading)
    return not SCOPE.match(heading) or heading.endswith(")")


def floor_of(path, config):
    match = re.match(r"(?:include/tessera|src)/([^/]+)/", path)
    return match.group(1) if match and match.group(1) in config.heights else None


def floor_of_include(name, config):
    """The floor that an include names, `umbrella`, or None for a file of the own folder or of somebody else."""
    if name == "tessera/tessera.h":
        return "umbrella"
    match = re.match(r"(?:tessera/)?([^/]+)/", name)
    return match.group(1) if match and match.group(1) in config.heights else None


def check_include(floor, name, config):
    """Why a file of `floor` may not include `name`; None if it may."""
    if "../" in name:
        return "includes start at include/ or src/, never with ../"
    target = floor_of_include(name, config)
    if target is None or target == floor:
        return None
    if target == "umbrella":
        return None if floor == "cli" else "tessera/tessera.h is for programs; include the header that is meant"
    if target in config.plugins:
        return f"{target} is a plug-in, loaded at run time: no floor includes it"
    if config.heights[target] == config.heights[floor]:
        return f"{floor} and {target} are neighbours (height {config.heights[floor]}) and do not include each other"
    if config.heights[target] > config.heights[floor]:
        return f"{floor} (height {config.heights[floor]}) may not include {target} (height {config.heights[target]})"
    return None


def check_code(path, text, config):
    bare = blank_comments_and_literals(text)
    floor = floor_of(path, config)
    if path.endswith((".h", ".cuh")) and "#pragma once" not in text:
        yield Violation(path, 1, "pragma-once", "a header without #pragma once")
    for number, (line, bare_line) in enumerate(zip(text.splitlines(), bare.splitlines()), 1):
        include = INCLUDE.match(line)
        if floor and include:
            reason = check_include(floor, include.group(1), config)
            if reason:
                yield Violation(path, number, "floor", f'"{include.group(1)}": {reason}')
        for rule in TEXT_RULES:
            if path.startswith(rule.trees) and not path.startswith(rule.allowed) and rule.pattern.search(bare_line):
                yield Violation(path, number, rule.name, f"{bare_line.strip()}: {rule.reason}")
    if path.startswith(("include/", "src/")):
        for number in conditionals_in_bodies(bare):
            yield Violation(path, number, "if-in-body",
                            "a preprocessor condition in a function body; make it two files that the build picks from")


def check_file(path, text, config):
    """Violations in one file. `path` is relative to the root, with forward slashes."""
    if SPDX not in "\n".join(text.splitlines()[:2]):
        yield Violation(path, 1, "spdx", f"the first line must hold {SPDX}")
    if pathlib.PurePosixPath(path).suffix in CODE_SUFFIXES:
        yield from check_code(path, text, config)


def source_files(root):
    for top in ("include", "src", "tests", "examples", "cmake", "tools"):
        for path in sorted((root / top).rglob("*")):
            if path.is_file() and (path.suffix in CODE_SUFFIXES | HASH_SUFFIXES or path.name == "CMakeLists.txt"):
                yield path


def check_tree(root):
    config = read_config(root / "tools" / "floors.txt")
    violations = []
    used = set()
    for file in source_files(root):
        path = file.relative_to(root).as_posix()
        for violation in check_file(path, file.read_text(encoding="utf-8"), config):
            if (violation.rule, path) in config.allowed:
                used.add((violation.rule, path))
            else:
                violations.append(violation)
    for rule, path in config.allowed.keys() - used:
        violations.append(Violation("tools/floors.txt", config.allowed[rule, path], "allow",
                                    f"the exception {rule} for {path} is no longer needed: delete it"))
    return violations


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_root = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("root", nargs="?", type=pathlib.Path, default=default_root)
    violations = check_tree(parser.parse_args().root)
    for violation in violations:
        print(violation)
    print(f"check_floors: {len(violations)} violation(s)", file=sys.stderr)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
