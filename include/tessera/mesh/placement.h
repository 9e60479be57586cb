// SPDX-License-Identifier: Apache-2.0
// How a tensor lies on one axis of a mesh, and on all of them.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace tessera {

/// What the ranks along an axis hold of one tensor.
enum class PlacementKind : std::uint8_t {
  kReplicate,  ///< every rank holds the value
  kShard,      ///< rank i holds the i-th chunk along a dim, cut as torch::chunk cuts, or as a Cut says
  kPartial,    ///< the value is the reduction of what the ranks hold
  kStage,      ///< only the ranks of some pipeline stages hold the value (axis pp)
};

/// A set of pipeline stages: bit k stands for stage k.
using StageSet = std::uint64_t;
inline constexpr int kMaxStages = 64;

/// Reduction that turns partial values into the value.
enum class PartialOp : std::uint8_t { kSum, kMax, kMin };

/// How a dim is cut. It consists of `groups` equal parts, each of which is cut by itself (q, k and v of a fused projection,
/// the gates of an LSTM); a rank's shard is its pieces one after the other, in the order of the groups. Cuts fall on
/// multiples of `unit` within a group, so that heads stay whole; with fewer units than ranks some ranks hold nothing.
struct Cut {
  std::int32_t groups = 1;
  std::int32_t unit = 1;
  /// As torch::chunk cuts.
  [[nodiscard]] constexpr bool is_plain() const noexcept { return groups == 1 && unit == 1; }
  friend constexpr bool operator==(const Cut&, const Cut&) noexcept = default;
};

/// Placement on one axis. A value type; make one with Replicate(), Shard(dim), Partial(op) or Stage(k).
struct Placement {
  PlacementKind kind = PlacementKind::kReplicate;
  PartialOp op = PartialOp::kSum;  ///< meaningful for kPartial
  std::int16_t dim = 0;            ///< meaningful for kShard; never negative
  StageSet stages = 0;             ///< meaningful for kStage; never empty there
  Cut cut;                         ///< meaningful for kShard

  [[nodiscard]] constexpr bool is_replicate() const noexcept { return kind == PlacementKind::kReplicate; }
  [[nodiscard]] constexpr bool is_shard() const noexcept { return kind == PlacementKind::kShard; }
  [[nodiscard]] constexpr bool is_shard(std::int64_t on_dim) const noexcept { return is_shard() && dim == on_dim; }
  [[nodiscard]] constexpr bool is_partial() const noexcept { return kind == PlacementKind::kPartial; }
  [[nodiscard]] constexpr bool is_stage() const noexcept { return kind == PlacementKind::kStage; }
  friend constexpr bool operator==(const Placement&, const Placement&) noexcept = default;
};

// The field's words for placements (those of DTensor), hence the capital letters of functions that read as types.
[[nodiscard]] constexpr Placement Replicate() noexcept { return {}; }
/// `Shard(0)`, or `Shard(0, {.groups = 3, .unit = 64})`: three projections in one, in heads of 64. A unit that cuts where a
/// plain shard would is dropped on a mesh, and another becomes what the first rank holds, so that equal cuts are equal.
[[nodiscard]] constexpr Placement Shard(std::int64_t dim, Cut cut = {}) noexcept {
  return {PlacementKind::kShard, PartialOp::kSum, static_cast<std::int16_t>(dim), 0, cut};
}
[[nodiscard]] constexpr Placement Partial(PartialOp op = PartialOp::kSum) noexcept {
  return {PlacementKind::kPartial, op, 0, 0, {}};
}
/// The stages of `stages`; not empty.
[[nodiscard]] constexpr Placement Stages(StageSet stages) noexcept {
  return {PlacementKind::kStage, PartialOp::kSum, 0, stages, {}};
}
/// Stage `stage` only, 0 to kMaxStages - 1.
[[nodiscard]] constexpr Placement Stage(int stage) noexcept {
  return Stages(StageSet{1} << static_cast<unsigned>(stage));
}

/// Axes a mesh may have at most: one per canonical axis name.
inline constexpr int kMaxAxes = 6;

/// One placement per mesh axis, in mesh order. A small value without allocation: specs are compared and hashed on
/// every operation.
class Placements {
 public:
  constexpr Placements() = default;
  constexpr Placements(std::initializer_list<Placement> placements) {
    for (const Placement& placement : placements) {
      items_[size_++] = placement;
    }
  }
  /// `num_axes` times Replicate().
  [[nodiscard]] static constexpr Placements replicated(int num_axes) {
    Placements result;
    result.size_ = static_cast<std::uint8_t>(num_axes);
    return result;
  }

  [[nodiscard]] constexpr int size() const noexcept { return size_; }
  [[nodiscard]] constexpr Placement& operator[](int axis) { return items_[static_cast<std::size_t>(axis)]; }
  [[nodiscard]] constexpr const Placement& operator[](int axis) const { return items_[static_cast<std::size_t>(axis)]; }
  [[nodiscard]] constexpr const Placement* begin() const noexcept { return items_.data(); }
  [[nodiscard]] constexpr const Placement* end() const noexcept { return items_.data() + size_; }

  [[nodiscard]] constexpr bool all_replicate() const noexcept {
    for (const Placement& placement : *this) {
      if (!placement.is_replicate()) return false;
    }
    return true;
  }
  [[nodiscard]] constexpr bool any_partial() const noexcept {
    for (const Placement& placement : *this) {
      if (placement.is_partial()) return true;
    }
    return false;
  }
  friend constexpr bool operator==(const Placements& a, const Placements& b) noexcept {
    if (a.size_ != b.size_) return false;
    for (std::size_t i = 0; i < a.size_; ++i) {
      if (!(a.items_[i] == b.items_[i])) return false;
    }
    return true;
  }

 private:
  std::array<Placement, kMaxAxes> items_{};
  std::uint8_t size_ = 0;
};

/// "replicate", "shard(0)", "shard(0, groups=3, unit=64)", "partial(sum)", "stage(2)", "stage(0,3)".
[[nodiscard]] std::string to_string(const Placement& placement);

/// Inverse of to_string; also takes ranges of stages, "stage(0-3)", and the words "colwise" (shard(0) of a weight
/// [out, in]) and "rowwise" (shard(1)), which may have a cut, "colwise(groups=3, unit=64)". Throws ConfigError naming the text and what is allowed.
[[nodiscard]] Placement parse_placement(std::string_view text);

/// The contiguous part of a dim that one of `parts` ranks holds.
struct Extent {
  std::int64_t offset = 0;
  std::int64_t length = 0;
  friend constexpr bool operator==(const Extent&, const Extent&) noexcept = default;
};

/// Part `index` of a dim of `size`, cut as torch::chunk cuts: every part ceil(size / parts) long until the dim is
/// used up; later parts are shorter or empty.
[[nodiscard]] constexpr Extent chunk_extent(std::int64_t size, std::int64_t parts, std::int64_t index) noexcept {
  const std::int64_t chunk = (size + parts - 1) / parts;
  const std::int64_t begin = chunk * index < size ? chunk * index : size;
  const std::int64_t end = begin + chunk < size ? begin + chunk : size;
  return {begin, end - begin};
}

/// What part `index` of `parts` has of one group of `size`, cut on multiples of `unit`.
[[nodiscard]] constexpr Extent piece_extent(std::int64_t size, std::int64_t unit, std::int64_t parts,
                                            std::int64_t index) noexcept {
  const Extent units = chunk_extent((size + unit - 1) / unit, parts, index);
  const std::int64_t begin = units.offset * unit < size ? units.offset * unit : size;
  const std::int64_t end = begin + units.length * unit < size ? begin + units.length * unit : size;
  return {begin, end - begin};
}

}  // namespace tessera
