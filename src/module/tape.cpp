// SPDX-License-Identifier: Apache-2.0
// Recording: every call runs on the meta device, which works out sizes and touches no memory; where it cannot, on ordinary
// tensors that stand in for a moment.
#include "module/tape.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <functional>
#include <set>

#include "tessera/base/error.h"

namespace tessera::module {
namespace {

bool is_written(const c10::Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

/// Device arguments: "device" of factories and of to().
bool is_device(const c10::Argument& argument) {
  c10::TypePtr type = argument.type();
  if (const auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
  return type->kind() == c10::TypeKind::DeviceObjType;
}

bool returns_tensor(const c10::FunctionSchema& schema) {
  return std::any_of(schema.returns().begin(), schema.returns().end(), [](const c10::Argument& result) {
    return result.type()->kind() == c10::TypeKind::TensorType || result.type()->kind() == c10::TypeKind::ListType;
  });
}

at::Tensor without_memory(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.is_meta()) return tensor;
  return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kMeta));
}

void refuse_generator(const c10::OperatorHandle& op, const std::vector<c10::IValue>& arguments) {
  const auto& schema = op.schema();
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    check<ConfigError>(
        schema.arguments()[i].name() != "generator" || arguments[i].isNone(),
        "build: {} draws from a torch::Generator, which knows nothing of the mesh; pass none, and seed the "
        "mesh with tessera::manual_seed",
        schema.name());
  }
}

/// Operators whose results have sizes that follow from values, or that are numbers.
bool depends_on_values(const c10::OperatorHandle& op) {
  return op.hasTag(at::Tag::data_dependent_output) || op.hasTag(at::Tag::dynamic_output_shape) ||
         !returns_tensor(op.schema());
}

/// What is computed for a moment: tables and masks are far below, large weights are not.
constexpr std::size_t kMaxStandInBytes = std::size_t{64} << 20;

/// Bytes between the first and the last element.
std::size_t extent_bytes(const at::Tensor& tensor) {
  std::int64_t elements = tensor.numel() == 0 ? 0 : 1;
  for (std::int64_t dim = 0; elements > 0 && dim < tensor.dim(); ++dim) {
    elements += (tensor.size(dim) - 1) * tensor.stride(dim);
  }
  return static_cast<std::size_t>(elements) * tensor.element_size();
}

/// Runs a call on ordinary tensors in place of those without memory. LibTorch has no meta kernel for many operators outside
/// of Python.
class StandIns {
 public:
  /// An ordinary tensor for one without memory, the k-th of the call.
  using Make = std::function<at::Tensor(const at::Tensor&, std::size_t)>;

  StandIns(const c10::OperatorHandle& op, const torch::jit::Stack& arguments, const Make& make) : op_(op) {
    replace_tensors(op.schema(), arguments, stack_, [&](const at::Tensor& tensor) {
      pairs_.emplace_back(tensor, tensor.defined() ? make(tensor, pairs_.size()) : tensor);
      return pairs_.back().second;
    });
    for (c10::IValue& value : stack_) {
      if (value.isDevice()) value = c10::Device(at::kCPU);
    }
  }

  /// The results, without memory.
  [[nodiscard]] torch::jit::Stack run() {
    op_.callBoxed(stack_);
    torch::jit::Stack results;
    for (const c10::IValue& value : stack_) {
      if (value.isTensor()) {
        results.emplace_back(without_stand_in(value.toTensor()));
      } else if (value.isTensorList()) {
        std::vector<at::Tensor> list;
        for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(without_stand_in(tensor));
        results.emplace_back(std::move(list));
      } else {
        results.push_back(value);
      }
    }
    return results;
  }

 private:
  /// An argument that was written, a view of an argument, or a tensor of its own.
  at::Tensor without_stand_in(const at::Tensor& result) const {
    if (!result.defined()) return result;
    for (const auto& [tensor, made] : pairs_) {
      if (!made.defined() || tensor.is_same(made)) continue;
      if (result.is_same(made)) return tensor.sizes() == result.sizes() ? tensor : tensor.resize_(result.sizes());
      if (result.is_alias_of(made)) {
        return tensor.as_strided(result.sizes(), result.strides(),
                                 tensor.storage_offset() + result.storage_offset() - made.storage_offset());
      }
    }
    return without_memory(result);
  }

  const c10::OperatorHandle& op_;
  torch::jit::Stack stack_;
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs_;
};

[[noreturn]] void refuse_values(const c10::OperatorHandle& op, const c10::Error& error) {
  const std::string reason = error.what_without_backtrace();
  throw ConfigError(
      fmt::format("build: {} needs the values of tensors that have no memory yet ({}); do it after "
                  "tessera::build, or with tensors made before it",
                  op.schema().name(), reason.substr(0, reason.find('\n'))));
}

/// Sizes and strides are the same whatever the values are: all are `number`.
torch::jit::Stack run_on_equal_numbers(const c10::OperatorHandle& op, const torch::jit::Stack& arguments,
                                       double number) {
  std::size_t bytes = 0;
  return StandIns(op, arguments,
                  [&](const at::Tensor& tensor, std::size_t) {
                    bytes += extent_bytes(tensor);
                    check<ConfigError>(
                        bytes <= kMaxStandInBytes,
                        "build: the sizes that {} gives are found by computing it, and its tensors have more than {} "
                        "MiB; do it after tessera::build",
                        op.schema().name(), kMaxStandInBytes >> 20);
                    const auto elements = static_cast<std::int64_t>(extent_bytes(tensor) / tensor.element_size());
                    return at::full({elements}, number, tensor.options().device(at::kCPU).requires_grad(false))
                        .as_strided(tensor.sizes(), tensor.strides());
                  })
      .run();
}

/// Zeros, or ones where zeros have no quotient or inverse.
torch::jit::Stack run_on_any_numbers(const c10::OperatorHandle& op, const torch::jit::Stack& arguments) {
  try {
    return run_on_equal_numbers(op, arguments, 0);
  } catch (const c10::Error&) {
  }
  try {
    return run_on_equal_numbers(op, arguments, 1);
  } catch (const c10::Error& error) {
    refuse_values(op, error);
  }
}

/// True if the values of its results are no one's yet, or those of the mesh's generator.
bool has_no_values_of_its_own(const c10::OperatorHandle& op) {
  return op.hasTag(at::Tag::nondeterministic_seeded) || op.schema().name().starts_with("aten::empty");
}

}  // namespace

Tape::Place Tape::place_of(const at::Tensor& tensor) {
  return {tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl(), tensor.scalar_type(),
          tensor.storage_offset(), tensor.sizes().vec(), tensor.strides().vec()};
}

bool Tape::knows(const at::Tensor& tensor) const {
  return tensor.defined() && tensor.is_meta() &&
         storages_.contains(tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl());
}

ValueId Tape::find(const at::Tensor& tensor) const {
  if (!knows(tensor)) return -1;
  const auto found = places_.find(place_of(tensor));
  return found == places_.end() ? -1 : found->second;
}

ValueId Tape::number(const at::Tensor& tensor, bool is_new) {
  const ValueId known = find(tensor);
  if (known >= 0 && !is_new) return known;
  const c10::Storage& storage = tensor.storage();
  storages_.emplace(storage.unsafeGetStorageImpl(), storage);
  values_.push_back(
      {{tensor.sizes().begin(), tensor.sizes().end()}, tensor.scalar_type(), storage.unsafeGetStorageImpl()});
  return places_[place_of(tensor)] = static_cast<ValueId>(values_.size()) - 1;
}

void Tape::number_outputs(RecordedCall& call, torch::jit::Stack& stack, std::size_t first) {
  const auto& returns = call.op.schema().returns();
  for (std::size_t i = 0; i < returns.size(); ++i) {
    const c10::IValue& value = stack[first + i];
    // What is written in place keeps its number, unless its sizes changed.
    const bool is_new = !is_written(returns[i]);
    auto& ids = call.outputs.emplace_back();
    if (value.isTensor() && value.toTensor().defined()) {
      ids.push_back(number(value.toTensor(), is_new));
    } else if (value.isTensorList()) {
      for (const c10::IValue& item : value.toListRef()) ids.push_back(number(item.toTensor(), is_new));
    }
  }
}

void Tape::record(const c10::OperatorHandle& op, torch::jit::Stack& stack) {
  const auto& schema = op.schema();
  const std::size_t first = stack.size() - schema.arguments().size();
  const std::vector<c10::IValue> arguments(stack.begin() + static_cast<std::ptrdiff_t>(first), stack.end());
  RecordedCall call{op, {}, {}, {}};
  bool concerns_us = false;
  bool any_tensor = false;
  bool writes_ordinary = false;
  for_each_tensor(schema, arguments, [&](const at::Tensor& tensor, std::size_t argument) {
    check<ConfigError>(!knows(tensor) || find(tensor) >= 0,
                       "build: {} got a tensor whose sizes were changed behind the dispatcher's back; make it with an "
                       "operator",
                       schema.name());
    call.inputs.push_back(find(tensor));
    concerns_us = concerns_us || call.inputs.back() >= 0;
    any_tensor = any_tensor || tensor.defined();
    writes_ordinary = writes_ordinary || (call.inputs.back() < 0 && is_written(schema.arguments()[argument]));
  });
  const bool is_factory = !any_tensor && returns_tensor(schema) && schema.name().starts_with("aten::");
  if (!concerns_us && !is_factory) {
    op.callBoxed(stack);
    return;
  }
  check<ConfigError>(!writes_ordinary,
                     "build: {} writes what has no memory yet into a tensor that was made before; do it "
                     "after tessera::build",
                     schema.name());
  refuse_generator(op, arguments);
  replace_tensors(schema, arguments, call.arguments,
                  [&](const at::Tensor& tensor) { return knows(tensor) ? at::Tensor() : tensor; });
  std::vector<c10::IValue> shapes;
  replace_tensors(schema, arguments, shapes, without_memory);
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    if (is_device(schema.arguments()[i]) && (is_factory || !shapes[i].isNone())) shapes[i] = c10::Device(at::kMeta);
  }
  stack.erase(stack.begin() + static_cast<std::ptrdiff_t>(first), stack.end());
  const torch::jit::Stack results = results_of(call, shapes);
  stack.insert(stack.end(), results.begin(), results.end());
  number_outputs(call, stack, first);
  if (returns_tensor(schema) || schema.is_mutable()) calls_.push_back(std::move(call));
}

torch::jit::Stack Tape::results_of(const RecordedCall& call, const torch::jit::Stack& shapes) const {
  try {
    torch::jit::Stack stack = shapes;
    call.op.callBoxed(stack);
    return stack;
  } catch (const c10::Error& error) {
    const at::NoGradGuard no_grad;
    const auto values = values_for(call);
    if (values) return StandIns(call.op, shapes, [&](const at::Tensor&, std::size_t k) { return (*values)[k]; }).run();
    if (depends_on_values(call.op)) refuse_values(call.op, error);
    return run_on_any_numbers(call.op, shapes);
  }
}

std::optional<std::vector<const RecordedCall*>> Tape::origin_of(const RecordedCall& call) const {
  std::set<const void*> memory;
  const auto memory_of = [&](ValueId id) { return values_[static_cast<std::size_t>(id)].storage; };
  const auto needs_inputs_of = [&](const RecordedCall& each) {
    for (const ValueId id : each.inputs) {
      if (id >= 0) memory.insert(memory_of(id));
    }
  };
  const auto is_needed = [&](ValueId id) { return id >= 0 && memory.contains(memory_of(id)); };
  needs_inputs_of(call);
  std::vector<const RecordedCall*> origin;
  std::size_t bytes = 0;
  for (auto each = calls_.rbegin(); each != calls_.rend(); ++each) {
    bool counts = each->op.schema().is_mutable() && std::any_of(each->inputs.begin(), each->inputs.end(), is_needed);
    for (const auto& ids : each->outputs) {
      for (const ValueId id : ids) {
        if (!is_needed(id)) continue;
        counts = true;
        const Value& value = values_[static_cast<std::size_t>(id)];
        bytes += static_cast<std::size_t>(c10::multiply_integers(value.sizes)) * c10::elementSize(value.dtype);
      }
    }
    if (!counts) continue;
    if (has_no_values_of_its_own(each->op) || bytes > kMaxStandInBytes) return std::nullopt;
    needs_inputs_of(*each);
    origin.push_back(&*each);
  }
  std::reverse(origin.begin(), origin.end());
  return origin;
}

std::optional<std::vector<at::Tensor>> Tape::values_for(const RecordedCall& call) const {
  const auto origin = origin_of(call);
  if (!origin || has_no_values_of_its_own(call.op)) return std::nullopt;
  std::map<ValueId, at::Tensor> values;
  const auto value_of = [&](ValueId id, const at::Tensor& ordinary) { return id >= 0 ? values.at(id) : ordinary; };
  for (const RecordedCall* each : *origin) {
    torch::jit::Stack stack;
    std::size_t next = 0;
    replace_tensors(each->op.schema(), each->arguments, stack,
                    [&](const at::Tensor& tensor) { return value_of(each->inputs[next++], tensor); });
    for (c10::IValue& argument : stack) {
      if (argument.isDevice()) argument = c10::Device(at::kCPU);
    }
    // t_() and its kin change a handle; other handles of the value keep their sizes.
    if (each->op.hasTag(at::Tag::inplace_view)) stack[0] = stack[0].toTensor().alias();
    each->op.callBoxed(stack);
    for_each_output(*each, stack, [&](ValueId id, const at::Tensor& tensor) { values[id] = tensor; });
  }
  std::vector<at::Tensor> found;
  for_each_tensor(call.op.schema(), call.arguments, [&](const at::Tensor& tensor, std::size_t) {
    found.push_back(value_of(call.inputs[found.size()], tensor));
  });
  return found;
}

}  // namespace tessera::module
