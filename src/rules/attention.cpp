// SPDX-License-Identifier: Apache-2.0
// Fused scaled dot-product attention: every batch element and every head stands alone.
#include "rules/families.h"
#include "rules/rows.h"
#include "tessera/base/error.h"

namespace tessera::rules {
namespace {

/// Tensors [B, H, ...] may be cut along B or H; a mask or log-sum-exp follows where it has that dim in full.
void batch_and_head_rows(const OpCall& call, int axis, Rows& rows) {
  for (const std::int64_t dim : {std::int64_t{0}, std::int64_t{1}}) {
    if (!contains(sharded_dims(call, axis), dim) || !leaves_no_rank_empty(call, call.tensor(0), dim, axis)) continue;
    const std::int64_t size = call.tensor(0).sizes[static_cast<std::size_t>(dim)];
    Row row;
    for (const TensorArg& tensor : call.tensors) {
      const bool follows = tensor.defined && tensor.dim() >= 3 && tensor.sizes[static_cast<std::size_t>(dim)] == size;
      row.inputs.push_back(follows ? S(dim) : R);
    }
    row.outputs.resize(static_cast<std::size_t>(call.num_outputs()), S(dim));
    rows.push_back(std::move(row));
  }
}

void refuse_dropout(const OpCall& call, Decision&) {
  const int index = call.index_of("dropout_p");
  const double p = index < 0 ? 0 : call.argument(index).toDouble();
  check<ShapeError>(p == 0 || call.mesh.size() == 1,
                    "scaled_dot_product_attention on mesh {}: dropout_p is {}, and each rank would drop other elements; "
                    "allowed: 0",
                    call.mesh.to_string(), p);
}

}  // namespace

void add_attention_rules(RuleTable& table) {
  const Rule rule{.rows = batch_and_head_rows, .localise = refuse_dropout};
  for (const char* name :
       {"aten::_fused_sdp_choice", "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward"}) {
    table[name] = rule;
  }
}

}  // namespace tessera::rules
