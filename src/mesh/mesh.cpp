// SPDX-License-Identifier: Apache-2.0
// The mesh object: coordinates and one communicator per axis.
#include "tessera/mesh/mesh.h"

#include <bit>
#include <map>

#include "tessera/base/error.h"
#include "tessera/launch/environment.h"

namespace tessera {
namespace {

/// Global ranks that share the coordinates along all axes whose bit is not set, ascending.
std::vector<int> members_across(unsigned set, const std::vector<int>& mine, const std::vector<Axis>& axes, int size) {
  std::vector<int> members;
  for (int rank = 0; rank < size; ++rank) {
    const std::vector<int> theirs = coordinates_of(rank, axes);
    bool member = true;
    for (std::size_t i = 0; i < axes.size(); ++i) member = member && ((set >> i & 1U) != 0 || theirs[i] == mine[i]);
    if (member) members.push_back(rank);
  }
  return members;
}

/// "dp_replicate+tp"; groups of a world's second mesh are called "dp_replicate+tp of mesh 2", and so on.
std::string name_of(unsigned set, const std::vector<Axis>& axes, int number) {
  std::string name;
  for (std::size_t i = 0; i < axes.size(); ++i) {
    if ((set >> i & 1U) != 0) name += (name.empty() ? "" : "+") + axes[i].name;
  }
  return number == 0 ? name : fmt::format("{} of mesh {}", name, number + 1);
}

}  // namespace

struct Mesh::State {
  std::shared_ptr<comm::World> world;
  int number = 0;  ///< among the meshes of its world
  std::vector<Axis> axes;
  MeshOptions options;
  std::vector<int> coordinates;
  std::vector<comm::Communicator> along;
  std::map<unsigned, comm::Communicator> across;  ///< by set of axes, those of one axis excepted
  std::shared_ptr<void> attachment;
};

Mesh::Mesh(std::shared_ptr<comm::World> world, std::vector<Axis> axes, MeshOptions options)
    : state_(std::make_shared<State>()) {
  check<ConfigError>(world != nullptr, "a mesh needs a world; make one with tessera::launch");
  axes = resolve_axes(std::move(axes), world->size());
  State& state = *state_;
  state.world = std::move(world);
  state.number = state.world->next_number();
  state.axes = std::move(axes);
  state.options = options;
  state.coordinates = coordinates_of(state.world->rank(), state.axes);
  for (std::size_t i = 0; i < state.axes.size(); ++i) state.along.push_back(make_group(1U << i));
  if (num_axes() > 1) (void)across(all_axes());
}

Mesh::Mesh(const Ranks& ranks, std::vector<Axis> axes)
    : Mesh(ranks.world(), std::move(axes),
           {.strict = launcher::read_switches(launcher::process_environment()).strict}) {}

unsigned Mesh::all_axes() const noexcept { return (1U << static_cast<unsigned>(num_axes())) - 1U; }

comm::Communicator Mesh::make_group(unsigned axes) const {
  const State& state = *state_;
  const std::vector<int> members = members_across(axes, state.coordinates, state.axes, size());
  return members.size() == 1 ? comm::Communicator() : state.world->group(members, name_of(axes, state.axes, state.number));
}

const comm::Communicator& Mesh::across(unsigned axes) const {
  if (std::has_single_bit(axes)) return along(std::countr_zero(axes));
  const auto found = state_->across.find(axes);
  return found != state_->across.end() ? found->second : state_->across.emplace(axes, make_group(axes)).first->second;
}

int Mesh::rank() const noexcept { return state_->world->rank(); }
int Mesh::size() const noexcept { return state_->world->size(); }
int Mesh::num_axes() const noexcept { return static_cast<int>(state_->axes.size()); }
const std::vector<Axis>& Mesh::axes() const noexcept { return state_->axes; }
int Mesh::axis_size(int axis) const noexcept { return state_->axes[static_cast<std::size_t>(axis)].size; }
int Mesh::coordinate(int axis) const noexcept { return state_->coordinates[static_cast<std::size_t>(axis)]; }

int Mesh::axis_index(std::string_view name) const noexcept {
  for (std::size_t i = 0; i < state_->axes.size(); ++i) {
    if (state_->axes[i].name == name) return static_cast<int>(i);
  }
  return -1;
}

const comm::Communicator& Mesh::along(int axis) const noexcept { return state_->along[static_cast<std::size_t>(axis)]; }
const comm::Communicator& Mesh::everyone() const { return across(all_axes()); }
c10::Device Mesh::device() const noexcept { return state_->world->device(); }
const MeshOptions& Mesh::options() const noexcept { return state_->options; }
std::string Mesh::to_string() const { return format_axes(state_->axes); }
std::shared_ptr<void>& Mesh::attachment() const noexcept { return state_->attachment; }

comm::Traffic Mesh::traffic() const noexcept {
  comm::Traffic total;
  const auto add = [&](const comm::Communicator& communicator) {
    total.calls += communicator.traffic().calls;
    total.bytes += communicator.traffic().bytes;
    total.exposed_ms += communicator.traffic().exposed_ms;
  };
  for (const comm::Communicator& communicator : state_->along) add(communicator);
  for (const auto& [axes, communicator] : state_->across) add(communicator);
  return total;
}

Placements Mesh::batch_placements() const {
  Placements placements = Placements::replicated(num_axes());
  for (int axis = 0; axis < num_axes(); ++axis) {
    if (state_->axes[static_cast<std::size_t>(axis)].name.starts_with("dp_")) placements[axis] = Shard(0);
  }
  return placements;
}

}  // namespace tessera
