// SPDX-License-Identifier: Apache-2.0
// Boxes and their runs.
#include "tensor/box.h"

#include <numeric>

namespace tessera::tensor {

Box Box::whole_of(at::IntArrayRef sizes) {
  Box box{{sizes.begin(), sizes.end()}, {}};
  for (const std::int64_t size : sizes) box.extents.push_back({0, size});
  return box;
}

Box Box::of(at::IntArrayRef global_sizes, const Placements& placements, const Mesh& mesh) {
  Box box{{global_sizes.begin(), global_sizes.end()}, {}};
  for (std::size_t dim = 0; dim < global_sizes.size(); ++dim) {
    Extents runs = local_runs(global_sizes[dim], static_cast<int>(dim), placements, mesh);
    if (runs.size() <= 1) {
      box.extents.push_back(runs.empty() ? Extent{} : runs[0]);
    } else {
      box.extents.push_back({0, local_length(global_sizes[dim], static_cast<int>(dim), placements, mesh)});
      box.parts.emplace_back(dim, std::move(runs));
    }
  }
  return box;
}

std::vector<Piece> pieces_of(const Box& box, const at::Tensor& local) {
  std::vector<Piece> pieces{{{box.whole, box.extents, {}}, local}};
  for (const auto& [dim, parts] : box.parts) {
    std::vector<Piece> cut;
    for (const Piece& piece : pieces) {
      std::int64_t begin = 0;
      for (const Extent& part : parts) {
        cut.push_back({piece.box, piece.local.narrow(static_cast<std::int64_t>(dim), begin, part.length)});
        cut.back().box.extents[dim] = part;
        begin += part.length;
      }
    }
    pieces = std::move(cut);
  }
  return pieces;
}

std::int64_t Box::num_elements() const noexcept {
  std::int64_t count = 1;
  for (const Extent& extent : extents) count *= extent.length;
  return count;
}

const Extents* Box::parts_of(std::size_t dim) const noexcept {
  for (const auto& [own, held] : parts) {
    if (own == dim) return &held;
  }
  return nullptr;
}

Runs::Level Runs::level_of(const Extents& parts, std::int64_t step, std::int64_t stride) {
  Level level;
  for (const Extent& part : parts) {
    for (std::int64_t at = 0; at < part.length; at += step) level.places.push_back((part.offset + at) * stride);
  }
  level.count = static_cast<std::int64_t>(level.places.size());
  return level;
}

Runs::Runs(const Box& box) {
  std::int64_t stride = 1;
  bool inside_run = true;
  for (std::size_t dim = box.whole.size(); dim-- > 0;) {
    const Extent& extent = box.extents[dim];
    if (const Extents* parts = box.parts_of(dim)) {
      std::int64_t step = inside_run ? 0 : 1;
      for (const Extent& part : *parts) step = std::gcd(step, part.length);
      if (inside_run) length_ = step * stride;
      inside_run = false;
      levels_.push_back(level_of(*parts, step, stride));
    } else if (inside_run) {
      length_ = extent.length * stride;
      inside_run = extent.length == box.whole[dim];
    } else {
      levels_.push_back({extent.length, stride});
    }
    offset_ += extent.offset * stride;
    stride *= box.whole[dim];
  }
}

std::int64_t Runs::first_of(std::int64_t row) const noexcept {
  std::int64_t first = offset_;
  for (const Level& level : levels_) {
    const std::int64_t index = row % level.count;
    first += level.places.empty() ? index * level.stride : level.places[static_cast<std::size_t>(index)];
    row /= level.count;
  }
  return first;
}

}  // namespace tessera::tensor
