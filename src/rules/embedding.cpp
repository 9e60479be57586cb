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

}  // namespace

void add_embedding_rules(RuleTable& table) {
  table["aten::embedding"] = {.rows = embedding_rows};
  table["aten::embedding_dense_backward"] = {.rows = embedding_backward_rows};
}

}  // namespace tessera::rules
