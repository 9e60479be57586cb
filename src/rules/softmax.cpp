// SPDX-License-Identifier: Apache-2.0
// Operators along one whole dim whose result has the input's sizes: softmax, cumsum, sort and their backward forms.
#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

/// Every tensor and every output is sharded along the same dim, which is not the one worked along.
void other_dim_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t along = wrap_dim(call.named("dim").toInt(), call.tensor(0).dim());
  for (const std::int64_t dim : sharded_dims(call, axis)) {
    if (dim == along) continue;
    Row row;
    row.inputs.resize(call.tensors.size(), S(dim));
    row.outputs.resize(static_cast<std::size_t>(call.num_outputs()), S(dim));
    rows.push_back(std::move(row));
  }
}

}  // namespace

void add_softmax_rules(RuleTable& table) {
  for (const char* name :
       {"aten::_softmax", "aten::_safe_softmax", "aten::_log_softmax", "aten::_softmax_backward_data", "aten::_log_softmax_backward_data",
        "aten::cumsum", "aten::cumprod", "aten::topk", "aten::glu"}) {
    table[name] = {.rows = other_dim_rows};
  }
}

}  // namespace tessera::rules
