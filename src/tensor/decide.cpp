// SPDX-License-Identifier: Apache-2.0
// From rows to a decision: the cheapest legal row on every axis.
#include "tensor/decide.h"

#include <algorithm>
#include <limits>

#include "tensor/redistribute.h"
#include "tensor/stage_choice.h"
#include "tessera/base/error.h"

namespace tessera::tensor {
namespace {

/// Row 0: always legal.
Row replicated_row(const OpCall& call) {
  Row row;
  row.inputs.resize(call.tensors.size());
  row.outputs.resize(static_cast<std::size_t>(call.num_outputs()));
  return row;
}

/// Bytes of tensor `index` on a rank if `axis` did not cut it.
double bytes_without(const OpCall& call, std::size_t index, int axis) {
  const TensorArg& tensor = call.tensors[index];
  double bytes = static_cast<double>(tensor.bytes);
  for (int other = 0; other < tensor.placements.size(); ++other) {
    if (other != axis && tensor.placements[other].is_shard()) bytes /= call.mesh.axis_size(other);
  }
  return bytes;
}

/// What bringing the inputs to where a row wants them costs.
struct InputBytes {
  double moved = 0;
  double gathered_for_use = 0;  ///< parameters that are sharded to save memory only: no price at all, but for ties
};

InputBytes input_bytes(const OpCall& call, const Row& row, int axis) {
  InputBytes bytes;
  for (std::size_t i = 0; i < call.tensors.size(); ++i) {
    const TensorArg& tensor = call.tensors[i];
    if (!tensor.defined) continue;
    const double here = redistribution_bytes(tensor.placements[axis], row.inputs[i], bytes_without(call, i, axis),
                                             call.mesh.axis_size(axis));
    const bool for_use =
        row.inputs[i].is_replicate() && (tensor.gathered_at_use >> static_cast<unsigned>(axis) & 1U) != 0;
    (for_use ? bytes.gathered_for_use : bytes.moved) += here;
  }
  return bytes;
}

double largest_input_bytes(const OpCall& call, int axis) {
  double largest = 0;
  for (std::size_t i = 0; i < call.tensors.size(); ++i) {
    if (call.tensors[i].defined) largest = std::max(largest, bytes_without(call, i, axis));
  }
  return largest;
}

/// An in-place operator's result goes back to where `self` lies; a partial sum that was reduced stays reduced.
double write_back_bytes(const OpCall& call, const Row& row, int axis) {
  if (!call.in_place || row.outputs.empty()) return 0;
  const Placement home = call.tensors[0].placements[axis];
  if (home.is_partial() && row.outputs[0].is_replicate()) return 0;
  return redistribution_bytes(row.outputs[0], home, bytes_without(call, 0, axis), call.mesh.axis_size(axis));
}

/// Bytes, then bytes gathered for this use: compared in that order.
using Cost = std::pair<double, double>;

/// Bytes moved now, and bytes that partial outputs will cost when somebody reads them. A row that moves nothing now
/// wins over any other: the later reduction may never be needed, or be shared.
Cost row_cost(const OpCall& call, const Row& row, int axis) {
  const InputBytes inputs = input_bytes(call, row, axis);
  double bytes = inputs.moved + write_back_bytes(call, row, axis);
  if (bytes == 0) return {0, inputs.gathered_for_use};
  for (const Placement& output : row.outputs) {
    if (!output.is_partial()) continue;
    bytes += redistribution_bytes(output, Replicate(), largest_input_bytes(call, axis), call.mesh.axis_size(axis));
  }
  return {bytes, inputs.gathered_for_use};
}

/// A row may cut a dim only if the tensor has it.
bool cuts_exist(const OpCall& call, const Row& row) {
  for (std::size_t i = 0; i < call.tensors.size(); ++i) {
    if (call.tensors[i].defined && row.inputs[i].is_shard() && row.inputs[i].dim >= call.tensors[i].dim()) return false;
  }
  return true;
}

/// What an in-place operator leaves lies as what it was given.
bool writes_where_it_reads(const OpCall& call, const Row& row) {
  return !call.in_place || row.outputs[0] == row.inputs[0];
}

bool has_cuts(const OpCall& call, int axis) {
  return std::any_of(call.tensors.begin(), call.tensors.end(), [&](const TensorArg& tensor) {
    return tensor.defined && tensor.placements[axis].is_shard() && !tensor.placements[axis].cut.is_plain();
  });
}

/// The call as if all shards were plain.
OpCall without_cuts(const OpCall& call) {
  OpCall result = call;
  for (TensorArg& tensor : result.tensors) {
    for (int axis = 0; axis < tensor.placements.size(); ++axis) tensor.placements[axis].cut = {};
  }
  return result;
}

/// A row cuts one logical dim, wherever it shows up; where sizes tell that it is not one, nothing is known.
bool cuts_one_size(const OpCall& call, const Row& row) {
  std::int64_t size = -1;
  for (std::size_t i = 0; i < call.tensors.size(); ++i) {
    if (!call.tensors[i].defined || !row.inputs[i].is_shard()) continue;
    const std::int64_t own = call.tensors[i].sizes[static_cast<std::size_t>(row.inputs[i].dim)];
    if (size >= 0 && own != size) return false;
    size = own;
  }
  return true;
}

Row with_cut(Row row, const Cut& cut) {
  const auto dress = [&](auto& placements) {
    for (Placement& placement : placements) {
      if (placement.is_shard()) placement.cut = cut;
    }
  };
  dress(row.inputs);
  dress(row.outputs);
  return row;
}

/// Appends to `rows`, which cut plainly, those that cut as some input lies along the dim that its row cuts.
void add_rows_with_cuts(const OpCall& call, int axis, Rows& rows) {
  const std::size_t count = rows.size();
  for (std::size_t k = 0; k < count; ++k) {
    if (rows[k].counts_places || !cuts_exist(call, rows[k]) || !cuts_one_size(call, rows[k])) continue;
    c10::SmallVector<Cut, 2> seen;
    for (std::size_t i = 0; i < call.tensors.size(); ++i) {
      const Placement& here = call.tensors[i].placements[axis];
      const Placement& wanted = rows[k].inputs[i];
      const bool follows = call.tensors[i].defined && wanted.is_shard() && here.is_shard(wanted.dim);
      if (!follows || here.cut.is_plain() || !wanted.cut.is_plain()) continue;
      if (std::find(seen.begin(), seen.end(), here.cut) != seen.end()) continue;
      seen.push_back(here.cut);
      rows.push_back(with_cut(rows[k], here.cut));
    }
  }
}

void offer_rows(const OpCall& call, const Rule& rule, int axis, Rows& rows) {
  if (rule.cuts == Cuts::kSeen || !has_cuts(call, axis)) {
    rule.rows(call, axis, rows);
    return;
  }
  rule.rows(without_cuts(call), axis, rows);
  if (rule.cuts == Cuts::kAny) add_rows_with_cuts(call, axis, rows);
}

Row choose_row(const OpCall& call, const Rule* rule, int axis) {
  Rows rows{replicated_row(call)};
  if (rule != nullptr && rule->rows != nullptr) offer_rows(call, *rule, axis, rows);
  const Row* best = nullptr;
  Cost best_cost{std::numeric_limits<double>::infinity(), 0};
  for (const Row& row : rows) {
    if (!cuts_exist(call, row) || !writes_where_it_reads(call, row)) continue;
    const Cost cost = row_cost(call, row, axis);
    if (cost < best_cost) {
      best = &row;
      best_cost = cost;
    }
  }
  return *best;
}

void refuse_if_strict(const OpCall& call) {
  check<ShapeError>(!call.mesh.options().strict,
                    "operator {} has no rule and would run gathered and replicated on mesh {}; leave strict mode or "
                    "keep its inputs replicated",
                    call.schema.name(), call.mesh.to_string());
}

/// Lying on a stage is not being spread: the operator runs whole there.
bool any_spread(const OpCall& call) {
  for (const TensorArg& tensor : call.tensors) {
    if (!tensor.defined) continue;
    for (const Placement& placement : tensor.placements) {
      if (!placement.is_replicate() && !placement.is_stage()) return true;
    }
  }
  return false;
}

/// The sharded dim of some input that `output` follows on `axis`: its global size is that of the input's dim.
std::int64_t followed_size(const OpCall& call, const Decision& decision, int axis) {
  for (std::size_t i = 0; i < call.tensors.size(); ++i) {
    const Placement placement = decision.inputs[i][axis];
    if (call.tensors[i].defined && placement.is_shard()) {
      return call.tensors[i].sizes[static_cast<std::size_t>(placement.dim)];
    }
  }
  return -1;
}

Sizes follow_inputs(const OpCall& call, const Decision& decision, const Placements& placements, at::IntArrayRef local) {
  Sizes sizes(local.begin(), local.end());
  for (int axis = 0; axis < placements.size(); ++axis) {
    if (!placements[axis].is_shard()) continue;
    sizes[static_cast<std::size_t>(placements[axis].dim)] = followed_size(call, decision, axis);
  }
  return sizes;
}

/// Chooses on every axis and puts the axes together.
void choose_rows(const OpCall& call, const Rule* rule, Decision& decision) {
  const int num_axes = call.mesh.num_axes();
  decision.inputs.resize(call.tensors.size(), Placements::replicated(num_axes));
  decision.outputs.resize(static_cast<std::size_t>(call.num_outputs()), Placements::replicated(num_axes));
  OpCall asked = call;
  asked.decided = &decision.inputs;
  for (int axis = 0; axis < num_axes; ++axis) {
    if (call.mesh.axis_size(axis) == 1 || (call.stages != nullptr && axis == call.stages->axis())) continue;
    const Row row = choose_row(asked, rule, axis);
    for (std::size_t i = 0; i < row.inputs.size(); ++i) decision.inputs[i][axis] = row.inputs[i];
    for (std::size_t i = 0; i < row.outputs.size(); ++i) decision.outputs[i][axis] = row.outputs[i];
  }
}

bool is_list(const OpCall& call, std::size_t index) { return call.argument(call.tensors[index].argument).isList(); }

/// Which tensors make up call `element` of an operator on lists: that element of each list, and what is in no list.
c10::SmallVector<std::size_t, 8> members_of(const OpCall& call, std::size_t element) {
  c10::SmallVector<std::size_t, 8> members;
  std::size_t position = 0;
  for (std::size_t i = 0; i < call.tensors.size(); ++i) {
    position = i > 0 && call.tensors[i].argument == call.tensors[i - 1].argument ? position + 1 : 0;
    if (position == element || !is_list(call, i)) members.push_back(i);
  }
  return members;
}

OpCall call_of_element(const OpCall& call, const c10::SmallVector<std::size_t, 8>& members) {
  OpCall result{call.schema, call.mesh, {}, call.arguments, call.in_place};
  for (const std::size_t member : members) {
    result.tensors.push_back(call.tensors[member]);
    // What all elements share lies in one way for all of them.
    if (!is_list(call, member)) result.tensors.back().placements = Placements::replicated(call.mesh.num_axes());
  }
  return result;
}

std::size_t count_elements(const OpCall& call) {
  const auto same = [&](const TensorArg& tensor) { return tensor.argument == call.tensors[0].argument; };
  return static_cast<std::size_t>(std::count_if(call.tensors.begin(), call.tensors.end(), same));
}

void choose_per_element(const OpCall& call, const Rule& rule, Decision& decision) {
  const int num_axes = call.mesh.num_axes();
  decision.inputs.resize(call.tensors.size(), Placements::replicated(num_axes));
  decision.outputs.resize(static_cast<std::size_t>(call.num_outputs()), Placements::replicated(num_axes));
  for (std::size_t k = 0; k < count_elements(call); ++k) {
    const auto members = members_of(call, k);
    Decision element;
    choose_rows(call_of_element(call, members), &rule, element);
    for (std::size_t i = 0; i < members.size(); ++i) {
      if (is_list(call, members[i])) decision.inputs[members[i]] = element.inputs[i];
    }
    decision.elements.push_back(std::move(element));
  }
}

/// Global sizes of the elements of list `output`.
void fill_element_sizes(const OpCall& call, Decision& decision, std::size_t output,
                        c10::ArrayRef<c10::IValue> local_elements) {
  for (std::size_t k = 0; k < local_elements.size(); ++k) {
    Decision& element = decision.elements[k];
    element.output_sizes.resize(element.outputs.size());
    element.output_sizes[output] = follow_inputs(call_of_element(call, members_of(call, k)), element,
                                                 element.outputs[output], local_elements[k].toTensor().sizes());
  }
}

}  // namespace

int OpCall::index_of(const char* name) const {
  for (std::size_t i = 0; i < schema.arguments().size(); ++i) {
    if (schema.arguments()[i].name() == name) return static_cast<int>(i);
  }
  return -1;
}

Decision decide(const OpCall& call, const Rule* rule) {
  Decision decision;
  decision.fallback = rule == nullptr && any_spread(call);
  if (decision.fallback) refuse_if_strict(call);
  if (rule != nullptr && rule->per_element) {
    choose_per_element(call, *rule, decision);
  } else {
    choose_rows(call, rule, decision);
  }
  if (call.stages != nullptr) choose_stages(call, decision);
  if (rule != nullptr && rule->localise != nullptr) rule->localise(call, decision);
  return decision;
}

void fill_output_sizes(const OpCall& call, const Rule* rule, Decision& decision,
                       c10::ArrayRef<c10::IValue> local_outputs) {
  const bool stated = rule != nullptr && rule->output_sizes != nullptr;
  std::vector<Sizes> sizes = stated ? rule->output_sizes(call) : std::vector<Sizes>{};
  sizes.resize(local_outputs.size());
  for (std::size_t i = 0; i < local_outputs.size(); ++i) {
    if (!decision.elements.empty() && local_outputs[i].isTensorList()) {
      fill_element_sizes(call, decision, i, local_outputs[i].toListRef());
    } else if (local_outputs[i].isTensorList() && !local_outputs[i].toListRef().empty() && sizes[i].empty()) {
      const at::Tensor& first = local_outputs[i].toListRef()[0].toTensor();
      sizes[i] = follow_inputs(call, decision, decision.outputs[i], first.sizes());
    }
    if (!local_outputs[i].isTensor() || !local_outputs[i].toTensor().defined()) continue;
    const at::Tensor& local = local_outputs[i].toTensor();
    if (!stated || sizes[i].size() != static_cast<std::size_t>(local.dim())) {
      sizes[i] = follow_inputs(call, decision, decision.outputs[i], local.sizes());
    }
    const Sizes expected = local_sizes(sizes[i], decision.outputs[i], call.mesh);
    check<Error>(local.sizes() == at::IntArrayRef(expected),
                 "{}: output {} of rank {} has local sizes [{}], but its rule says [{}] of [{}]; the rule is wrong",
                 call.schema.name(), i, call.mesh.rank(), fmt::join(local.sizes(), ", "), fmt::join(expected, ", "),
                 fmt::join(sizes[i], ", "));
  }
  decision.output_sizes = std::move(sizes);
  decision.sizes_known = true;
}

}  // namespace tessera::tensor
