// SPDX-License-Identifier: Apache-2.0
// The part of a tensor that one rank holds, as a box in the whole, and the runs of consecutive elements it consists of.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <utility>
#include <vector>

#include "tensor/layout.h"

namespace tessera::tensor {

/// One extent per dim of a tensor of sizes `whole`. Of a dim that is cut in groups a rank holds several parts, which a box has
/// side by side: its extent has their length only.
struct Box {
  Sizes whole;
  c10::SmallVector<Extent, 6> extents;
  std::vector<std::pair<std::size_t, Extents>> parts{};  ///< of the dims that lie in several

  /// All of a tensor.
  [[nodiscard]] static Box whole_of(at::IntArrayRef sizes);
  /// This rank's part of a tensor of `global_sizes`.
  [[nodiscard]] static Box of(at::IntArrayRef global_sizes, const Placements& placements, const Mesh& mesh);
  [[nodiscard]] std::int64_t num_elements() const noexcept;
  /// The parts of dim `dim`; null if it is one.
  [[nodiscard]] const Extents* parts_of(std::size_t dim) const noexcept;
};

/// A box that is one part of each dim, and the memory that holds it.
struct Piece {
  Box box;
  at::Tensor local;
};
/// `local`, which holds `box`, piece by piece.
[[nodiscard]] std::vector<Piece> pieces_of(const Box& box, const at::Tensor& local);

/// Consecutive elements in the box that are consecutive in the whole, too. Indices count row-major.
struct Run {
  std::int64_t whole_first = 0;
  std::int64_t box_first = 0;
  std::int64_t length = 0;
};

/// Finds runs: everything behind the last dim that is cut belongs together. Of a dim that lies in several parts, so does as
/// much as divides them all.
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

  /// A dim that rows are counted over.
  struct Level {
    std::int64_t count = 0;
    std::int64_t stride = 0;  ///< in the whole
    std::vector<std::int64_t> places{};  ///< in the whole, where they are no multiples of the stride
  };
  [[nodiscard]] static Level level_of(const Extents& parts, std::int64_t step, std::int64_t stride);

  std::int64_t length_ = 1;  ///< of one row
  std::int64_t offset_ = 0;  ///< of the box's first element in the whole
  c10::SmallVector<Level, 6> levels_;
};

}  // namespace tessera::tensor
