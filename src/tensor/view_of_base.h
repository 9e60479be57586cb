// SPDX-License-Identifier: Apache-2.0
// Which elements of a base a view shows, and which of them a rank holds.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <vector>

#include "tensor/box.h"

namespace tessera::tensor {

/// How a tensor lies in the memory that one device would have.
struct Strided {
  Sizes sizes;
  Sizes strides;
  std::int64_t offset = 0;

  [[nodiscard]] static Strided of(const at::Tensor& tensor);
  friend bool operator==(const Strided&, const Strided&) = default;
};

/// What view operator `op` makes of a tensor that lies like `base`; the first of `arguments` is ignored. Empty if it makes
/// no views, cannot say, or shows other numbers than lie there (conjugates).
[[nodiscard]] std::vector<Strided> views_of(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> arguments,
                                            const Strided& base, at::ScalarType dtype);

/// A view of a tensor, both described by how they would lie on one device.
class ViewOfBase {
 public:
  ViewOfBase(const Strided& base, const Strided& view);

  /// Every dim of the base follows at most one dim of the view, in steps: true for all that select, slice, diagonal,
  /// transpose and their kin make, not for what merges dims or makes windows.
  [[nodiscard]] bool is_stepped() const noexcept { return stepped_; }
  /// Shards of base dim `dim` are not shards of the view. Needs is_stepped().
  [[nodiscard]] bool cuts(std::size_t dim) const;

  /// The dim of the view that follows `dim` of the base; -1: none. Needs is_stepped().
  [[nodiscard]] int dim_of(std::size_t dim) const { return follows_[dim].dim; }

  /// What a rank that holds the box `held` of the base has of the view.
  struct Part {
    at::Tensor elements;  ///< memory of the rank's `local`, in the dims of the view; undefined: it has nothing
    Box box;              ///< the same in the view
  };
  /// Needs is_stepped().
  [[nodiscard]] Part part(const at::Tensor& local, const Box& held) const;

  /// The box `wanted` of the view, for a rank that holds all of it.
  [[nodiscard]] at::Tensor read(const at::Tensor& local, const Box& held, const Box& wanted) const;
  /// Writes what it holds of the box `given` of the view.
  void write(const at::Tensor& local, const Box& held, const at::Tensor& values, const Box& given) const;

 private:
  /// Position in the base dim: begin + step * position in dim `dim` of the view; -1: it is always at `begin`.
  struct Follows {
    int dim = -1;
    std::int64_t begin = 0;
    std::int64_t step = 0;
  };
  [[nodiscard]] bool find_steps();
  [[nodiscard]] std::optional<Sizes> positions_of(std::int64_t distance) const;
  [[nodiscard]] std::vector<at::Tensor> positions(const Box& held, const Box& of_view) const;

  Strided base_;
  Strided view_;
  c10::SmallVector<std::size_t, 6> outer_first_;  ///< dims of the base with more than one element
  c10::SmallVector<Follows, 6> follows_;          ///< per dim of the base
  bool stepped_ = false;
};

}  // namespace tessera::tensor
