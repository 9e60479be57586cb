// SPDX-License-Identifier: Apache-2.0
// Connectionist temporal classification: every sequence of the batch stands alone. Lengths are numbers, the same on
// every rank; what a rank runs has those of its own sequences.
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/ctc_loss.h>

#include <algorithm>
#include <numeric>

#include "rules/composites.h"
#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

constexpr int kBatchDim = 1;  ///< of log_probs [T, N, C]

using Integers = std::vector<std::int64_t>;

/// Lengths among the tensors, or a single sequence without batch dim: whole only.
bool can_cut_batch(const OpCall& call) {
  const bool as_numbers = call.named("input_lengths").isIntList();
  return as_numbers && call.tensor(is_backward(call.schema) ? 1 : 0).dim() == 3;
}

/// Targets [N, S], or one after the other in one dim, where only their lengths tell them apart.
Placement target_placement(const TensorArg& targets) { return targets.dim() == 2 ? S(0) : R; }

// _ctc_loss(log_probs [T, N, C], targets, input_lengths, target_lengths, ..) -> (loss [N], log_alpha [N, T, 2 L + 1])
void forward_rows(const OpCall& call, int axis, Rows& rows) {
  if (!can_cut_batch(call) || !leaves_no_rank_empty(call, call.tensor(0), kBatchDim, axis)) return;
  const bool follows =
      sharded_dim(call, 0, axis) == kBatchDim || (call.tensor(1).dim() == 2 && sharded_dim(call, 1, axis) == 0);
  if (follows) add_row(call, rows, {S(kBatchDim), target_placement(call.tensor(1))}, {S(0), S(0)});
}

// _ctc_loss_backward(grad [N], log_probs, targets, input_lengths, target_lengths, loss [N], log_alpha, ..)
void backward_rows(const OpCall& call, int axis, Rows& rows) {
  if (!can_cut_batch(call) || !leaves_no_rank_empty(call, call.tensor(1), kBatchDim, axis)) return;
  const bool follows = sharded_dim(call, 0, axis) == 0 || sharded_dim(call, 1, axis) == kBatchDim;
  if (!follows) return;
  add_row(call, rows, {S(0), S(kBatchDim), target_placement(call.tensor(2)), S(0), S(0)}, {S(kBatchDim)});
}

/// The arguments of one rank: lengths of its sequences, and their targets where they stand one after the other.
void cut_arguments(const c10::FunctionSchema& schema, const Extent& sequences, Integers& targets_of_all,
                   torch::jit::Stack& stack) {
  const std::size_t first = stack.size() - schema.arguments().size() + (is_backward(schema) ? 1 : 0);
  c10::IValue& targets = stack[first + 1];
  targets_of_all = stack[first + 3].toIntVector();
  const auto begin = targets_of_all.begin() + sequences.offset;
  if (targets.toTensor().dim() == 1) {
    const std::int64_t before = std::accumulate(targets_of_all.begin(), begin, std::int64_t{0});
    const std::int64_t length = std::accumulate(begin, begin + sequences.length, std::int64_t{0});
    targets = targets.toTensor().narrow(0, before, length);
  }
  const auto cut = [&](c10::IValue& lengths) {
    const Integers all = lengths.toIntVector();
    lengths = Integers(all.begin() + sequences.offset, all.begin() + sequences.offset + sequences.length);
  };
  cut(stack[first + 2]);
  cut(stack[first + 3]);
}

/// decision.notes: the first sequence of this rank, and how many it has.
void compute_ctc(const c10::OperatorHandle& op, const Decision& decision, const Mesh&, torch::jit::Stack& stack) {
  Integers target_lengths;
  cut_arguments(op.schema(), {decision.notes[0], decision.notes[1]}, target_lengths, stack);
  op.callBoxed(stack);
  if (is_backward(op.schema())) return;
  // log_alpha has room for this rank's longest target; all ranks need the same.
  const at::Tensor log_alpha = stack.back().toTensor();
  const std::int64_t room = 2 * *std::max_element(target_lengths.begin(), target_lengths.end()) + 1;
  if (room > log_alpha.size(2)) stack.back() = at::constant_pad_nd(log_alpha, {0, room - log_alpha.size(2)});
}

void localise_ctc(const OpCall& call, Decision& decision) {
  const int scores = is_backward(call.schema) ? 1 : 0;
  const Placements& placements = decision.inputs[static_cast<std::size_t>(scores)];
  if (!shards_dim(placements, kBatchDim)) return;
  const Extent sequences = tensor::local_extent(call.tensor(scores).sizes[kBatchDim], kBatchDim, placements, call.mesh);
  decision.notes = {sequences.offset, sequences.length};
  decision.compute = compute_ctc;
}

/// LibTorch reads the lengths from memory.
at::Tensor ctc_loss(const at::Tensor& log_probs, const at::Tensor& targets, const at::Tensor& input_lengths,
                    const at::Tensor& target_lengths, std::int64_t blank, std::int64_t reduction, bool zero_infinity) {
  return at::ctc_loss(log_probs, targets, whole_integers(input_lengths), whole_integers(target_lengths), blank,
                      reduction, zero_infinity);
}

}  // namespace

void add_ctc_rules(RuleTable& table) {
  table["aten::_ctc_loss"] = {.rows = forward_rows, .localise = localise_ctc};
  table["aten::_ctc_loss_backward"] = {.rows = backward_rows, .localise = localise_ctc};
}

void add_ctc_composites(torch::Library& library) { library.impl("ctc_loss.Tensor", ctc_loss); }

}  // namespace tessera::rules
