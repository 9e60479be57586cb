// SPDX-License-Identifier: Apache-2.0
// Playing a tape on a mesh.
#include "module/replay.h"

#include <ATen/core/enum_tag.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <array>

#include "tensor/mesh_storage.h"
#include "tensor/operator_info.h"
#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera::module {
namespace {

template <class Names>
bool is_one_of(const std::string& name, const Names& names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// The argument of that name, none if there is no such.
c10::IValue argument(const RecordedCall& call, const char* name) {
  for (std::size_t i = 0; i < call.arguments.size(); ++i) {
    if (call.op.schema().arguments()[i].name() == name) return call.arguments[i];
  }
  return {};
}

double number(const RecordedCall& call, const char* name, double otherwise) {
  const c10::IValue value = argument(call, name);
  return value.isNone() ? otherwise : value.toScalar().toDouble();
}

/// True if the factory's values are the same all over, or none yet, so that a shard can be made alone.
bool fill_alike(const RecordedCall& call, const at::Tensor& local) {
  const std::string& name = call.op.schema().name();
  if (name == "aten::zeros") {
    local.zero_();
  } else if (name == "aten::ones") {
    local.fill_(1);
  } else if (name == "aten::full" || name == "aten::scalar_tensor") {
    local.fill_(argument(call, name == "aten::full" ? "fill_value" : "s").toScalar());
  } else {
    return is_one_of(name, std::array{"aten::empty", "aten::empty_strided"});
  }
  return true;
}

/// True if the factory is random and its values were drawn, by element.
bool fill_randomly(const RecordedCall& call, const at::Tensor& tensor) {
  const std::string& name = call.op.schema().name();
  if (name == "aten::rand") {
    tensor.uniform_();
  } else if (name == "aten::randn") {
    tensor.normal_();
  } else if (name == "aten::normal") {
    tensor.normal_(number(call, "mean", 0), number(call, "std", 1));
  } else if (name == "aten::randint") {
    const c10::IValue low = argument(call, "low");
    tensor.random_(low.isNone() ? 0 : low.toInt(), argument(call, "high").toInt());
  } else {
    return false;
  }
  return true;
}

bool is_random(const c10::OperatorHandle& op) { return op.hasTag(at::Tag::nondeterministic_seeded); }

bool only_writes_out(const RecordedCall& call) {
  bool any_input = false;
  bool any_out = false;
  std::size_t next = 0;
  for_each_tensor(call.op.schema(), call.arguments, [&](const at::Tensor&, std::size_t index) {
    const bool is_out = call.op.schema().arguments()[index].is_out();
    any_out = any_out || is_out;
    any_input = any_input || (!is_out && call.inputs[next] >= 0);
    ++next;
  });
  return any_out && !any_input;
}

}  // namespace

Replay::Replay(const Tape& tape, const Mesh& mesh, const std::map<ValueId, Placements>& wanted)
    : tape_(tape), mesh_(mesh), wanted_(wanted), played_(tape.values().size()) {
  spread_placements();
  find_last_uses();
}

/// Backwards: what a tensor was made of, if it has the same sizes, had better lie like it.
void Replay::spread_placements() {
  std::vector<std::optional<Placements>> chosen(tape_.values().size());
  for (const auto& [id, placements] : wanted_) chosen[static_cast<std::size_t>(id)] = placements;
  const auto& values = tape_.values();
  for (auto call = tape_.calls().rbegin(); call != tape_.calls().rend(); ++call) {
    std::vector<ValueId> ids;
    for (const auto& output : call->outputs) ids.insert(ids.end(), output.begin(), output.end());
    ids.insert(ids.end(), call->inputs.begin(), call->inputs.end());
    std::erase(ids, -1);
    for (const ValueId from : ids) {
      const auto source = static_cast<std::size_t>(from);
      if (!chosen[source]) continue;
      for (const ValueId to : ids) {
        const auto target = static_cast<std::size_t>(to);
        if (!chosen[target] && values[target].sizes == values[source].sizes) chosen[target] = chosen[source];
      }
    }
  }
  for (const auto& choice : chosen) {
    placements_.push_back(choice.value_or(Placements::replicated(mesh_.num_axes())));
  }
}

void Replay::find_last_uses() {
  last_use_.resize(tape_.values().size(), 0);
  for (std::size_t i = 0; i < tape_.calls().size(); ++i) {
    const RecordedCall& call = tape_.calls()[i];
    for (const ValueId id : call.inputs) {
      if (id >= 0) last_use_[static_cast<std::size_t>(id)] = i;
    }
    for (const auto& output : call.outputs) {
      for (const ValueId id : output) last_use_[static_cast<std::size_t>(id)] = i;
    }
  }
}

void Replay::run() {
  const at::NoGradGuard no_grad;
  const auto& calls = tape_.calls();
  std::vector<std::vector<ValueId>> ends(calls.size());
  for (std::size_t id = 0; id < last_use_.size(); ++id) {
    if (!wanted_.contains(static_cast<ValueId>(id))) ends[last_use_[id]].push_back(static_cast<ValueId>(id));
  }
  for (std::size_t i = 0; i < calls.size(); ++i) {
    play(calls[i]);
    for (const ValueId id : ends[i]) keep(id, {});
  }
}

at::Tensor Replay::whole(ValueId id) const {
  const Played& played = played_[static_cast<std::size_t>(id)];
  return played.cut ? played.cut->read() : played.tensor;
}

at::Tensor Replay::value(ValueId id) const {
  const at::NoGradGuard no_grad;
  const at::Tensor tensor = whole(id);
  const Placements& target = wanted_.at(id);
  bool lies_there = true;
  for (int axis = 0; axis < target.size(); ++axis) {
    const bool counts = mesh_.axis_size(axis) > 1;
    lies_there = lies_there && (!counts || tessera::placements(tensor)[axis] == target[axis]);
  }
  return lies_there ? tensor : redistribute(tensor, target);
}

std::vector<c10::IValue> Replay::arguments_of(const RecordedCall& call) const {
  std::vector<c10::IValue> arguments;
  std::size_t next = 0;
  replace_tensors(call.op.schema(), call.arguments, arguments, [&](const at::Tensor& tensor) {
    const ValueId id = call.inputs[next++];
    return id >= 0 ? whole(id) : tensor;
  });
  for (c10::IValue& value : arguments) {
    if (value.isDevice()) value = mesh_.device();
  }
  return arguments;
}

void Replay::play(const RecordedCall& call) {
  if (std::all_of(call.inputs.begin(), call.inputs.end(), [](ValueId id) { return id < 0; })) {
    play_factory(call);
    return;
  }
  if (play_views_of_cut_dim(call) || play_write_through_cut(call)) return;
  if (only_writes_out(call)) {
    play_into_plain(call);
    return;
  }
  torch::jit::Stack stack = arguments_of(call);
  // t_() and its kin change a handle; other handles of the value keep their sizes.
  if (call.op.hasTag(at::Tag::inplace_view)) stack[0] = tensor::share(stack[0].toTensor());
  call.op.callBoxed(stack);
  for_each_output(call, stack, [&](ValueId id, const at::Tensor& tensor) { keep_on_mesh(id, tensor, call); });
}

/// Some composites make their result of a plain tensor, the same on every rank.
void Replay::keep_on_mesh(ValueId id, const at::Tensor& tensor, const RecordedCall& call) {
  const tensor::Sizes& sizes = tape_.values()[static_cast<std::size_t>(id)].sizes;
  check<ConfigError>(tensor.sizes() == at::IntArrayRef(sizes),
                     "build: {} gives [{}], which depends on values; without them it was taken for [{}]; do it before "
                     "tessera::build",
                     call.op.schema().name(), fmt::join(tensor.sizes(), ", "), fmt::join(sizes, ", "));
  keep(id, is_mesh_tensor(tensor) ? tensor : distribute(tensor, mesh_, placements_of(id)));
}

void Replay::play_factory(const RecordedCall& call) {
  for (const auto& ids : call.outputs) {
    check<ConfigError>(ids.size() == 1 && call.outputs.size() == 1,
                       "build: {} makes several tensors at once; do it before tessera::build", call.op.schema().name());
  }
  const ValueId id = call.outputs[0][0];
  const Value& value = tape_.values()[static_cast<std::size_t>(id)];
  const auto options = at::TensorOptions(value.dtype).device(mesh_.device());
  const at::Tensor local = at::empty(tensor::local_sizes(value.sizes, placements_of(id), mesh_), options);
  const at::Tensor result = from_local(local, mesh_, placements_of(id), value.sizes);
  if (!fill_alike(call, local) && !fill_randomly(call, result)) {
    check<ConfigError>(
        !is_random(call.op),
        "build: {} draws numbers in an order that a mesh cannot keep; make the tensor before tessera::build, "
        "the same on every rank",
        call.op.schema().name());
    // Its values follow from their places (arange, eye): made whole, once.
    torch::jit::Stack stack = arguments_of(call);
    call.op.callBoxed(stack);
    keep(id, distribute(stack[0].toTensor().to(options), mesh_, placements_of(id)));
    return;
  }
  keep(id, result);
}

bool Replay::play_views_of_cut_dim(const RecordedCall& call) {
  if (call.inputs.size() != 1 || call.outputs.size() != 1) return false;
  const auto& returned = call.op.schema().returns()[0];
  if (returned.alias_info() == nullptr || returned.alias_info()->isWrite()) return false;
  const Played& input = played_[static_cast<std::size_t>(call.inputs[0])];
  const CutView base = input.cut ? *input.cut : CutView(input.tensor);
  std::vector<CutView> views = base.views(call.op, call.arguments);
  const bool any_cut = std::any_of(views.begin(), views.end(), [](const CutView& view) { return view.is_cut(); });
  if (!any_cut || views.size() != call.outputs[0].size()) return false;
  for (std::size_t k = 0; k < views.size(); ++k) {
    played_[static_cast<std::size_t>(call.outputs[0][k])].cut = std::move(views[k]);
  }
  return true;
}

bool Replay::play_write_through_cut(const RecordedCall& call) {
  const auto& arguments = call.op.schema().arguments();
  const c10::AliasInfo* alias = arguments.empty() ? nullptr : arguments[0].alias_info();
  if (alias == nullptr || !alias->isWrite() || arguments[0].is_out()) return false;
  const Played& target = played_[static_cast<std::size_t>(call.inputs[0])];
  if (!target.cut) return false;
  std::vector<c10::IValue> values;
  std::size_t next = 0;
  // The view that is written is not read, so it need not be gathered.
  replace_tensors(call.op.schema(), call.arguments, values, [&](const at::Tensor& tensor) {
    const ValueId id = call.inputs[next++];
    return next == 1 ? at::Tensor() : id >= 0 ? whole(id) : tensor;
  });
  target.cut->write(call.op, std::move(values));
  return true;
}

/// eye.m_out and its kin: nothing but an out= argument. Made whole, once.
void Replay::play_into_plain(const RecordedCall& call) {
  torch::jit::Stack stack;
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;
  replace_tensors(call.op.schema(), arguments_of(call), stack, [&](const at::Tensor& tensor) {
    if (!is_mesh_tensor(tensor)) return tensor;
    copies.emplace_back(tensor, at::empty(tensor.sizes(), tensor.options()));
    return copies.back().second;
  });
  call.op.callBoxed(stack);
  for (const auto& [target, values] : copies) target.copy_(values);
}

}  // namespace tessera::module
