// SPDX-License-Identifier: Apache-2.0
// An N-dimensional grid of ranks with named axes.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/comm/communicator.h"
#include "tessera/comm/world.h"
#include "tessera/launch/launch.h"
#include "tessera/mesh/placement.h"

namespace tessera {

/// One axis of a mesh. `size` -1 stands for "the rest of the ranks", at most once per mesh.
struct Axis {
  std::string name;
  int size = 1;
  friend bool operator==(const Axis&, const Axis&) = default;
};

/// Axis names a mesh may use, outermost first: ranks that differ only in the last axis are neighbours.
[[nodiscard]] const std::vector<std::string>& canonical_axes();

/// "dp=2,tp=2" -> axes in canonical order; "dp" is short for "dp_replicate". Empty text is the mesh of one rank.
/// Throws ConfigError naming the text, the offending part and the nearest known axis.
[[nodiscard]] std::vector<Axis> parse_axes(std::string_view text);

/// Inverse of parse_axes: every axis with its size; "1 rank" for no axes.
[[nodiscard]] std::string format_axes(const std::vector<Axis>& axes);

/// Puts axes in canonical order, resolves "dp" and -1, and checks them against `world_size`.
/// Throws ConfigError naming the axis, its value and what is allowed; a product other than the world size too.
[[nodiscard]] std::vector<Axis> resolve_axes(std::vector<Axis> axes, int world_size);

struct MeshOptions {
  /// An operator without a rule is an error instead of a counted gather-and-replicate.
  bool strict = false;
};

/// One rank's handle to a mesh; copies refer to the same mesh. Two meshes in one process are independent.
///
/// Order     construction is collective: every rank of the world makes the same meshes in the same order.
/// Threads   one rank's meshes are used by one thread at a time (backward included: it runs in the calling thread).
class Mesh {
 public:
  /// Throws ConfigError if the product of the axes is not the world's size; CommunicationError if a rank is missing.
  Mesh(std::shared_ptr<comm::World> world, std::vector<Axis> axes, MeshOptions options = {});
  /// The mesh of a program that tessera::launch started; TESSERA_STRICT=1 makes it strict.
  Mesh(const Ranks& ranks, std::vector<Axis> axes);

  [[nodiscard]] int rank() const noexcept;
  [[nodiscard]] int size() const noexcept;
  [[nodiscard]] int num_axes() const noexcept;
  [[nodiscard]] const std::vector<Axis>& axes() const noexcept;
  [[nodiscard]] int axis_size(int axis) const noexcept;
  /// This rank's position along `axis`.
  [[nodiscard]] int coordinate(int axis) const noexcept;
  /// Index of the named axis, -1 if the mesh has none of that name.
  [[nodiscard]] int axis_index(std::string_view name) const noexcept;
  /// The ranks that differ from this one along `axis` only.
  [[nodiscard]] const comm::Communicator& along(int axis) const noexcept;
  /// The ranks that differ from this one along any axis whose bit is set in `axes`. Made on first use: collective.
  [[nodiscard]] const comm::Communicator& across(unsigned axes) const;
  /// All ranks of the mesh.
  [[nodiscard]] const comm::Communicator& everyone() const;
  [[nodiscard]] c10::Device device() const noexcept;
  [[nodiscard]] const MeshOptions& options() const noexcept;
  /// "dp_replicate=2,tp=2".
  [[nodiscard]] std::string to_string() const;
  /// Sum over this rank's communicators of the mesh.
  [[nodiscard]] comm::Traffic traffic() const noexcept;

  /// Placements of a batch: Shard(0) on the data-parallel axes, Replicate elsewhere.
  [[nodiscard]] Placements batch_placements() const;

  /// Where the tensor floor keeps what it learns about this mesh (decision cache, fallback counts): per mesh and
  /// rank, so that nothing is global.
  [[nodiscard]] std::shared_ptr<void>& attachment() const noexcept;
  friend bool operator==(const Mesh& a, const Mesh& b) noexcept { return a.state_ == b.state_; }

 private:
  [[nodiscard]] unsigned all_axes() const noexcept;
  [[nodiscard]] comm::Communicator make_group(unsigned axes) const;

  struct State;
  std::shared_ptr<State> state_;
};

/// Coordinates of `rank` in a grid of `axes`, outermost first; and the inverse.
[[nodiscard]] std::vector<int> coordinates_of(int rank, const std::vector<Axis>& axes);
[[nodiscard]] int rank_of(const std::vector<int>& coordinates, const std::vector<Axis>& axes);

}  // namespace tessera
