# SPDX-License-Identifier: Apache-2.0
"""Placements that the tensors of one call may have, and how a plain tensor comes to lie that way."""

import random
import zlib

import torch

tessera = torch.ops.tessera
REPLICATE = "replicate"
PARTIAL = "partial(sum)"


def choices(tensor) -> list:
    """Placements of one tensor on one axis."""
    return [REPLICATE, *(f"shard({dim})" for dim in range(tensor.dim())),
            *([PARTIAL] if tensor.is_floating_point() else [])]


def aligned(tensors, dim: int, from_right: bool) -> tuple:
    """Every tensor that has the dim sharded along it."""
    own = [tensor.dim() - 1 - dim if from_right else dim for tensor in tensors]
    return tuple(f"shard({d})" if 0 <= d < tensor.dim() else REPLICATE for d, tensor in zip(own, tensors))


def on_one_axis(tensors, name: str, limit: int) -> list:
    """One placement per tensor, several times: each tensor alone, all alike, and some mixtures that depend on `name`."""
    dice = random.Random(zlib.crc32(name.encode()))
    found = [aligned(tensors, dim, from_right) for dim in range(3) for from_right in (False, True)]
    found.append(tuple(PARTIAL if tensor.is_floating_point() else REPLICATE for tensor in tensors))
    alone = []
    for index, tensor in enumerate(tensors):
        for choice in choices(tensor)[1:]:
            alone.append(tuple(choice if i == index else REPLICATE for i in range(len(tensors))))
    dice.shuffle(alone)
    mixtures = [tuple(dice.choice(choices(tensor)) for tensor in tensors) for _ in range(4)]
    different = list(dict.fromkeys(found + mixtures[:2] + alone + mixtures[2:]))
    return [placement for placement in different if set(placement) != {REPLICATE}][:limit]


def on_axes(tensors, name: str, axes: int, limit: int) -> list:
    """One list of placements (one per axis) per tensor, several times."""
    columns = on_one_axis(tensors, name, 64)
    if axes == 1 or not columns:
        return [[[word] for word in column] for column in columns][:limit]
    dice = random.Random(zlib.crc32(name.encode()) + axes)
    columns.append(tuple(REPLICATE for _ in tensors))
    pairs = [[dice.choice(columns) for _ in range(axes)] for _ in range(2 * limit)]
    return [[list(words) for words in zip(*pair)] for pair in pairs][:limit]


def share_of_sum(value, index: int):
    """What part `index` holds of a partial sum. 2v and -v add up to v without rounding, and nothing that is not linear
    survives them."""
    exact = torch.isfinite(value) & (value.abs() < 1e30)
    factor = (2.0, -1.0)[index] if index < 2 else 0.0
    return torch.where(exact, value * factor, value if index == 0 else torch.zeros_like(value))


def spread(value, mesh, words):
    """`value` as a mesh tensor: a leaf that wants gradients if `value` does."""
    plain = value.detach()
    partial = [axis for axis, word in enumerate(words) if word == PARTIAL]
    for axis in partial:
        plain = share_of_sum(plain, mesh.coordinate(axis))
    without = [REPLICATE if word == PARTIAL else word for word in words]
    result = tessera.distribute(plain, mesh, without)
    if partial:
        result = tessera.from_local(tessera.local(result), mesh, words, list(value.shape))
    return result.requires_grad_(value.requires_grad)
