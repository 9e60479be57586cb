// SPDX-License-Identifier: Apache-2.0
// The user's view of mesh tensors.
#include "tessera/tensor/mesh_tensor.h"

#include <ATen/core/Formatting.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <ostream>
#include <sstream>

#include "tensor/decision_cache.h"
#include "tensor/dispatch.h"
#include "tensor/layout.h"
#include "tensor/mesh_storage.h"
#include "tensor/redistribute.h"
#include "tessera/base/error.h"

namespace tessera {
namespace {

std::string format_placements(const Placements& placements) {
  std::vector<std::string> words;
  for (const Placement& placement : placements) words.push_back(to_string(placement));
  return fmt::format("{}", fmt::join(words, ", "));
}

/// Axis pp takes stages, and no other axis does.
void check_stages(const Mesh& mesh, const Placements& placements) {
  const int pp = mesh.axis_index("pp");
  const tensor::StageMap& map = tensor::MeshRuntime::of(mesh).stages.map();
  for (int axis = 0; axis < placements.size(); ++axis) {
    const Placement& placement = placements[axis];
    check<ShapeError>(axis == pp || !placement.is_stage(), "distribute: {} on axis {}; stages are for axis pp",
                      to_string(placement), mesh.axes()[static_cast<std::size_t>(axis)].name);
    check<ShapeError>(axis != pp || placement.is_replicate() || placement.is_stage(),
                      "distribute: {} on axis pp; allowed: replicate, stage(K)", to_string(placement));
    check<ShapeError>(!placement.is_stage() || map.axis() < 0 || (placement.stages & ~map.all()) == 0,
                      "distribute: {} on mesh {} of {} stages; allowed: stages 0 to {}", to_string(placement),
                      mesh.to_string(), map.rank_of_stage().size(), map.rank_of_stage().size() - 1);
  }
}

void check_placements(at::IntArrayRef sizes, const Mesh& mesh, const Placements& placements, bool partial_allowed) {
  check<ShapeError>(placements.size() == mesh.num_axes(),
                    "distribute: {} placements ({}) for mesh {} with {} axes; give one per axis", placements.size(),
                    format_placements(placements), mesh.to_string(), mesh.num_axes());
  for (const Placement& placement : placements) {
    check<ShapeError>(!placement.is_shard() || placement.dim < static_cast<std::int64_t>(sizes.size()),
                      "distribute: {} of a tensor of sizes [{}], which has {} dims; shard one of them",
                      to_string(placement), fmt::join(sizes, ", "), sizes.size());
    check<ShapeError>(partial_allowed || !placement.is_partial(),
                      "distribute: partial is the state of a sum under way; allowed: replicate, shard(DIM)");
  }
  tensor::check_cuts("distribute", sizes, placements, mesh);
  check_stages(mesh, placements);
}

/// Axes of one rank have nothing to cut or to reduce: everything is replicated there. Cuts are written in one way.
Placements normalise(Placements placements, at::IntArrayRef sizes, const Mesh& mesh) {
  for (int axis = 0; axis < placements.size(); ++axis) {
    if (mesh.axis_size(axis) == 1) placements[axis] = Replicate();
  }
  const tensor::StageMap& map = tensor::MeshRuntime::of(mesh).stages.map();
  if (map.axis() >= 0) placements[map.axis()] = map.placement_of(map.set_of(placements));
  return tensor::canonical(placements, sizes, mesh);
}

const Placements& checked_placements(const at::Tensor& tensor, const char* operation) {
  check<ShapeError>(tensor::is_mesh(tensor), "{}: a plain tensor has no placements; make it a mesh tensor with "
                    "tessera::distribute", operation);
  return tensor::storage_of(tensor).placements();
}

/// A copy without gaps whose dims lie in `order`.
at::Tensor own_copy(const at::Tensor& tensor, const tensor::DimOrder& order) {
  const at::Tensor copy = tensor.permute(order).clone(at::MemoryFormat::Contiguous);
  return copy.permute(tensor::inverse(order));
}

/// A mesh tensor with a copy of `local` for a shard, and dims in `order`.
at::Tensor wrap_copy(const at::Tensor& local, const Placements& placements, const Mesh& mesh, at::IntArrayRef sizes,
                     const tensor::DimOrder& order) {
  return tensor::wrap_as(own_copy(local, order), placements, mesh, sizes, tensor::dense_strides(sizes, order));
}

at::Tensor redistributed(const at::Tensor& tensor, const Placements& target) {
  const tensor::DimOrder order = tensor::memory_order(tensor.sizes(), tensor.strides());
  return wrap_copy(tensor::read_as(tensor, target), target, tensor::storage_of(tensor).mesh(), tensor.sizes(), order);
}

/// What rank zero passed, on every rank, in the order in which it lies there.
at::Tensor value_of_rank_zero(const at::Tensor& value, const Mesh& mesh) {
  if (mesh.size() == 1) return value;
  tensor::DimOrder order = tensor::memory_order(value.sizes(), value.strides());
  if (value.dim() > 1) {
    at::Tensor words = at::empty({value.dim()}, at::kLong);
    std::copy(order.begin(), order.end(), words.mutable_data_ptr<std::int64_t>());
    words = words.to(mesh.device());
    mesh.everyone().broadcast(words, 0);
    words = words.cpu();
    std::copy_n(words.const_data_ptr<std::int64_t>(), order.size(), order.begin());
  }
  at::Tensor copy = value.permute(order).clone(at::MemoryFormat::Contiguous);
  mesh.everyone().broadcast(copy, 0);
  return copy.permute(tensor::inverse(order));
}

/// Redistribution keeps the value, so its gradient is the identity.
struct Redistribute : torch::autograd::Function<Redistribute> {
  static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& tensor, const Placements& target) {
    return redistributed(tensor, target);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 const torch::autograd::variable_list& gradients) {
    return {gradients[0], at::Tensor()};
  }
};

}  // namespace

at::Tensor distribute(const at::Tensor& tensor, const Mesh& mesh, const Placements& placements, Source source) {
  tensor::register_operators();
  check<ShapeError>(tensor.defined(), "distribute: the tensor is undefined");
  check<ShapeError>(!tensor::is_mesh(tensor), "distribute: the tensor is on mesh {} already; use tessera::redistribute",
                    tensor::is_mesh(tensor) ? tensor::storage_of(tensor).mesh().to_string() : "");
  check_placements(tensor.sizes(), mesh, placements, /*partial_allowed=*/false);
  const Placements target = normalise(placements, tensor.sizes(), mesh);
  at::NoGradGuard no_grad;
  at::Tensor value = tensor.detach().to(mesh.device());
  if (source == Source::kRankZero) value = value_of_rank_zero(value, mesh);
  const at::Tensor mine = tensor::redistribute_local(value, value.sizes(), value.strides(),
                                                     Placements::replicated(mesh.num_axes()), target, mesh);
  at::Tensor result =
      wrap_copy(mine, target, mesh, value.sizes(), tensor::memory_order(value.sizes(), value.strides()));
  if (tensor.requires_grad()) result.set_requires_grad(true);
  return result;
}

void distribute_(at::Tensor& tensor, const Mesh& mesh, const Placements& placements, Source source) {
  check<ShapeError>(tensor.defined() && tensor.is_leaf(),
                    "distribute_: only leaf tensors (parameters, buffers) can change in place; use tessera::distribute");
  const at::Tensor result = distribute(tensor, mesh, placements, source);
  // set_data would refuse the change of keys; the virtual behind it does not.
  tensor.unsafeGetTensorImpl()->shallow_copy_from(result.getIntrusivePtr());
}

at::Tensor from_local(const at::Tensor& local, const Mesh& mesh, const Placements& placements,
                      at::IntArrayRef global_sizes) {
  tensor::register_operators();
  check_placements(global_sizes, mesh, placements, /*partial_allowed=*/true);
  const Placements target = normalise(placements, global_sizes, mesh);
  const tensor::Sizes expected = tensor::local_sizes(global_sizes, target, mesh);
  check<ShapeError>(local.sizes() == at::IntArrayRef(expected),
                    "from_local: rank {} passes a shard of sizes [{}]; {} of [{}] on mesh {} leaves it [{}]",
                    mesh.rank(), fmt::join(local.sizes(), ", "), format_placements(target),
                    fmt::join(global_sizes, ", "), mesh.to_string(), fmt::join(expected, ", "));
  check<ShapeError>(local.device() == mesh.device() || local.is_meta(),
                    "from_local: the shard is on {}, the ranks of mesh {} on {}; pass shard.to(mesh.device())",
                    local.device().str(), mesh.to_string(), mesh.device().str());
  const bool here = tensor::MeshRuntime::of(mesh).stages.map().has_data(target);
  at::Tensor shard = here ? local.detach() : local.detach().to(at::kMeta);
  // Where some shard cannot tell how the whole lies, all lie alike.
  if (tensor::strides_are_ambiguous(target, mesh, global_sizes)) {
    const tensor::Sizes strides = tensor::contiguous_strides(global_sizes);
    shard = tensor::in_order(shard, tensor::memory_order(global_sizes, strides));
  }
  return tensor::wrap(std::move(shard), target, mesh, global_sizes);
}

bool is_mesh_tensor(const at::Tensor& tensor) noexcept { return tensor::is_mesh(tensor); }

at::Tensor local(const at::Tensor& tensor) {
  return tensor::is_mesh(tensor) ? tensor::storage_of(tensor).local() : tensor;
}

at::Tensor full(const at::Tensor& tensor) {
  if (!tensor::is_mesh(tensor)) return tensor;
  at::NoGradGuard no_grad;
  const Placements target = Placements::replicated(tensor::storage_of(tensor).mesh().num_axes());
  return tensor::read_as(tensor, target);
}

at::Tensor redistribute(const at::Tensor& tensor, const Placements& placements) {
  const Mesh& mesh = mesh_of(tensor);
  check_placements(tensor.sizes(), mesh, placements, /*partial_allowed=*/true);
  const Placements target = normalise(placements, tensor.sizes(), mesh);
  for (int axis = 0; axis < target.size(); ++axis) {
    check<ShapeError>(!target[axis].is_partial() || tensor::storage_of(tensor).placements()[axis] == target[axis],
                      "redistribute: axis {} cannot become partial; allowed: replicate, shard(DIM)",
                      mesh.axes()[static_cast<std::size_t>(axis)].name);
  }
  if (!tensor.requires_grad()) return redistributed(tensor, target);
  return Redistribute::apply(tensor, target);
}

const Placements& placements(const at::Tensor& tensor) { return checked_placements(tensor, "placements"); }

const Mesh& mesh_of(const at::Tensor& tensor) {
  (void)checked_placements(tensor, "mesh_of");
  return tensor::storage_of(tensor).mesh();
}

std::string describe(const at::Tensor& tensor) {
  const std::string what =
      fmt::format("[{}] {}", fmt::join(tensor.sizes(), ", "), at::toString(tensor.scalar_type()));
  if (!tensor::is_mesh(tensor)) return what;
  const tensor::MeshStorage& storage = tensor::storage_of(tensor);
  return fmt::format("{} on {}: {}", what, storage.mesh().to_string(), format_placements(storage.placements()));
}

void print(std::ostream& stream, const at::Tensor& tensor) { stream << full(tensor) << '\n' << describe(tensor) << '\n'; }

const std::map<std::string, std::int64_t>& replicated_fallbacks(const Mesh& mesh) {
  return tensor::MeshRuntime::of(mesh).fallbacks();
}

const std::map<std::string, GatherCount>& gathers(const Mesh& mesh) {
  return tensor::MeshRuntime::of(mesh).gathers();
}

const std::set<std::string>& sharded_operators(const Mesh& mesh) {
  return tensor::MeshRuntime::of(mesh).sharded_operators();
}

}  // namespace tessera
