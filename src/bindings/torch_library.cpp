// SPDX-License-Identifier: Apache-2.0
// Mesh tensors from Python, without binding code of our own: torch.ops.load_library("libtessera.so") finds the
// operators torch.ops.tessera.* and the classes torch.classes.tessera.* below.
//
//   ranks = torch.classes.tessera.Ranks()            in a process that `tessera run` or torchrun started
//   mesh = torch.classes.tessera.Mesh(ranks, "dp=2,tp=2")
//   weight = torch.ops.tessera.distribute(weight, mesh, ["replicate", "shard(0)"])
#include <torch/custom_class.h>
#include <torch/library.h>

#include "tessera/launch/launch.h"
#include "tessera/mesh/mesh.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera::bindings {
namespace {

/// This process' place in the job; made once, before the first mesh.
struct RanksHolder : torch::CustomClassHolder {
  RanksHolder() : ranks(launcher::join_job(launcher::detect_ranks(launcher::process_environment()))) {}
  Ranks ranks;
};
using RanksPtr = c10::intrusive_ptr<RanksHolder>;

struct MeshHolder : torch::CustomClassHolder {
  MeshHolder(const RanksPtr& holder, const std::string& axes) : mesh(holder->ranks, parse_axes(axes)) {}
  Mesh mesh;
};
using MeshPtr = c10::intrusive_ptr<MeshHolder>;

Placements parse_all(const std::vector<std::string>& words) {
  Placements placements = Placements::replicated(static_cast<int>(words.size()));
  for (std::size_t axis = 0; axis < words.size(); ++axis) {
    placements[static_cast<int>(axis)] = parse_placement(words[axis]);
  }
  return placements;
}

at::Tensor distribute_words(const at::Tensor& tensor, const MeshPtr& mesh, const std::vector<std::string>& words) {
  return distribute(tensor, mesh->mesh, parse_all(words));
}

at::Tensor from_local_words(const at::Tensor& local, const MeshPtr& mesh, const std::vector<std::string>& words,
                            const std::vector<std::int64_t>& sizes) {
  return from_local(local, mesh->mesh, parse_all(words), sizes);
}

at::Tensor redistribute_words(const at::Tensor& tensor, const std::vector<std::string>& words) {
  return redistribute(tensor, parse_all(words));
}

/// Operators may not return what they were given, which a plain tensor would be.
at::Tensor local_part(const at::Tensor& tensor) { return is_mesh_tensor(tensor) ? local(tensor) : tensor.alias(); }
at::Tensor full_value(const at::Tensor& tensor) {
  return is_mesh_tensor(tensor) ? full(tensor).alias() : tensor.alias();
}

std::vector<std::string> placement_words(const at::Tensor& tensor) {
  std::vector<std::string> words;
  for (const Placement& placement : placements(tensor)) words.push_back(to_string(placement));
  return words;
}

c10::Dict<std::string, std::int64_t> fallback_counts(const MeshPtr& mesh) {
  c10::Dict<std::string, std::int64_t> counts;
  for (const auto& [name, count] : replicated_fallbacks(mesh->mesh)) counts.insert(name, count);
  return counts;
}

std::vector<std::string> sharded_names(const MeshPtr& mesh) {
  const auto& names = sharded_operators(mesh->mesh);
  return {names.begin(), names.end()};
}

}  // namespace

TORCH_LIBRARY(tessera, library) {
  library.class_<RanksHolder>("Ranks")
      .def(torch::init<>())
      .def("rank", [](const RanksPtr& self) { return std::int64_t{self->ranks.rank()}; })
      .def("size", [](const RanksPtr& self) { return std::int64_t{self->ranks.size()}; });
  library.class_<MeshHolder>("Mesh")
      .def(torch::init<RanksPtr, std::string>())
      .def("rank", [](const MeshPtr& self) { return std::int64_t{self->mesh.rank()}; })
      .def("size", [](const MeshPtr& self) { return std::int64_t{self->mesh.size()}; })
      .def("coordinate", [](const MeshPtr& self,
                            std::int64_t axis) { return std::int64_t{self->mesh.coordinate(static_cast<int>(axis))}; })
      .def("describe", [](const MeshPtr& self) { return self->mesh.to_string(); })
      .def("replicated_fallbacks", fallback_counts)
      .def("sharded_operators", sharded_names);
  // Without a dispatch key: they take mesh tensors and plain ones, and look for themselves.
  library.def("distribute(Tensor tensor, __torch__.torch.classes.tessera.Mesh mesh, str[] placements) -> Tensor",
              distribute_words);
  library.def(
      "from_local(Tensor local, __torch__.torch.classes.tessera.Mesh mesh, str[] placements, int[] sizes) -> Tensor",
      from_local_words);
  library.def("redistribute(Tensor tensor, str[] placements) -> Tensor", redistribute_words);
  library.def("local(Tensor tensor) -> Tensor", local_part);
  library.def("full(Tensor tensor) -> Tensor", full_value);
  library.def("is_mesh_tensor(Tensor tensor) -> bool", [](const at::Tensor& tensor) { return is_mesh_tensor(tensor); });
  library.def("placements(Tensor tensor) -> str[]", placement_words);
  library.def("describe(Tensor tensor) -> str", [](const at::Tensor& tensor) { return describe(tensor); });
}

}  // namespace tessera::bindings
