// SPDX-License-Identifier: Apache-2.0
// What the dispatcher needs to know of an operator's schema, worked out once per operator.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <vector>

#include "tensor/rule.h"

namespace tessera::tensor {

enum class ArgumentKind : std::uint8_t { kTensor, kTensorList, kScalar };

struct ArgumentInfo {
  ArgumentKind kind = ArgumentKind::kScalar;
  bool written = false;  ///< mutated in place
  bool is_out = false;   ///< the out= argument of an out variant
};

/// What may be computed later in a backward pass that is split in two (call_deferred.cpp).
enum class Deferral : std::uint8_t { kNone, kProduct, kConvolution, kSum };

struct OperatorInfo {
  explicit OperatorInfo(const c10::OperatorHandle& op);

  std::string name;      ///< "aten::add"
  std::uint64_t id = 0;  ///< of name and overload, the same on every rank
  std::vector<ArgumentInfo> arguments;
  std::vector<int> returned_argument;  ///< per return: the written argument it is, or -1
  const Rule* rule = nullptr;
  bool in_place = false;  ///< writes its first argument
  bool is_view = false;
  bool has_out = false;
  bool changes_metadata = false;  ///< t_(), squeeze_(), resize_() ...
  bool random = false;
  bool sizes_depend_on_values = false;  ///< nonzero, index with a mask ...
  bool reads_sizes_only = false;        ///< zeros_like, new_empty ...: not the data of its tensors
  bool reads_strides = false;           ///< what it does depends on how its tensor lies in memory
  bool expensive = false;               ///< selective recomputation keeps what it gives
  bool gives_values = false;            ///< item() and what else returns no tensors
  Deferral deferral = Deferral::kNone;
  bool is_cast = false;                 ///< the same value in another dtype or on another device
};

/// "aten::add_" -> "aten::add"; "aten::__iand__" -> "aten::__and__".
[[nodiscard]] std::string base_name(const std::string& name);

}  // namespace tessera::tensor
