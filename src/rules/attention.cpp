// SPDX-License-Identifier: Apache-2.0
// Fused scaled dot-product attention: every batch element and every head stands alone.
#include <algorithm>
#include <array>
#include <string>

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

/// The same for CUDA's kernels, whose random state, cumulated lengths and debugging mask follow neither dim. Offered only
/// where it is exact: as many key heads as query heads, no debugging mask, and no gradient of a bias that is shared.
void cuda_rows(const OpCall& call, int axis, Rows& rows) {
  constexpr std::array kCut{"query", "key", "value", "out", "grad_out", "grad_out_", "logsumexp"};
  constexpr std::array kCutOutputs{"output", "logsumexp", "log_sumexp"};
  const auto has_name = [](const auto& names, const std::string& name) {
    return std::any_of(names.begin(), names.end(), [&](const char* known) { return name == known; });
  };
  const auto name_of = [&](const TensorArg& tensor) {
    return call.schema.arguments()[static_cast<std::size_t>(tensor.argument)].name();
  };
  const int debug_mask = call.index_of("return_debug_mask");
  if (debug_mask >= 0 && call.argument(debug_mask).toBool()) return;
  const int wanted = call.index_of("grad_input_mask");
  const bool is_backward = name_of(call.tensor(0)).starts_with("grad_out");

  for (const std::int64_t dim : {std::int64_t{0}, std::int64_t{1}}) {
    if (!contains(sharded_dims(call, axis), dim) || !leaves_no_rank_empty(call, call.tensor(0), dim, axis)) continue;
    const std::int64_t size = call.tensor(0).sizes[static_cast<std::size_t>(dim)];
    bool is_exact = true;
    Row row;
    for (const TensorArg& tensor : call.tensors) {
      const std::string name = name_of(tensor);
      const bool has_size = tensor.defined && tensor.dim() >= 3 && tensor.sizes[static_cast<std::size_t>(dim)] == size;
      const bool follows = has_size && (has_name(kCut, name) || (name == "attn_bias" && tensor.dim() == 4));
      row.inputs.push_back(follows ? S(dim) : R);
      if (tensor.defined && !follows && has_name(kCut, name)) is_exact = false;
      if (tensor.defined && !follows && name == "attn_bias" && wanted >= 0 && call.argument(wanted).toBoolList()[3]) {
        is_exact = false;
      }
    }
    if (!is_exact) continue;
    for (const c10::Argument& output : call.schema.returns()) {
      row.outputs.push_back(is_backward || has_name(kCutOutputs, output.name()) ? S(dim) : R);
    }
    rows.push_back(std::move(row));
  }
}

/// Reached only by those who call a fused kernel by name: attention_dropout.cpp keeps dropout away from them.
void refuse_dropout(const OpCall& call, Decision&) {
  const int index = call.index_of("dropout_p");
  const double p = index < 0 ? 0 : call.argument(index).toDouble();
  check<ShapeError>(p == 0, "{} on mesh {}: dropout_p is {}, and each rank would drop other elements; allowed: 0, or "
                    "torch::scaled_dot_product_attention",
                    call.schema.name(), call.mesh.to_string(), p);
}

}  // namespace

void add_attention_rules(RuleTable& table) {
  const Rule rule{.rows = batch_and_head_rows, .localise = refuse_dropout};
  for (const char* name :
       {"aten::_fused_sdp_choice", "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward"}) {
    table[name] = rule;
  }
  const Rule cuda_rule{.rows = cuda_rows, .localise = refuse_dropout};
  for (const char* name :
       {"aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_flash_attention_backward",
        "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_efficient_attention_backward",
        "aten::_scaled_dot_product_cudnn_attention", "aten::_scaled_dot_product_cudnn_attention_backward"}) {
    table[name] = cuda_rule;
  }
}

}  // namespace tessera::rules
