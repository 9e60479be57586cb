// SPDX-License-Identifier: Apache-2.0
// Embedding look-ups: sharded over the indices or over the width.
#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

// embedding(weight [V, D], indices [...], ...) -> [..., D]
void embedding_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 1, axis);
  if (dim >= 0) add_row(call, rows, {R, S(dim)}, {S(dim)});
  if (sharded_dim(call, 0, axis) == 1) add_row(call, rows, {S(1), R}, {S(call.tensor(1).dim())});
}

// embedding_dense_backward(grad_output [..., D], indices [...], num_weights, padding_idx, scale_grad_by_freq) -> [V, D]
void embedding_backward_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t index_dims = call.tensor(1).dim();
  const bool counts_rows = call.named("scale_grad_by_freq").toBool();
  for (const std::int64_t dim : sharded_dims(call, axis)) {
    if (dim < index_dims && !counts_rows) add_row(call, rows, {S(dim), S(dim)}, {P});
    if (dim == index_dims) add_row(call, rows, {S(dim), R}, {S(1)});
  }
}

constexpr std::int64_t kMaximumOfBag = 2;

/// Per output element the index that won, in bags that take the maximum; else one number per bag.
Placement winners_placement(const OpCall& call) { return call.named("mode").toInt() == kMaximumOfBag ? S(1) : R; }

// _embedding_bag(weight [V, D], indices, offsets, ..., mode, ..., per_sample_weights?, ...)
//   -> (output [B, D], offset2bag, bag_size, maximum_indices)
void embedding_bag_rows(const OpCall& call, int axis, Rows& rows) {
  if (sharded_dim(call, 0, axis) == 1) add_row(call, rows, {S(1)}, {S(1), R, R, winners_placement(call)});
}

// _embedding_bag_backward(grad [B, D], indices, offsets, offset2bag, bag_size, maximum_indices, ...) -> [V, D];
// _embedding_bag_dense_backward is the same without offsets
void embedding_bag_backward_rows(const OpCall& call, int axis, Rows& rows) {
  if (sharded_dim(call, 0, axis) != 1) return;
  Row row;
  row.inputs.resize(call.tensors.size());
  row.inputs[0] = S(1);
  row.inputs[static_cast<std::size_t>(call.index_of("maximum_indices"))] = winners_placement(call);
  row.outputs = {S(1)};
  rows.push_back(std::move(row));
}

// _embedding_bag_per_sample_weights_backward(grad [B, D], weight [V, D], indices, offsets, offset2bag, ...) -> [n]
void sample_weight_rows(const OpCall& call, int axis, Rows& rows) {
  if (contains(sharded_dims(call, axis), 1)) add_row(call, rows, {S(1), S(1)}, {P});
}

}  // namespace

void add_embedding_rules(RuleTable& table) {
  table["aten::embedding"] = {.rows = embedding_rows};
  table["aten::embedding_dense_backward"] = {.rows = embedding_backward_rows};
  for (const char* name : {"aten::_embedding_bag", "aten::_embedding_bag_forward_only"}) {
    table[name] = {.rows = embedding_bag_rows};
  }
  for (const char* name : {"aten::_embedding_bag_backward", "aten::_embedding_bag_dense_backward"}) {
    table[name] = {.rows = embedding_bag_backward_rows};
  }
  table["aten::_embedding_bag_per_sample_weights_backward"] = {.rows = sample_weight_rows};
}

}  // namespace tessera::rules
