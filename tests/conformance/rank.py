# SPDX-License-Identifier: Apache-2.0
"""One rank of the conformance run: every operator of a list on mesh tensors, compared with plain ones.

All ranks run the same program. After each evaluation they exchange what became of it, so that they agree about what is
run next; a rank that failed alone meets its peers there in an error, and the whole job ends with EXIT_DISAGREED for the
driver to start again behind this operator.
"""

import argparse
import contextlib
import json
import os
import re
import sys

import torch

EXIT_DISAGREED = 7

# What Tessera may say instead of computing; anything else that is raised is a mistake.
REFUSALS = re.compile("|".join((
    r"draws random numbers",
    r"this is a mesh tensor: its data is spread over ranks",
    r"writes into a view along a sharded dim",
    r"is not supported on a mesh tensor",
    r"has no meaning for a (mesh )?tensor",
    r"on a mesh tensor: .*; use ",
)))

OK, REFUSED, ERROR, WRONG = range(4)
WORDS = ("equal", "refused", "error", "wrong")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", required=True)
    parser.add_argument("--mesh", required=True)
    parser.add_argument("--operators", required=True, help="JSON file with a list of names")
    parser.add_argument("--out", required=True)
    parser.add_argument("--dtype", default="")
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--placements", type=int, default=10)
    return parser.parse_args()


ARGUMENTS = parse_arguments()
torch.ops.load_library(ARGUMENTS.library)
torch.set_num_threads(1)

from operators import UNDEFINED, database, dtypes_of, samples_of, tensors_in  # noqa: E402
from placements import on_axes, spread  # noqa: E402

tessera = torch.ops.tessera


def differentiable(outputs) -> list:
    return [t for t in outputs if t.requires_grad and t.is_floating_point()]


def cotangent(output):
    """Not all ones, and the same on every rank."""
    ramp = torch.arange(output.numel(), dtype=torch.float64).mul(0.37).add(0.2).sin().add(1.1)
    return ramp.reshape(output.shape).to(output.dtype)


def gradients(outputs, inputs, mesh=None, axes=0) -> list:
    wanted = [t for t in inputs if t.requires_grad]
    outputs = differentiable(outputs)
    if not wanted or not outputs:
        return []
    weights = [cotangent(output) for output in outputs]
    if mesh is not None:
        weights = [tessera.distribute(weight, mesh, ["replicate"] * axes) for weight in weights]
    return list(torch.autograd.grad(outputs, wanted, weights, allow_unused=True))


def copies(tensors) -> list:
    return [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]


class Reference:
    """What plain tensors give, forward and backward, in place too where the operator has that variant."""

    def __init__(self, sample):
        inputs = copies(sample.plain)
        result = sample.call(inputs)
        self.outputs = tensors_in([sample.finish(result)])
        try:
            self.gradients = gradients(self.outputs, inputs)
        except Exception:  # noqa: BLE001: some samples have no backward even on plain tensors
            self.gradients = None
        self.outputs = [output.detach() for output in self.outputs]
        self.inputs = inputs
        self.values = plain_values(result)

    def same_as(self, other) -> bool:
        return all(equal(a, b) for a, b in zip(self.outputs, other.outputs)) and self.values == other.values


def plain_values(result):
    if isinstance(result, torch.Tensor):
        return None
    if isinstance(result, (list, tuple)):
        return [plain_values(item) for item in result]
    return repr(result)


def tolerance(dtype) -> float:
    """Sums of at most some hundred terms of size about 1 to 10, in another order, and differences of such sums (`cov` of
    two observations loses three digits to them)."""
    return {torch.float64: 1e-8, torch.complex128: 1e-8, torch.float32: 2e-4, torch.complex64: 2e-4,
            torch.float16: 1e-2, torch.bfloat16: 5e-2}.get(dtype, 0.0)


def equal(expected, found, coarsest: float = 0.0) -> bool:
    """`coarsest` is the tolerance of the least precise input: a result is not more precise than that."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if expected.layout != torch.strided or found.layout != torch.strided:
        return expected.layout == found.layout and equal(expected.to_dense(), found.to_dense(), coarsest)
    limit = tolerance(expected.dtype)
    if limit == 0.0:
        return torch.equal(expected, found)
    limit = max(limit, coarsest)
    # Where the values reach 1e4 an absolute tolerance says nothing: a part of the largest value counts.
    finite = torch.where(torch.isfinite(expected), expected, torch.zeros_like(expected))
    scale = max(1.0, finite.abs().max().item() if finite.numel() else 1.0)
    return torch.allclose(expected, found, rtol=limit, atol=limit * scale, equal_nan=True)


def describe_difference(expected, found) -> str:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return f"{list(found.shape)} {found.dtype} instead of {list(expected.shape)} {expected.dtype}"
    if not expected.is_floating_point() or expected.layout != torch.strided:
        return f"other values: {str(found.flatten()[:4])} instead of {str(expected.flatten()[:4])}"
    return f"differs by {(expected - found).abs().max().item():.3g}"


def compare(expected, found, what: str, coarsest: float) -> str:
    """Empty if equal. `found` may be mesh tensors."""
    if len(expected) != len(found):
        return f"{len(found)} {what}s instead of {len(expected)}"
    for index, (a, b) in enumerate(zip(expected, found)):
        if (a is None) != (b is None):
            return f"{what} {index} is {'missing' if b is None else 'there'}"
        if a is None:
            continue
        value = tessera.full(b).detach() if b.layout == torch.strided else b.detach()
        if not equal(a.detach(), value, coarsest):
            return f"{what} {index} {describe_difference(a.detach(), value)}"
    return ""


class Evaluation:
    """One call on mesh tensors. `outcome` is one of WORDS' indices."""

    def __init__(self, mesh, axes: int):
        self.mesh = mesh
        self.axes = axes

    def run(self, sample, reference, words, undefined: bool):
        fallbacks = sum(self.mesh.replicated_fallbacks().values())
        self.without_fallback = False
        self.kept_shards = False
        try:
            inputs = [spread(t, self.mesh, word) for t, word in zip(sample.plain, words)]
            result = sample.call(inputs)
            outputs = tensors_in([sample.finish(result)])
            self.without_fallback = sum(self.mesh.replicated_fallbacks().values()) == fallbacks
            self.kept_shards = any(stays_spread(output) for output in outputs)
            found = []
            if reference.gradients is not None:
                found = gradients(outputs, inputs, self.mesh, self.axes)
            if undefined:
                outputs = [torch.zeros(o.shape, dtype=o.dtype) for o in outputs]
                expected = [torch.zeros_like(o) for o in reference.outputs]
            else:
                expected = reference.outputs
            coarsest = coarsest_of(sample)
            difference = (compare(expected, outputs, "output", coarsest)
                          or compare(reference.gradients or [], found, "gradient", coarsest)
                          or compare(reference.inputs, inputs, "input after the call,", coarsest))
            if not difference and plain_values(result) != reference.values:
                difference = f"{plain_values(result)} instead of {reference.values}"
            return (WRONG, difference) if difference else (OK, "")
        except Exception as error:  # noqa: BLE001: every kind of exception is a result here
            return classify(error)

    def run_in_place(self, sample, expected, words):
        try:
            inputs = [spread(t.detach(), self.mesh, word) for t, word in zip(sample.plain, words)]
            result = sample.call(inputs, sample.op.inplace_variant)
            difference = compare(expected, tensors_in([result]), "in-place output", coarsest_of(sample))
            return (WRONG, difference) if difference else (OK, "")
        except Exception as error:  # noqa: BLE001
            return classify(error)


def coarsest_of(sample) -> float:
    return max((tolerance(t.dtype) for t in sample.plain), default=0.0)


def stays_spread(output) -> bool:
    return tessera.is_mesh_tensor(output) and set(tessera.placements(output)) != {"replicate"}


def classify(error):
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return (REFUSED if REFUSALS.search(text) else ERROR), text


def in_place_reference(sample):
    """None where the operator has no in-place variant or cannot be called so."""
    if sample.op.inplace_variant is None or sample.broadcasts:
        return None
    try:
        with torch.no_grad():
            return tensors_in([sample.call([t.detach().clone() for t in sample.plain], sample.op.inplace_variant)])
    except Exception:  # noqa: BLE001: a broadcasting or promoting sample
        return None


@contextlib.contextmanager
def other_seeds():
    """The database seeds its random operators itself; here every seed is another one."""
    seed = torch.manual_seed
    torch.manual_seed = lambda number: seed(int(number) + 1)
    seed(4321)
    try:
        yield
    finally:
        torch.manual_seed = seed


class Disagreement(Exception):
    pass


class Ranks:
    def __init__(self, axes: str):
        self.ranks = torch.classes.tessera.Ranks()
        self.axes = axes
        self.num_axes = axes.count("=")

    def mesh(self):
        return torch.classes.tessera.Mesh(self.ranks, self.axes)

    def worst(self, mesh, outcome: int) -> int:
        """The worst outcome of all ranks. Seven elements: no operator's own collective looks like it."""
        mine = torch.full((7,), outcome, dtype=torch.int8)
        words = ["partial(max)"] * self.num_axes
        try:
            return int(tessera.full(tessera.from_local(mine, mesh, words, [7]))[0])
        except Exception as error:
            raise Disagreement(" ".join(str(error).split())[:200]) from error


class Record:
    """What became of one operator with one dtype on one mesh."""

    def __init__(self, name, dtype):
        self.data = {"operator": name, "dtype": str(dtype).removeprefix("torch."), "counts": dict.fromkeys(WORDS, 0),
                     "sharded_calls": 0, "sharded_calls_without_fallback": 0, "calls_that_stay_sharded": 0,
                     "examples": []}

    def add(self, outcome, text, what):
        self.data["counts"][WORDS[outcome]] += 1
        examples = self.data["examples"]
        if outcome != OK and len([e for e in examples if e["outcome"] == WORDS[outcome]]) < 3:
            examples.append({"outcome": WORDS[outcome], "what": what, "text": text})


def run_operator(name, op, dtype, ranks, mesh, record):
    samples = samples_of(op, dtype, ARGUMENTS.samples)
    record.data["samples"] = len(samples)
    evaluation = Evaluation(mesh, ranks.num_axes)
    for index, sample in enumerate(samples):
        try:
            reference = Reference(sample)
            with other_seeds():
                again = Reference(sample)
            if name not in UNDEFINED and not reference.same_as(again):
                record.data["random"] = True
                return
        except Exception as error:  # noqa: BLE001: not for this suite to judge
            record.data["without_reference"] = str(error)[:100]
            continue
        in_place = in_place_reference(sample)
        for words in on_axes(sample.plain, f"{name}{index}", ranks.num_axes, ARGUMENTS.placements):
            what = f"sample {index} {[list(t.shape) for t in sample.plain]} as {words}"
            runs = [lambda: evaluation.run(sample, reference, words, name in UNDEFINED)]
            if in_place is not None:
                runs.append(lambda: evaluation.run_in_place(sample, in_place, words))
            for number, run in enumerate(runs):
                outcome, text = run()
                try:
                    worst = ranks.worst(mesh, outcome)
                except Disagreement as error:
                    record.add(ERROR, f"{text or 'this rank succeeded'} | {error}", what)
                    raise
                record.add(worst, text if outcome == worst else "on another rank", what + (" in place" if number else ""))
            if any(word.startswith("shard") for tensor in words for word in tensor):
                record.data["sharded_calls"] += 1
                record.data["sharded_calls_without_fallback"] += evaluation.without_fallback
                record.data["calls_that_stay_sharded"] += evaluation.without_fallback and evaluation.kept_shards


def main():
    names = json.loads(open(ARGUMENTS.operators).read())
    operators = database()
    ranks = Ranks(ARGUMENTS.mesh)
    out = open(f"{ARGUMENTS.out}.{ranks.ranks.rank()}", "a", buffering=1)
    for name in names:
        op = operators[name]
        for dtype in dtypes_of(op):
            if ARGUMENTS.dtype and dtype.is_floating_point and str(dtype) != "torch." + ARGUMENTS.dtype:
                continue
            record = Record(name, dtype)
            out.write(json.dumps({"started": name, "dtype": record.data["dtype"]}) + "\n")
            mesh = ranks.mesh()
            try:
                run_operator(name, op, dtype, ranks, mesh, record)
            except Disagreement:
                record.data["disagreed"] = True
            record.data["aten_sharded"] = mesh.sharded_operators()
            record.data["aten_fallbacks"] = dict(mesh.replicated_fallbacks())
            out.write(json.dumps(record.data) + "\n")
            if record.data.get("disagreed"):
                out.close()
                sys.stderr.flush()
                os._exit(EXIT_DISAGREED)


if __name__ == "__main__":
    main()
