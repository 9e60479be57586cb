// SPDX-License-Identifier: Apache-2.0
// What the kernels of random operators share: arguments by name, refusals, and the part of the result that a rank
// draws.
#pragma once

#include <algorithm>
#include <vector>

#include "rules/rows.h"
#include "tensor/box.h"
#include "tessera/base/error.h"

namespace tessera::rules {

/// The arguments of one call, by name.
struct Arguments {
  const c10::FunctionSchema& schema;
  const std::vector<c10::IValue>& values;

  [[nodiscard]] const c10::IValue* find(const char* name) const {
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (schema.arguments()[i].name() == name && !values[i].isNone()) return &values[i];
    }
    return nullptr;
  }
  [[nodiscard]] const at::Tensor& first_tensor() const {
    return std::find_if(values.begin(), values.end(), [](const c10::IValue& value) { return value.isTensor(); })
        ->toTensor();
  }
  [[nodiscard]] double number(const char* name, double otherwise = 0) const {
    const c10::IValue* value = find(name);
    return value == nullptr ? otherwise : value->toScalar().toDouble();
  }
  [[nodiscard]] bool in_place() const {
    const c10::AliasInfo* alias = schema.arguments()[0].alias_info();
    return alias != nullptr && alias->isWrite();
  }
  /// The user's mistake, in the operator's own words.
  template <class... Args>
  void require(bool condition, fmt::format_string<Args...> format, Args&&... args) const {
    if (!condition) [[unlikely]] {
      throw ShapeError(fmt::format("{}: {}", schema.name(), fmt::format(format, std::forward<Args>(args)...)));
    }
  }
};

/// Throws ShapeError for a torch::Generator among the arguments, and for a complex result.
void refuse_what_cannot_be_drawn(const Arguments& call, const at::Tensor& result);

/// Where this rank's part of the result lies in the whole; decision.notes: the sizes of the whole.
[[nodiscard]] tensor::Box box_of(const Decision& decision, const Mesh& mesh);

}  // namespace tessera::rules
