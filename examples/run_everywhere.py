# SPDX-License-Identifier: Apache-2.0
"""Runs the example alone, on local ranks in both ways, and under torchrun, and compares the losses it prints.

    run_everywhere.py TRAIN_MLP TESSERA TORCH_ROOT

torchrun is torch's own launcher; where the interpreter cannot import torch it is left out, with a message.
"""

import os
import pathlib
import re
import subprocess
import sys


def losses(command: list[str], environment: dict[str, str] | None = None) -> list[float]:
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {result.returncode}\n{result.stderr}")
    return [float(value) for value in re.findall(r"loss ([0-9.e-]+)", result.stdout)]


def torchrun_environment(torch_root: pathlib.Path) -> dict[str, str] | None:
    """The environment in which this interpreter imports the torch that the example is linked to, or nothing."""
    environment = dict(os.environ, PYTHONPATH=str(torch_root.parent))
    probe = [sys.executable, "-c", "import torch.distributed.run"]
    return environment if subprocess.run(probe, capture_output=True, env=environment).returncode == 0 else None


def main() -> None:
    program, tessera, torch_root = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    alone = losses([program])
    runs = {
        "tessera run --nproc 4": losses([tessera, "run", "--nproc", "4", "--", program]),
        "--nproc 2": losses([program, "--nproc", "2"]),
    }
    environment = torchrun_environment(torch_root)
    if environment is None:
        print("torchrun: left out, this interpreter cannot import torch")
    else:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
        runs["torchrun"] = losses(launcher + [program], environment)
    if len(alone) != 5 or alone[-1] > 0.7 * alone[0]:
        raise SystemExit(f"alone: the loss did not fall: {alone}")
    for name, found in runs.items():
        # float32 sums in another order, amplified by a hundred steps of AdamW.
        close = len(found) == len(alone) and all(abs(a - b) <= 1e-2 * a + 1e-3 for a, b in zip(alone, found))
        print(f"{name}: {found}")
        if not close:
            raise SystemExit(f"{name} differs from alone: {found} against {alone}")


if __name__ == "__main__":
    main()
