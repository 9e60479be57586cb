// SPDX-License-Identifier: Apache-2.0
// What a call gave, without the data: what ranks of other stages must know of it.
#pragma once

#include <ATen/core/ivalue.h>

#include <span>
#include <vector>

#include "tensor/view_of_base.h"

namespace tessera::tensor {

/// One tensor.
struct ResultShape {
  bool defined = false;
  at::ScalarType dtype = at::kFloat;
  Sizes sizes;  ///< global, as strides and offset
  Sizes strides;
  std::int64_t offset = 0;
};

/// One return value: a tensor, a list of tensors, or a number.
struct OutputShape {
  bool is_list = false;
  std::vector<ResultShape> tensors;
  c10::IValue number;  ///< int, float, bool or complex; none if the output is of tensors
};
/// How results lie in memory on one device, given how operands do there.
struct ResultLayout {
  std::vector<std::int64_t> operands;  ///< strides and offset of each
  std::vector<OutputShape> outputs;    ///< empty: the operator does not say
};

/// What view operators show of a base, for results that get memory of their own.
struct ShownViews {
  Strided base;
  std::vector<Strided> views;  ///< empty: the operator does not say
};

struct CallShape {
  std::vector<OutputShape> outputs;
  std::int64_t num_draws = 0;  ///< of random numbers, so that ranks without data count them too
};

/// Throws ShapeError naming `operator_name` if an output is neither of tensors nor a number.
[[nodiscard]] std::vector<OutputShape> shapes_of(c10::ArrayRef<c10::IValue> outputs, const std::string& operator_name);

/// Words for a message, and back. Throws CommunicationError if the words are not those of `to_words`.
[[nodiscard]] std::vector<std::int64_t> to_words(const CallShape& shape);
[[nodiscard]] CallShape from_words(std::span<const std::int64_t> words);

}  // namespace tessera::tensor
