// SPDX-License-Identifier: Apache-2.0
// A slice of a mesh tensor along a dim that is cut: each rank holds the part that lies in its shard, some ranks none.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

#include <optional>
#include <vector>

#include "tensor/box.h"

namespace tessera::module {

/// Placements cannot say how such a view lies, so it is no mesh tensor. What is written into it elementwise is written
/// into the shards of its base; for reading it becomes a mesh tensor of its own.
class CutView {
 public:
  /// All of `base`, a mesh tensor.
  explicit CutView(at::Tensor base);

  /// The view by a recorded slice, narrow or select; nothing if it is another operator or has a step.
  [[nodiscard]] std::optional<CutView> view(const c10::FunctionSchema& schema,
                                            const std::vector<c10::IValue>& arguments) const;

  /// The `length` positions of `dim` from `begin`; `selected`: of length 1, and the dim disappears.
  [[nodiscard]] CutView narrowed(std::int64_t dim, std::int64_t begin, std::int64_t length, bool selected) const;

  /// True if some dim that is not whole is sharded.
  [[nodiscard]] bool is_cut() const;

  /// A mesh tensor with the view's values, for reading.
  [[nodiscard]] at::Tensor read() const;

  /// Runs an elementwise or random operator in place. `arguments` are the call's, tensors whole; the first is ignored.
  /// Throws ConfigError if the operator is of another kind.
  void write(const c10::OperatorHandle& op, std::vector<c10::IValue> arguments) const;

 private:
  struct Dim {
    Extent extent;          ///< in the base
    bool selected = false;  ///< of length 1, and no dim of the view
  };
  /// The view's part in this rank's shard, in the coordinates of the view; and where it starts in the shard, per dim.
  [[nodiscard]] tensor::Box part() const;
  [[nodiscard]] at::Tensor local_part() const;
  [[nodiscard]] Extent mine(std::size_t dim) const;
  [[nodiscard]] std::size_t base_dim(std::int64_t dim) const;

  at::Tensor base_;
  std::vector<Dim> dims_;
};

}  // namespace tessera::module
