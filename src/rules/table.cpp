// SPDX-License-Identifier: Apache-2.0
// All rules, and how an operator finds its own.
#include <ATen/core/enum_tag.h>

#include "rules/families.h"
#include "tensor/operator_info.h"

namespace tessera::tensor {

const RuleTable& rule_table() {
  static const RuleTable kTable = [] {
    RuleTable table;
    rules::add_pointwise_rules(table);
    rules::add_factory_rules(table);
    rules::add_matmul_rules(table);
    rules::add_view_rules(table);
    rules::add_reduce_rules(table);
    rules::add_softmax_rules(table);
    rules::add_norm_rules(table);
    rules::add_convolution_rules(table);
    rules::add_embedding_rules(table);
    rules::add_attention_rules(table);
    rules::add_loss_rules(table);
    rules::add_random_rules(table);
    return table;
  }();
  return kTable;
}

const Rule* find_rule(const c10::OperatorHandle& op) {
  const auto found = rule_table().find(base_name(op.schema().name()));
  if (found != rule_table().end()) return &found->second;
  const bool pointwise = op.hasTag(at::Tag::pointwise) && !op.hasTag(at::Tag::nondeterministic_seeded);
  return pointwise ? &rules::pointwise_rule() : nullptr;
}

}  // namespace tessera::tensor
