# SPDX-License-Identifier: Apache-2.0
"""The output that a document quotes is what the program prints.

    doc_test.py TESSERA DOCUMENT [--update]

Every `sh` block is run by bash in one empty folder, in the order of the document, with TESSERA's folder first on the
PATH. Where a `text` block follows, it must be the output. --update writes the outputs into the document instead.
"""

import difflib
import os
import pathlib
import re
import subprocess
import sys
import tempfile

BLOCK = re.compile(r"```sh\n(?P<commands>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)


def run(commands: str, tessera: pathlib.Path, folder: str) -> str:
    path = f"{tessera.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", commands], cwd=folder, env={**os.environ, "PATH": path},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    return done.stdout


def with_outputs(document: str, tessera: pathlib.Path) -> str:
    with tempfile.TemporaryDirectory() as folder:

        def replace(block: re.Match) -> str:
            output = run(block["commands"], tessera, folder)
            if block["output"] is None:
                return block[0]
            return f"```sh\n{block['commands']}```\n\n```text\n{output}```\n"

        return BLOCK.sub(replace, document)


def main() -> int:
    tessera, file = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2])
    quoted = file.read_text(encoding="utf-8")
    if not any(block["output"] is not None for block in BLOCK.finditer(quoted)):
        print(f"{file}: quotes no output")
        return 1
    printed = with_outputs(quoted, tessera)
    if "--update" in sys.argv[3:]:
        file.write_text(printed, encoding="utf-8")
        return 0
    difference = difflib.unified_diff(quoted.splitlines(True), printed.splitlines(True), str(file), "printed now")
    sys.stdout.writelines(difference)
    return int(printed != quoted)


if __name__ == "__main__":
    sys.exit(main())
