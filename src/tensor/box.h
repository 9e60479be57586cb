// SPDX-License-Identifier: Apache-2.0
// The part of a tensor that one rank holds, as a box in the whole, and the runs of consecutive elements it consists of.
#pragma once

#include <c10/util/SmallVector.h>

#include "tensor/layout.h"

namespace tessera::tensor {

/// One extent per dim of a tensor of sizes `whole`.
struct Box {
  Sizes whole;
  c10::SmallVector<Extent, 6> extents;

  /// All of a tensor.
  [[nodiscard]] static Box whole_of(at::IntArrayRef sizes);
  /// This rank's part of a tensor of `global_sizes`.
  [[nodiscard]] static Box of(at::IntArrayRef global_sizes, const Placements& placements, const Mesh& mesh);
  [[nodiscard]] std::int64_t num_elements() const noexcept;
};

/// Consecutive elements in the box that are consecutive in the whole, too. Indices count row-major.
struct Run {
  std::int64_t whole_first = 0;
  std::int64_t box_first = 0;
  std::int64_t length = 0;
};

/// Finds runs: everything behind the last dim that is cut belongs together.
class Runs {
 public:
  explicit Runs(const Box& box);

  /// Calls `visit(Run)` for the elements [begin, end) of the box, in order.
  template <class Visit>
  void for_each(std::int64_t begin, std::int64_t end, const Visit& visit) const {
    while (begin < end) {
      const std::int64_t row = begin / length_;
      const std::int64_t skipped = begin % length_;
      const std::int64_t length = length_ - skipped < end - begin ? length_ - skipped : end - begin;
      visit(Run{first_of(row) + skipped, begin, length});
      begin += length;
    }
  }

 private:
  /// Index in the whole of the first element of a row.
  [[nodiscard]] std::int64_t first_of(std::int64_t row) const noexcept;

  std::int64_t length_ = 1;  ///< of one row
  std::int64_t offset_ = 0;  ///< of the box's first element in the whole
  Sizes counts_;             ///< of the dims that rows are counted over
  Sizes strides_;            ///< in the whole
};

}  // namespace tessera::tensor
