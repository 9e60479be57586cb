# SPDX-License-Identifier: Apache-2.0
"""PyTorch's operator database as this suite uses it: which operators, which samples, as which values."""

import warnings

import torch

warnings.filterwarnings("ignore")
from torch.testing._internal import common_methods_invocations as invocations  # noqa: E402

# What they return is undefined; only sizes and dtypes can be compared.
UNDEFINED = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
FOREACH = ("foreach_unary_op_db", "foreach_binary_op_db", "foreach_pointwise_op_db", "foreach_reduce_op_db",
           "foreach_other_op_db")


def database() -> dict:
    """Operators by name, with their variant where they have one ("norm.nuc")."""
    operators = list(invocations.op_db)
    for name in FOREACH:
        operators += getattr(invocations, name)
    return {op.name + ("." + op.variant_test_name if op.variant_test_name else ""): op for op in operators}


def dtypes_of(op) -> list:
    """float64 and float32 where the operator takes them, else the first that it does take."""
    supported = op.supported_dtypes("cpu")
    floating = [dtype for dtype in (torch.float64, torch.float32) if dtype in supported]
    others = [dtype for dtype in (torch.int64, torch.bool, torch.complex128) if dtype in supported]
    return floating or others[:1]


def tensors_in(value) -> list:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    return []


def with_tensors(value, tensors):
    """The same structure with the next tensors of an iterator in place of its own."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, (list, tuple)):
        items = [with_tensors(item, tensors) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: with_tensors(item, tensors) for key, item in value.items()}
    return value


class Sample:
    """One call of an operator: the tensors among its arguments, and a way to call it with others in their place."""

    def __init__(self, op, sample):
        self.op = op
        self.arguments = [sample.input, list(sample.args), dict(sample.kwargs)]
        self.finish = sample.output_process_fn_grad
        self.broadcasts = sample.broadcasts_input
        self.plain = tensors_in(self.arguments)

    @property
    def ordinary(self) -> bool:
        """Dense, not nested, and small enough for thousands of runs."""
        return all(type(t) in (torch.Tensor, torch.nn.Parameter) and t.layout == torch.strided and t.device.type == "cpu"
                   and not t.is_quantized and t.numel() <= 20000 for t in self.plain)

    def call(self, tensors, function=None):
        first, args, kwargs = with_tensors(self.arguments, iter(tensors))
        return (function or self.op)(first, *args, **kwargs)


def samples_of(op, dtype, limit: int) -> list:
    """At most `limit` samples, spread evenly over those of the database, the first and the last among them."""
    torch.manual_seed(1)
    # _foreach_zero only exists in place, which leaves that want gradients do not take.
    wants_gradient = bool(getattr(op, "supports_autograd", False)) and op.name != "_foreach_zero"
    gradient = wants_gradient and (dtype.is_floating_point or dtype.is_complex)
    samples = []
    for sample in op.sample_inputs("cpu", dtype, requires_grad=gradient):
        samples.append(Sample(op, sample))
        if len(samples) >= 400:
            break
    samples = [sample for sample in samples if sample.ordinary]
    if len(samples) <= limit:
        return samples
    # The last ones are often those with the most dims.
    return [samples[i * (len(samples) - 1) // max(limit - 1, 1)] for i in range(limit)]
