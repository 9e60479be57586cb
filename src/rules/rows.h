// SPDX-License-Identifier: Apache-2.0
// Small helpers that rule files share: making rows, reading dims.
#pragma once

#include <initializer_list>

#include "tensor/rule.h"

namespace tessera::rules {

using tensor::Cuts;
using tensor::Decision;
using tensor::OpCall;
using tensor::Row;
using tensor::Rows;
using tensor::Rule;
using tensor::RuleTable;
using tensor::Sizes;
using tensor::TensorArg;

inline constexpr Placement R = Replicate();
inline constexpr Placement P = Partial();
/// Shorthand for tables of rows.
[[nodiscard]] constexpr Placement S(std::int64_t dim) { return Shard(dim); }

/// Appends a row, filled with Replicate up to the number of tensors and outputs of the call.
inline Row& add_row(const OpCall& call, Rows& rows, std::initializer_list<Placement> inputs,
                    std::initializer_list<Placement> outputs) {
  Row row{{inputs}, {outputs}};
  row.inputs.resize(call.tensors.size());
  row.outputs.resize(static_cast<std::size_t>(call.num_outputs()));
  rows.push_back(std::move(row));
  return rows.back();
}

/// Appends the row in which all tensors lie as `input` and all outputs as `output`.
inline void add_uniform_row(const OpCall& call, Rows& rows, Placement input, Placement output) {
  Row row;
  row.inputs.resize(call.tensors.size(), input);
  row.outputs.resize(static_cast<std::size_t>(call.num_outputs()), output);
  rows.push_back(std::move(row));
}

/// -1 -> last dim.
[[nodiscard]] inline std::int64_t wrap_dim(std::int64_t dim, std::int64_t dims) { return dim < 0 ? dim + dims : dim; }

/// The dim along which tensor `index` lies sharded on `axis`; -1 if it does not.
[[nodiscard]] inline std::int64_t sharded_dim(const OpCall& call, int index, int axis) {
  const TensorArg& tensor = call.tensor(index);
  const Placement placement = tensor.defined ? tensor.placements[axis] : R;
  return placement.is_shard() ? placement.dim : -1;
}

/// Dims along which some tensor of the call lies sharded on `axis`, each once.
[[nodiscard]] inline c10::SmallVector<std::int64_t, 4> sharded_dims(const OpCall& call, int axis) {
  c10::SmallVector<std::int64_t, 4> dims;
  for (int i = 0; i < call.num_tensors(); ++i) {
    const std::int64_t dim = sharded_dim(call, i, axis);
    if (dim >= 0 && std::find(dims.begin(), dims.end(), dim) == dims.end()) dims.push_back(dim);
  }
  return dims;
}

/// How some tensor of the call lies sharded on `axis`, each once, cuts and all: for rules that look at them.
[[nodiscard]] inline c10::SmallVector<Placement, 4> sharded_placements(const OpCall& call, int axis) {
  c10::SmallVector<Placement, 4> placements;
  for (const TensorArg& tensor : call.tensors) {
    const Placement here = tensor.defined ? tensor.placements[axis] : R;
    if (here.is_shard() && std::find(placements.begin(), placements.end(), here) == placements.end()) {
      placements.push_back(here);
    }
  }
  return placements;
}

/// The dim that an operator with an argument `dim` works along.
[[nodiscard]] inline std::int64_t worked_dim(const OpCall& call) {
  return wrap_dim(call.named("dim").toInt(), call.tensor(0).dim());
}

/// Rows of operators that work along one dim: every tensor and every output is sharded along the same other dim.
inline void other_dim_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t along = worked_dim(call);
  for (const std::int64_t dim : sharded_dims(call, axis)) {
    if (dim != along) add_uniform_row(call, rows, S(dim), S(dim));
  }
}

/// The gradient of an operator, by its name.
[[nodiscard]] inline bool is_backward(const c10::FunctionSchema& schema) { return schema.name().ends_with("_backward"); }

/// A single sample's scores have no batch dim that could be sharded.
[[nodiscard]] inline bool has_batch(const OpCall& call, int scores) { return call.tensor(scores).dim() > 1; }

/// True if every rank holds something of `dim` once `axis` cuts it after the axes that were decided before: some kernels
/// cannot run on nothing. `tensor` is one of the call's.
[[nodiscard]] inline bool leaves_no_rank_empty(const OpCall& call, const TensorArg& tensor, std::int64_t dim, int axis) {
  const Placements& before = (*call.decided)[static_cast<std::size_t>(&tensor - call.tensors.data())];
  std::int64_t smallest = tensor.sizes[static_cast<std::size_t>(dim)];
  for (int other = axis; other >= 0; --other) {
    if (other != axis && !before[other].is_shard(dim)) continue;
    smallest = chunk_extent(smallest, call.mesh.axis_size(other), call.mesh.axis_size(other) - 1).length;
  }
  return smallest > 0;
}

/// Optional or plain int list argument as wrapped dims; nothing means all dims.
[[nodiscard]] inline c10::SmallVector<std::int64_t, 6> dims_argument(const c10::IValue& value, std::int64_t dims) {
  c10::SmallVector<std::int64_t, 6> result;
  if (value.isIntList()) {
    for (const std::int64_t dim : value.toDimVector()) result.push_back(wrap_dim(dim, dims));
  } else if (value.isInt()) {
    result.push_back(wrap_dim(value.toInt(), dims));
  }
  if (result.empty()) {
    for (std::int64_t dim = 0; dim < dims; ++dim) result.push_back(dim);
  }
  return result;
}

template <class List>
[[nodiscard]] bool contains(const List& list, std::int64_t value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

/// True if any axis of `placements` shards `dim`.
[[nodiscard]] inline bool shards_dim(const Placements& placements, std::int64_t dim) {
  return std::any_of(placements.begin(), placements.end(), [&](const Placement& p) { return p.is_shard(dim); });
}
[[nodiscard]] inline bool shards_any(const Placements& placements) {
  return std::any_of(placements.begin(), placements.end(), [](const Placement& p) { return p.is_shard(); });
}

[[nodiscard]] inline c10::IValue int_list(at::IntArrayRef values) { return c10::IValue(values.vec()); }

/// Shorthand for a boxed compute: takes all arguments off the stack.
[[nodiscard]] inline std::vector<c10::IValue> pop_arguments(const c10::OperatorHandle& op, torch::jit::Stack& stack) {
  return torch::jit::pop(stack, op.schema().arguments().size());
}

}  // namespace tessera::rules
