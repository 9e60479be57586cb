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
    rules::add_linalg_rules(table);
    rules::add_fourier_rules(table);
    rules::add_view_rules(table);
    rules::add_as_strided_rules(table);
    rules::add_arrange_rules(table);
    rules::add_index_rules(table);
    rules::add_sort_rules(table);
    rules::add_reduce_rules(table);
    rules::add_distance_rules(table);
    rules::add_segment_rules(table);
    rules::add_recurrent_rules(table);
    rules::add_softmax_rules(table);
    rules::add_norm_rules(table);
    rules::add_batch_norm_rules(table);
    rules::add_convolution_rules(table);
    rules::add_resample_rules(table);
    rules::add_embedding_rules(table);
    rules::add_attention_rules(table);
    rules::add_loss_rules(table);
    rules::add_likelihood_rules(table);
    rules::add_ctc_rules(table);
    rules::add_random_rules(table);
    rules::add_random_mask_rules(table);
    rules::add_sampling_rules(table);
    // The lists of foreach operators follow the rules of their elements.
    rules::add_foreach_rules(table);
    return table;
  }();
  return kTable;
}

namespace {

/// In-place forms are not always tagged; what holds of the out-of-place one holds of them.
bool is_pointwise(const c10::OperatorHandle& op, const std::string& base) {
  if (op.hasTag(at::Tag::nondeterministic_seeded)) return false;
  if (op.hasTag(at::Tag::pointwise)) return true;
  const auto functional = c10::Dispatcher::singleton().findSchema({base, op.schema().overload_name()});
  return functional && functional->hasTag(at::Tag::pointwise) && !functional->hasTag(at::Tag::nondeterministic_seeded);
}

}  // namespace

const Rule* find_rule(const c10::OperatorHandle& op) {
  const std::string name = base_name(op.schema().name());
  const auto found = rule_table().find(name);
  if (found != rule_table().end()) return &found->second;
  // view_copy, select_copy ...: the operator without aliasing.
  if (name.ends_with("_copy")) {
    const auto original = rule_table().find(name.substr(0, name.size() - 5));
    if (original != rule_table().end()) return &original->second;
  }
  return is_pointwise(op, name) ? &rules::pointwise_rule() : nullptr;
}

}  // namespace tessera::tensor
