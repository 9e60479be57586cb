# SPDX-License-Identifier: Apache-2.0
"""From the JSON lines of bench.py's rounds to Markdown tables.

Absolute times differ from machine to machine and from hour to hour; what is claimed are ratios of runs that stood next
to each other in one round, as smallest, median and largest over the rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median

BEGIN = "<!-- measured: written by tools/bench.py from here on -->"
END = "<!-- measured: end -->"
LOSS_TOLERANCE = 1e-4  # float32, another order of additions, tens of steps
KIB, MIB = 1 << 10, 1 << 20
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
SHOWN_BYTES = (4, 8, 1 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 1 * MIB, 4 * MIB, 16 * MIB, 64 * MIB)
PLANS = {"single": ("one device", "one process"), "dp": ("dp=2", "DDP, 2 ranks"), "tp": ("tp=2", "DTensor TP, 2 ranks")}


@dataclass
class Ratio:
    """Of per-round quotients."""

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        return f"{short(self.middle)} ({short(self.low)} to {short(self.high)})"


def short(value: float) -> str:
    """About three significant digits, never an exponent."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def size_name(size: int) -> str:
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def ratio(over: list, under: list) -> Ratio | None:
    """Round by round; None stands for a run that failed."""
    quotients = [a / b for a, b in zip(over, under) if a is not None and b]
    return Ratio(min(quotients), median(quotients), max(quotients)) if quotients else None


def middle(values: list) -> float | None:
    there = [value for value in values if value is not None]
    return median(there) if there else None


def shown(value) -> str:
    return "-" if value is None else str(value) if isinstance(value, Ratio) else short(value)


class Report:
    def __init__(self, results: dict, facts: dict[str, str], absent: list[str]) -> None:
        self.results = results
        self.facts = facts
        self.absent = absent
        self.problems = [
            f"{key}: {rounds.count([])} of {len(rounds)} runs failed"
            for key, rounds in results.items()
            if [] in rounds and (not self.is_peer(key) or all(not lines for lines in rounds))
        ]
        self.goals: list[list[str]] = []
        self.sections = [self.training(), self.collectives(), self.operations()]

    @staticmethod
    def is_peer(key: str) -> bool:
        return key.endswith("/peer") or key in ("collectives/gloo", "collectives/mpi")

    def markdown(self) -> str:
        lines = [f"- {name}: {value}" for name, value in self.facts.items()]
        lines += [f"- not measured: {reason}" for reason in self.absent]
        goals = ""
        if self.goals:
            goals = "### Goals\n\n" + table(["goal", "measured", "holds"], self.goals) + "\n\n"
        return "\n".join(lines) + "\n\n" + goals + "\n\n".join(self.sections)

    def goal(self, text: str, measured, holds: bool) -> None:
        self.goals.append([text, shown(measured) if not isinstance(measured, str) else measured, "yes" if holds else "**no**"])

    # --- training steps -----------------------------------------------------------------------------------------------

    def step_ms(self, key: str) -> list:
        """Median step of each round."""
        return [self.summary(lines).get("ms_median") for lines in self.results.get(key, [])]

    @staticmethod
    def summary(lines: list[dict]) -> dict:
        """Tessera's last line, or the only line of train.py in the same words."""
        if not lines:
            return {}
        last = lines[-1]
        return last if "summary" in last else {"ms_median": last["step_ms_median"], "losses": last["losses"]}

    def deviation(self, key: str, reference: str) -> float | None:
        """Largest relative one of any loss, in any round."""
        worst = None
        for mine, theirs in zip(self.results.get(key, []), self.results.get(reference, [])):
            pairs = list(zip(self.summary(mine).get("losses", []), self.summary(theirs).get("losses", [])))
            for a, b in pairs:
                worst = max(worst or 0.0, abs(a - b) / abs(b))
        if worst is not None and not worst <= LOSS_TOLERANCE:
            self.problems.append(f"{key}: losses deviate by {worst:.1e} from those of {reference} ({LOSS_TOLERANCE:.0e} allowed)")
        return worst

    def training(self) -> str:
        rows = []
        for model in ("gpt", "mlp"):
            single = f"{model}/single/tessera"
            for name, (plan, strategy) in PLANS.items():
                key, peer = f"{model}/{name}/tessera", f"{model}/{name}/peer"
                has_peer = peer in self.results
                reference = peer if has_peer else single
                quotient = ratio(self.step_ms(key), self.step_ms(peer)) if has_peer else None
                rows.append(self.training_row(model, plan, key, strategy if has_peer else "-", peer, quotient, reference))
                if quotient and name != "single":
                    self.goal(f"{model}, {plan}: step / {strategy} below 1", quotient, quotient.middle < 1)
            key = f"{model}/mesh1/tessera"
            quotient = ratio(self.step_ms(key), self.step_ms(single))
            rows.append(self.training_row(model, "mesh of one rank", key, "Tessera, one device", single, quotient, single))
            if quotient:
                self.goal(f"{model}: mesh of one rank / one device at most 1.02", quotient, quotient.middle <= 1.02)
        header = ["model", "Tessera", "ms", "beside", "ms", "ratio (smallest to largest)", "largest deviation of a loss"]
        return "### Training steps\n\n" + table(header, rows)

    def training_row(self, model, plan, key, beside, other, quotient, reference) -> list[str]:
        deviation = self.deviation(key, reference)
        return [model, plan, shown(middle(self.step_ms(key))), beside, shown(middle(self.step_ms(other)) if beside != "-" else None),
                shown(quotient), "-" if deviation is None else f"{deviation:.1e}"]

    # --- collectives --------------------------------------------------------------------------------------------------

    def collective_us(self, transport: str, collective: str, size: int) -> list:
        """Median time of each round."""
        values = []
        for lines in self.results.get(f"collectives/{transport}", []):
            found = [line["us_median"] for line in lines
                     if line.get("collective", line.get("operation")) == collective and line["bytes"] == size]
            values.append(found[0] if found else None)
        return values

    def measured_sizes(self, collective: str) -> list[int]:
        lines = next((lines for lines in self.results.get("collectives/shm", []) if lines), [])
        return [line["bytes"] for line in lines if line["collective"] == collective]

    def collectives(self) -> str:
        rows = []
        for collective in COLLECTIVES:
            for size in self.measured_sizes(collective):
                times = {name: self.collective_us(name, collective, size) for name in ("thread", "shm", "gloo", "mpi")}
                if size in SHOWN_BYTES:
                    rows.append([collective, size_name(size), *(shown(middle(values)) for values in times.values()),
                                 shown(ratio(times["gloo"], times["shm"])), shown(ratio(times["mpi"], times["shm"]))])
        self.collective_goals("gloo", "Gloo", 4, 64 * KIB, 10)
        self.collective_goals("gloo", "Gloo", MIB, 64 * MIB, 4)
        self.collective_goals("mpi", "Open MPI", MIB, 64 * MIB, 1)
        header = ["collective", "bytes", "threads", "shm", "Gloo", "Open MPI", "Gloo / shm", "Open MPI / shm"]
        return "### Collectives, µs on 2 ranks\n\n" + table(header, rows)

    def collective_goals(self, peer: str, name: str, low: int, high: int, wanted: float) -> None:
        """The size at which the goal is missed the most, or held the least."""
        for transport, words in (("shm", "processes"), ("thread", "threads")):
            worst = None
            for size in self.measured_sizes("all_reduce"):
                quotient = ratio(self.collective_us(peer, "all_reduce", size), self.collective_us(transport, "all_reduce", size))
                if low <= size <= high and quotient and (worst is None or quotient.middle < worst[0].middle):
                    worst = (quotient, size)
            if worst:
                self.goal(f"all-reduce of {size_name(low)} to {size_name(high)}, {words}: {name} / Tessera at least {wanted}",
                          f"{worst[0]} at {size_name(worst[1])}", worst[0].middle >= wanted)

    # --- operators ----------------------------------------------------------------------------------------------------

    def operation_values(self, key: str, name: str, **wanted) -> list:
        values = []
        for lines in self.results.get(key, []):
            found = [line[name] for line in lines if all(line[word] == value for word, value in wanted.items())]
            values.append(found[0] if found else None)
        return values

    def operations(self) -> str:
        rows, added_by_name = [], []
        for operation in ("add_4", "mm_16x16", "chain_1000_adds_4"):
            for placement, kind in (("replicate", "dtensor_replicate"), ("shard(0)", "dtensor_shard")):
                for grad in (False, True):
                    mine = {name: middle(self.operation_values("op/tessera", name, operation=operation, placement=placement,
                                                               grad=grad)) for name in ("plain_ns", "mesh_ns", "added_ns")}
                    tensor = self.operation_values("op/peer", "ns_median", operation=operation, kind="tensor", grad=grad)
                    dtensor = self.operation_values("op/peer", "ns_median", operation=operation, kind=kind, grad=grad)
                    added = [a - b for a, b in zip(dtensor, tensor) if a is not None and b is not None]
                    rows.append([operation, placement, "yes" if grad else "no", *(shown(value) for value in mine.values()),
                                 shown(middle(tensor)), shown(middle(dtensor)), shown(middle(added))])
                    if mine["added_ns"] is not None:
                        added_by_name.append((mine["added_ns"], f"{operation}, {placement}, {'with' if grad else 'no'} gradient"))
        if added_by_name:
            worst, where = max(added_by_name)
            self.goal("a mesh tensor adds at most 500 ns to an operation", f"{short(worst)} ns at most ({where})", worst <= 500)
        header = ["operation", "placement", "gradient", "plain ns", "mesh ns", "added ns", "Python tensor ns", "DTensor ns",
                  "DTensor adds ns"]
        return "### Operations on a mesh of one rank, ns\n\n" + table(header, rows)


def write_between_markers(document: Path, text: str) -> None:
    before, rest = document.read_text().split(BEGIN)
    after = rest.split(END)[1]
    document.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
