// SPDX-License-Identifier: Apache-2.0
// A slice of a mesh tensor along a dim that is cut: each rank holds the part that lies in its shard, some ranks none.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

#include <vector>

#include "tensor/view_of_base.h"

namespace tessera::module {

/// Placements cannot say how such a view lies, so it is no mesh tensor. What is written into it elementwise is written
/// into the shards of its base; for reading it becomes a mesh tensor of its own.
class CutView {
 public:
  /// All of `base`, a mesh tensor.
  explicit CutView(at::Tensor base);

  /// What a recorded view operator (slice, chunk, diagonal ...) makes of it; nothing if it is none.
  [[nodiscard]] std::vector<CutView> views(const c10::OperatorHandle& op, const std::vector<c10::IValue>& arguments) const;

  /// True if shards of the base are not shards of the view.
  [[nodiscard]] bool is_cut() const;

  /// A mesh tensor with the view's values, for reading.
  [[nodiscard]] at::Tensor read() const;

  /// Runs an elementwise or random operator in place. `arguments` are the call's, tensors whole; the first is ignored.
  /// Throws ConfigError if the operator is of another kind.
  void write(const c10::OperatorHandle& op, std::vector<c10::IValue> arguments) const;

 private:
  /// The same for the part of a shard that is one box.
  void write_piece(const c10::OperatorHandle& op, std::vector<c10::IValue> arguments, const tensor::Piece& piece) const;
  [[nodiscard]] bool is_in_groups() const;

  CutView(at::Tensor base, tensor::Strided shows);

  at::Tensor base_;
  tensor::Strided shows_;
  tensor::ViewOfBase view_;
};

}  // namespace tessera::module
