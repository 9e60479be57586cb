// SPDX-License-Identifier: Apache-2.0
// What the dispatcher needs to know of an operator's schema.
#include "tensor/operator_info.h"

#include <ATen/core/enum_tag.h>
#include <ATen/core/jit_type.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace tessera::tensor {
namespace {

ArgumentKind kind_of(const c10::Argument& argument) {
  c10::TypePtr type = argument.type();
  if (const auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
  if (type->kind() == c10::TypeKind::TensorType) return ArgumentKind::kTensor;
  if (const auto list = type->cast<c10::ListType>()) {
    c10::TypePtr element = list->getElementType();
    if (const auto optional = element->cast<c10::OptionalType>()) element = optional->getElementType();
    if (element->kind() == c10::TypeKind::TensorType) return ArgumentKind::kTensorList;
  }
  return ArgumentKind::kScalar;
}

bool is_written(const c10::Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

/// Batch norm updates its running statistics without saying so in its schema.
bool writes_unannounced(const std::string& name, const c10::Argument& argument) {
  return name.ends_with("batch_norm") && argument.name().starts_with("running_");
}

/// Products of two dims come from linear layers. Batched ones do not count: those of plain attention give T x T
/// matrices, which selective recomputation is there to save.
bool is_expensive(const std::string& base) {
  return base == "aten::mm" || base == "aten::addmm" || base == "aten::convolution" ||
         base.starts_with("aten::_scaled_dot_product_");
}

int argument_returned_as(const c10::Argument& result, const std::vector<c10::Argument>& arguments) {
  if (!is_written(result)) return -1;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (is_written(arguments[i]) && arguments[i].alias_info()->beforeSets() == result.alias_info()->beforeSets()) {
      return static_cast<int>(i);
    }
  }
  return -1;
}

Deferral deferral_of(const c10::OperatorName& name) {
  if (name.name == "aten::mm" && name.overload_name.empty()) return Deferral::kProduct;
  if (name.name == "aten::convolution_backward" && name.overload_name.empty()) return Deferral::kConvolution;
  if (name.name == "aten::add_" && name.overload_name == "Tensor") return Deferral::kSum;
  return Deferral::kNone;
}

}  // namespace

std::string base_name(const std::string& name) {
  if (name.ends_with("__")) {
    const auto start = name.find("__i");
    return start == std::string::npos ? name : name.substr(0, start) + "__" + name.substr(start + 3);
  }
  return name.ends_with('_') ? name.substr(0, name.size() - 1) : name;
}

OperatorInfo::OperatorInfo(const c10::OperatorHandle& op) : name(op.schema().name()), rule(find_rule(op)) {
  const auto& schema = op.schema();
  for (const c10::Argument& argument : schema.arguments()) {
    const bool written = is_written(argument) || writes_unannounced(name, argument);
    arguments.push_back({kind_of(argument), written, written && argument.is_out()});
    has_out = has_out || arguments.back().is_out;
  }
  const std::string full_name = c10::toString(op.operator_name());
  id = XXH3_64bits(full_name.data(), full_name.size());
  for (const c10::Argument& result : schema.returns()) {
    gives_values = gives_values || kind_of(result) == ArgumentKind::kScalar;
    returned_argument.push_back(argument_returned_as(result, schema.arguments()));
    is_view = is_view || (result.alias_info() != nullptr && !result.alias_info()->isWrite());
  }
  in_place = !arguments.empty() && arguments[0].written && !arguments[0].is_out;
  changes_metadata = op.hasTag(at::Tag::inplace_view);
  deferral = deferral_of(op.operator_name());
  random = op.hasTag(at::Tag::nondeterministic_seeded);
  reads_sizes_only = name.ends_with("_like") || name.starts_with("aten::new_");
  const auto base = base_name(name);
  reads_strides = base == "aten::as_strided" || base == "aten::_linalg_det" || base == "aten::_linalg_slogdet";
  expensive = is_expensive(base_name(name));
  sizes_depend_on_values = op.hasTag(at::Tag::dynamic_output_shape);
  is_cast = name == "aten::_to_copy";
}

}  // namespace tessera::tensor
