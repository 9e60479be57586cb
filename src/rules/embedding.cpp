// SPDX-License-Identifier: Apache-2.0
// Embedding look-ups: sharded over the indices, over the width, or over the vocabulary.
#include <ATen/TensorOperators.h>
#include <ATen/ops/embedding.h>

#include "rules/families.h"
#include "rules/rows.h"
#include "tessera/base/error.h"

namespace tessera::rules {
namespace {

// embedding(weight [V, D], indices [...], ...) -> [..., D]
void embedding_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 1, axis);
  if (dim >= 0) add_row(call, rows, {R, S(dim)}, {S(dim)});
  if (sharded_dim(call, 0, axis) == 1) add_row(call, rows, {S(1), R}, {S(call.tensor(1).dim())});
  if (sharded_dim(call, 0, axis) == 0 && leaves_no_rank_empty(call, call.tensor(0), 0, axis)) {
    add_row(call, rows, {S(0), R}, {P});
  }
}

/// An index that no rank has would be zeros in silence. On a GPU the look would cost a wait.
void refuse_strangers(const at::Tensor& indices, std::int64_t vocabulary) {
  if (!indices.is_cpu() || indices.numel() == 0) return;
  const auto smallest = indices.min().item<std::int64_t>();
  const auto largest = indices.max().item<std::int64_t>();
  check<ShapeError>(smallest >= 0 && largest < vocabulary,
                    "embedding: an index is {}; allowed are 0 to {}, the rows of the weight",
                    smallest < 0 ? smallest : largest, vocabulary - 1);
}

/// A rank looks up what its part of the vocabulary has and leaves zeros for the rest (Shoeybi et al. 2019,
/// arXiv:1909.08053, section 3). decision.notes: first index and count of this rank's part, count of all.
void compute_vocabulary_lookup(const c10::OperatorHandle& op, const Decision& decision, const Mesh&,
                               torch::jit::Stack& stack) {
  const auto arguments = pop_arguments(op, stack);
  refuse_strangers(arguments[1].toTensor(), decision.notes[2]);
  const at::Tensor indices = arguments[1].toTensor() - decision.notes[0];
  const at::Tensor elsewhere = indices.lt(0).logical_or(indices.ge(decision.notes[1]));
  const at::Tensor found = at::embedding(arguments[0].toTensor(), indices.masked_fill(elsewhere, 0));
  stack.emplace_back(found.masked_fill(elsewhere.unsqueeze(-1), 0));
}

void localise_embedding(const OpCall& call, Decision& decision) {
  if (!shards_dim(decision.inputs[0], 0)) return;
  const Extent part = tensor::local_extent(call.tensor(0).sizes[0], 0, decision.inputs[0], call.mesh);
  decision.notes = {part.offset, part.length, call.tensor(0).sizes[0]};
  decision.compute = compute_vocabulary_lookup;
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
  table["aten::embedding"] = {.rows = embedding_rows, .localise = localise_embedding};
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
