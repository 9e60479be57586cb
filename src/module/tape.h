// SPDX-License-Identifier: Apache-2.0
// What a module's constructor did to tensors without memory, call by call.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <map>
#include <optional>
#include <vector>

#include "tensor/layout.h"

namespace tessera::module {

/// A tensor of the recording, by number.
using ValueId = int;

/// One operator call. Tensors among the arguments, list elements included, are numbered in order.
struct RecordedCall {
  c10::OperatorHandle op;
  std::vector<c10::IValue> arguments;         ///< tensors of the recording are undefined here
  std::vector<ValueId> inputs;                ///< per tensor argument; -1: an ordinary tensor, kept in `arguments`
  std::vector<std::vector<ValueId>> outputs;  ///< per return value; empty if it is no tensor
};

/// Sizes and dtype of a tensor of the recording.
struct Value {
  tensor::Sizes sizes;
  at::ScalarType dtype = at::kFloat;
  const void* storage = nullptr;  ///< it claims to have; views share it
};

class Tape {
 public:
  /// The call whose arguments are on the stack: runs it without memory, leaves its results, and records it if it
  /// concerns tensors of the recording.
  void record(const c10::OperatorHandle& op, torch::jit::Stack& stack);

  /// The number of a tensor of the recording; -1 if it is none.
  [[nodiscard]] ValueId find(const at::Tensor& tensor) const;
  [[nodiscard]] const std::vector<RecordedCall>& calls() const noexcept { return calls_; }
  [[nodiscard]] const std::vector<Value>& values() const noexcept { return values_; }

 private:
  /// Tensors are known by their memory, which they only claim to have, and where they lie in it: handles come and go.
  struct Place {
    const void* storage;
    at::ScalarType dtype;
    std::int64_t offset;
    std::vector<std::int64_t> sizes;
    std::vector<std::int64_t> strides;
    auto operator<=>(const Place&) const = default;
  };
  [[nodiscard]] static Place place_of(const at::Tensor& tensor);
  [[nodiscard]] bool knows(const at::Tensor& tensor) const;
  ValueId number(const at::Tensor& tensor, bool is_new);
  /// What a call gives, without memory; numbers if it reads values that can be known.
  [[nodiscard]] torch::jit::Stack results_of(const RecordedCall& call, const torch::jit::Stack& shapes) const;
  /// The calls, oldest first, that the tensors of `call` come from; nothing if they are large, or drawn by the mesh.
  [[nodiscard]] std::optional<std::vector<const RecordedCall*>> origin_of(const RecordedCall& call) const;
  /// Tensor arguments of `call` as on one device, by doing their origin again; nothing if there is none.
  [[nodiscard]] std::optional<std::vector<at::Tensor>> values_for(const RecordedCall& call) const;
  void number_outputs(RecordedCall& call, torch::jit::Stack& stack, std::size_t first);

  std::vector<RecordedCall> calls_;
  std::vector<Value> values_;
  std::map<Place, ValueId> places_;
  std::map<const void*, c10::Storage> storages_;  ///< held, so that addresses stay unique
};

/// True for lists of tensors, optional ones included.
[[nodiscard]] inline bool is_tensor_list(const c10::Argument& argument, const c10::IValue& value) {
  return value.isList() && argument.type()->str().find("Tensor") != std::string::npos;
}

[[nodiscard]] inline at::Tensor tensor_or_none(const c10::IValue& value) {
  return value.isTensor() ? value.toTensor() : at::Tensor();
}

/// Calls `visit(tensor, index of its argument)` for every tensor argument, list elements included; undefined ones too.
template <class Visit>
void for_each_tensor(const c10::FunctionSchema& schema, c10::ArrayRef<c10::IValue> arguments, const Visit& visit) {
  for (std::size_t i = 0; i < schema.arguments().size(); ++i) {
    const c10::IValue& value = arguments[i];
    if (value.isTensor()) {
      visit(value.toTensor(), i);
    } else if (is_tensor_list(schema.arguments()[i], value)) {
      for (const c10::IValue& item : value.toListRef()) visit(tensor_or_none(item), i);
    }
  }
}

/// Calls `visit(id, tensor)` for every tensor of the recording among the results of `call`.
template <class Visit>
void for_each_output(const RecordedCall& call, const torch::jit::Stack& results, const Visit& visit) {
  for (std::size_t i = 0; i < call.outputs.size(); ++i) {
    const auto& ids = call.outputs[i];
    if (results[i].isTensor() && !ids.empty()) visit(ids[0], results[i].toTensor());
    if (!results[i].isTensorList()) continue;
    for (std::size_t k = 0; k < ids.size(); ++k) visit(ids[k], results[i].toListRef()[k].toTensor());
  }
}

/// `arguments` with every tensor replaced by `replace(tensor)`.
template <class Replace>
void replace_tensors(const c10::FunctionSchema& schema, c10::ArrayRef<c10::IValue> in, std::vector<c10::IValue>& out,
                     const Replace& replace) {
  out.assign(in.begin(), in.end());
  for (std::size_t i = 0; i < schema.arguments().size(); ++i) {
    if (out[i].isTensor()) {
      out[i] = replace(out[i].toTensor());
    } else if (is_tensor_list(schema.arguments()[i], out[i])) {
      c10::impl::GenericList list(out[i].toList().elementType());
      for (const c10::IValue& item : in[i].toListRef()) {
        const at::Tensor tensor = replace(tensor_or_none(item));
        list.push_back(tensor.defined() || item.isTensor() ? c10::IValue(tensor) : item);
      }
      out[i] = std::move(list);
    }
  }
}

}  // namespace tessera::module
