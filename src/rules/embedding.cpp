// SPDX-License-Identifier: Apache-2.0
// Embedding look-ups: sharded over the indices, over the width, or over the vocabulary.
#include <ATen/ops/embedding.h>
#include <ATen/ops/embedding_dense_backward.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros.h>

#include "rules/composites.h"
#include "rules/families.h"
#include "rules/index_range.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

// embedding(weight [V, D], indices [...], ...) -> [..., D]
void embedding_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 1, axis);
  if (dim >= 0) add_row(call, rows, {R, S(dim)}, {S(dim)});
  if (sharded_dim(call, 0, axis) == 1) add_row(call, rows, {S(1), R}, {S(call.tensor(1).dim())});
  if (sharded_dim(call, 0, axis) == 0) add_row(call, rows, {S(0), R}, {P}).counts_places = true;
}

/// Words of other ranks give zeros, so that the sum over ranks has each word once.
/// Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
void compute_words(const c10::OperatorHandle& op, const Decision& decision, const Mesh&, torch::jit::Stack& stack) {
  const auto arguments = pop_arguments(op, stack);
  const IndexRange words{decision.notes[0], decision.notes[1], decision.notes[2]};
  const at::Tensor weight = arguments[0].toTensor();
  const at::Tensor indices = arguments[1].toTensor();
  const at::Tensor here = words.covers(indices);
  words.check_bounds(indices, at::ones_like(here), "embedding");
  if (words.length == 0) {
    std::vector<std::int64_t> sizes = indices.sizes().vec();
    sizes.push_back(weight.size(1));
    stack.emplace_back(at::zeros(sizes, weight.options()));
    return;
  }
  const at::Tensor found = at::embedding(weight, indices.sub(words.begin).clamp_(0, words.length - 1));
  stack.emplace_back(found.mul(here.unsqueeze(-1)));
}

void localise_words(const OpCall& call, Decision& decision) {
  if (axes_cutting(decision.inputs[0], 0) == 0) return;
  const IndexRange words = IndexRange::of(call, decision, 0, 0);
  decision.notes = {words.begin, words.length, words.total};
  decision.compute = compute_words;
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

/// Gradients of a sparse embedding are the same numbers, dense: shards have one layout.
at::Tensor embedding_backward(const at::Tensor& gradient, const at::Tensor& indices, c10::SymInt num_weights,
                              c10::SymInt padding_idx, bool scale_grad_by_freq, bool /*sparse*/) {
  return at::embedding_dense_backward_symint(gradient, indices, std::move(num_weights), std::move(padding_idx),
                                             scale_grad_by_freq);
}
void localise_sparse_bags(const OpCall& call, Decision& decision) {
  if (call.named("sparse").toBool()) decision.edits.emplace_back(call.index_of("sparse"), false);
}

constexpr std::int64_t kMaximumOfBag = 2;

/// Per output element the index that won, in bags that take the maximum; else one number per bag.
Placement winners_placement(const OpCall& call) { return call.named("mode").toInt() == kMaximumOfBag ? S(1) : R; }

/// CUDA's kernels read beyond a table without columns.
bool can_cut_columns(const OpCall& call, int axis) {
  return sharded_dim(call, 0, axis) == 1 && leaves_no_rank_empty(call, call.tensor(0), 1, axis);
}

// _embedding_bag(weight [V, D], indices, offsets, ..., mode, ..., per_sample_weights?, ...)
//   -> (output [B, D], offset2bag, bag_size, maximum_indices)
void embedding_bag_rows(const OpCall& call, int axis, Rows& rows) {
  if (can_cut_columns(call, axis)) add_row(call, rows, {S(1)}, {S(1), R, R, winners_placement(call)});
}

// _embedding_bag_backward(grad [B, D], indices, offsets, offset2bag, bag_size, maximum_indices, ...) -> [V, D];
// _embedding_bag_dense_backward is the same without offsets
void embedding_bag_backward_rows(const OpCall& call, int axis, Rows& rows) {
  if (!can_cut_columns(call, axis)) return;
  Row row;
  row.inputs.resize(call.tensors.size());
  row.inputs[0] = S(1);
  row.inputs[static_cast<std::size_t>(call.index_of("maximum_indices"))] = winners_placement(call);
  row.outputs = {S(1)};
  rows.push_back(std::move(row));
}

// _embedding_bag_per_sample_weights_backward(grad [B, D], weight [V, D], indices, offsets, offset2bag, ...) -> [n]
void sample_weight_rows(const OpCall& call, int axis, Rows& rows) {
  const bool follows = contains(sharded_dims(call, axis), 1);
  if (follows && leaves_no_rank_empty(call, call.tensor(0), 1, axis)) add_row(call, rows, {S(1), S(1)}, {P});
}

}  // namespace

void add_embedding_rules(RuleTable& table) {
  table["aten::embedding"] = {.rows = embedding_rows, .localise = localise_words, .follows_plan_output = true, .cuts = Cuts::kAny};
  table["aten::embedding_dense_backward"] = {.rows = embedding_backward_rows, .cuts = Cuts::kAny};
  for (const char* name : {"aten::_embedding_bag", "aten::_embedding_bag_forward_only"}) {
    table[name] = {.rows = embedding_bag_rows};
  }
  table["aten::_embedding_bag_backward"] = {.rows = embedding_bag_backward_rows, .localise = localise_sparse_bags};
  table["aten::_embedding_bag_dense_backward"] = {.rows = embedding_bag_backward_rows};
  table["aten::_embedding_bag_per_sample_weights_backward"] = {.rows = sample_weight_rows};
}

void add_embedding_composites(torch::Library& library) { library.impl("embedding_backward", embedding_backward); }

}  // namespace tessera::rules
