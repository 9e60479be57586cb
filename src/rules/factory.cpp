// SPDX-License-Identifier: Apache-2.0
// New tensors shaped after a mesh tensor: zeros_like, empty_like, new_zeros and their kin.
#include <ATen/ops/empty_strided.h>

#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

/// The state that an optimizer keeps for a parameter lies as the plan says. That is no offer but an order: it replaces
/// the replicated row too.
bool state_rows(const OpCall& call, int axis, Rows& rows) {
  if (call.tensor(0).state_placements == nullptr) return false;
  const Placement placement = (*call.tensor(0).state_placements)[axis];
  rows.clear();
  add_row(call, rows, {placement}, {placement});
  return true;
}

/// The prototype is only looked at, so it stays where it lies; the new tensor lies like it.
void like_rows(const OpCall& call, int axis, Rows& rows) {
  if (state_rows(call, axis, rows)) return;
  const Placement placement = call.tensor(0).placements[axis];
  add_row(call, rows, {placement}, {placement.is_partial() ? R : placement});
}

/// Undefined contents may be called partial too, which lets a copy of a partial sum stay partial.
void empty_rows(const OpCall& call, int axis, Rows& rows) {
  if (state_rows(call, axis, rows)) return;
  const Placement placement = call.tensor(0).placements[axis];
  add_row(call, rows, {placement}, {placement});
}

Sizes size_argument(const OpCall& call) {
  const auto list = call.named("size").toDimVector();
  return {list.begin(), list.end()};
}

bool same_sizes(const OpCall& call) { return call.tensor(0).sizes == at::IntArrayRef(size_argument(call)); }

void new_rows(const OpCall& call, int axis, Rows& rows) {
  const Placement placement = call.tensor(0).placements[axis];
  add_row(call, rows, {placement}, {same_sizes(call) && placement.is_shard() ? placement : R});
}

void new_empty_rows(const OpCall& call, int axis, Rows& rows) {
  const Placement placement = call.tensor(0).placements[axis];
  add_row(call, rows, {placement}, {same_sizes(call) ? placement : R});
}

std::vector<Sizes> new_output_sizes(const OpCall& call) { return {size_argument(call)}; }

void localise_new(const OpCall& call, Decision& decision) {
  const Sizes global = size_argument(call);
  decision.edits.emplace_back(call.index_of("size"),
                              int_list(tensor::local_sizes(global, decision.outputs[0], call.mesh)));
}

void localise_new_strided(const OpCall& call, Decision& decision) {
  localise_new(call, decision);
  if (!shards_any(decision.outputs[0])) return;
  const auto strides = call.named("stride").toDimVector();
  const Sizes global = size_argument(call);
  const Sizes local = tensor::local_sizes(global, decision.outputs[0], call.mesh);
  const Sizes local_strides = tensor::dense_strides(local, tensor::memory_order(global, strides));
  decision.edits.emplace_back(call.index_of("stride"), int_list(local_strides));
}

}  // namespace

void add_factory_rules(RuleTable& table) {
  for (const char* name : {"aten::zeros_like", "aten::ones_like", "aten::full_like"}) {
    table[name] = {.rows = like_rows, .cuts = Cuts::kAny};
  }
  table["aten::empty_like"] = {.rows = empty_rows, .cuts = Cuts::kAny};
  for (const char* name : {"aten::new_zeros", "aten::new_ones", "aten::new_full"}) {
    table[name] = {.rows = new_rows, .localise = localise_new, .output_sizes = new_output_sizes, .cuts = Cuts::kAny};
  }
  table["aten::new_empty"] = {.rows = new_empty_rows, .localise = localise_new, .output_sizes = new_output_sizes, .cuts = Cuts::kAny};
  table["aten::new_empty_strided"] = {
      .rows = new_empty_rows, .localise = localise_new_strided, .output_sizes = new_output_sizes, .cuts = Cuts::kAny};
}

}  // namespace tessera::rules
