// SPDX-License-Identifier: Apache-2.0
// One function per operator family: each adds its rows to the table of rules.
#pragma once

#include "tensor/rule.h"

namespace tessera::rules {

void add_pointwise_rules(tensor::RuleTable& table);
void add_factory_rules(tensor::RuleTable& table);
void add_foreach_rules(tensor::RuleTable& table);
void add_matmul_rules(tensor::RuleTable& table);
void add_view_rules(tensor::RuleTable& table);
void add_as_strided_rules(tensor::RuleTable& table);
void add_arrange_rules(tensor::RuleTable& table);
void add_index_rules(tensor::RuleTable& table);
void add_sort_rules(tensor::RuleTable& table);
void add_reduce_rules(tensor::RuleTable& table);
void add_distance_rules(tensor::RuleTable& table);
void add_segment_rules(tensor::RuleTable& table);
void add_recurrent_rules(tensor::RuleTable& table);
void add_softmax_rules(tensor::RuleTable& table);
void add_norm_rules(tensor::RuleTable& table);
void add_batch_norm_rules(tensor::RuleTable& table);
void add_linalg_rules(tensor::RuleTable& table);
void add_fourier_rules(tensor::RuleTable& table);
void add_convolution_rules(tensor::RuleTable& table);
void add_resample_rules(tensor::RuleTable& table);
void add_embedding_rules(tensor::RuleTable& table);
void add_attention_rules(tensor::RuleTable& table);
void add_loss_rules(tensor::RuleTable& table);
void add_likelihood_rules(tensor::RuleTable& table);
void add_ctc_rules(tensor::RuleTable& table);
void add_random_rules(tensor::RuleTable& table);
void add_random_mask_rules(tensor::RuleTable& table);
void add_sampling_rules(tensor::RuleTable& table);

/// The rule for any operator whose output elements depend on the input elements at the same (broadcast) position.
[[nodiscard]] const tensor::Rule& pointwise_rule();

}  // namespace tessera::rules
