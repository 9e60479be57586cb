// SPDX-License-Identifier: Apache-2.0
// Boxes and their runs.
#include "tensor/box.h"

namespace tessera::tensor {

Box Box::whole_of(at::IntArrayRef sizes) {
  Box box{{sizes.begin(), sizes.end()}, {}};
  for (const std::int64_t size : sizes) box.extents.push_back({0, size});
  return box;
}

Box Box::of(at::IntArrayRef global_sizes, const Placements& placements, const Mesh& mesh) {
  Box box{{global_sizes.begin(), global_sizes.end()}, {}};
  for (std::size_t dim = 0; dim < global_sizes.size(); ++dim) {
    box.extents.push_back(local_extent(global_sizes[dim], static_cast<int>(dim), placements, mesh));
  }
  return box;
}

std::int64_t Box::num_elements() const noexcept {
  std::int64_t count = 1;
  for (const Extent& extent : extents) count *= extent.length;
  return count;
}

Runs::Runs(const Box& box) {
  std::int64_t stride = 1;
  bool inside_run = true;
  for (std::size_t dim = box.whole.size(); dim-- > 0;) {
    const Extent& extent = box.extents[dim];
    if (inside_run) {
      length_ = extent.length * stride;
      inside_run = extent.length == box.whole[dim];
    } else {
      counts_.push_back(extent.length);
      strides_.push_back(stride);
    }
    offset_ += extent.offset * stride;
    stride *= box.whole[dim];
  }
}

std::int64_t Runs::first_of(std::int64_t row) const noexcept {
  std::int64_t first = offset_;
  for (std::size_t i = 0; i < counts_.size(); ++i) {
    first += row % counts_[i] * strides_[i];
    row /= counts_[i];
  }
  return first;
}

}  // namespace tessera::tensor
