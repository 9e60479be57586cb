// SPDX-License-Identifier: Apache-2.0
// Recurrent layers: on a mesh always LibTorch's own loop over the steps, never cuDNN's operator, which reads the memory of
// all weights at once. Its cells are fused on a GPU; every sequence of the batch stands alone in them.
#include "rules/composites.h"
#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

constexpr int kBatchDim = 0;  ///< of gates and states; biases have one dim

/// What has a batch follows it; gradients of biases are partial sums, the last outputs of a cell's backward.
void cell_rows(const OpCall& call, int axis, Rows& rows, std::size_t num_bias_gradients) {
  if (!contains(sharded_dims(call, axis), kBatchDim)) return;
  Row row;
  bool follows = false;
  for (int i = 0; i < call.num_tensors(); ++i) {
    const bool has_batch = call.tensor(i).defined && call.tensor(i).dim() == 2;
    follows = follows || (has_batch && sharded_dim(call, i, axis) == kBatchDim);
    row.inputs.push_back(has_batch ? S(kBatchDim) : R);
  }
  if (!follows) return;
  row.outputs.resize(static_cast<std::size_t>(call.num_outputs()), S(kBatchDim));
  for (std::size_t i = 0; i < num_bias_gradients; ++i) row.outputs[row.outputs.size() - 1 - i] = P;
  rows.push_back(std::move(row));
}

template <std::size_t kNumBiasGradients>
void rows_of(const OpCall& call, int axis, Rows& rows) {
  cell_rows(call, axis, rows, kNumBiasGradients);
}

}  // namespace

void add_recurrent_rules(RuleTable& table) {
  table["aten::_thnn_fused_lstm_cell"] = {.rows = rows_of<0>};
  table["aten::_thnn_fused_lstm_cell_backward_impl"] = {.rows = rows_of<1>};
  table["aten::_thnn_fused_gru_cell"] = {.rows = rows_of<0>};
  table["aten::_thnn_fused_gru_cell_backward"] = {.rows = rows_of<2>};
}

void add_recurrent_composites(torch::Library& library) {
  library.impl("cudnn_is_acceptable", [](const at::Tensor&) { return false; });
}

}  // namespace tessera::rules
