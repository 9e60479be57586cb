# SPDX-License-Identifier: Apache-2.0
"""Prints one line of JSON: the operators of PyTorch's database, and the operators that DTensor has rules for."""

import json

import torch
from operators import database
from torch.distributed.tensor import DTensor


def dtensor_operators() -> list:
    """By overload packet ("aten.add"), as DTensor's propagator has them registered."""
    propagator = DTensor._op_dispatcher.sharding_propagator
    tables = ("op_strategy_funcs", "op_to_rules", "op_single_dim_strategy_funcs")
    return sorted({str(op.overloadpacket) for table in tables for op in getattr(propagator, table, {})})


if __name__ == "__main__":
    print(json.dumps({"torch": torch.__version__, "operators": list(database()), "dtensor": dtensor_operators()}))
