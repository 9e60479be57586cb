// SPDX-License-Identifier: Apache-2.0
// Grouping gradients by mesh.
#include "module/gradient_shards.h"

#include <ATen/ops/view_as_real.h>

#include <algorithm>
#include <unordered_set>

#include "tensor/redistribute.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/tensor/stages.h"

namespace tessera::module {
namespace {

GradientGroup& group_for(std::vector<GradientGroup>& groups, const at::Tensor& gradient) {
  const bool on_mesh = is_mesh_tensor(gradient);
  const auto fits = [&](const GradientGroup& group) {
    return on_mesh ? group.mesh && *group.mesh == mesh_of(gradient) : !group.mesh;
  };
  const auto found = std::find_if(groups.begin(), groups.end(), fits);
  if (found != groups.end()) return *found;
  GradientGroup& added = groups.emplace_back();
  if (on_mesh) added.mesh = mesh_of(gradient);
  return added;
}

}  // namespace

std::vector<at::Tensor> each_once(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> result;
  std::unordered_set<const void*> seen;
  for (const at::Tensor& tensor : tensors) {
    if (seen.insert(tensor.unsafeGetTensorImpl()).second) result.push_back(tensor);
  }
  return result;
}

std::vector<GradientGroup> group_gradients(const std::vector<at::Tensor>& parameters) {
  std::vector<GradientGroup> groups;
  for (const at::Tensor& parameter : each_once(parameters)) {
    const at::Tensor& gradient = parameter.grad();
    if (gradient.defined()) group_for(groups, gradient).gradients.push_back(gradient);
  }
  return groups;
}

void reduce_partial(const GradientGroup& group) {
  if (!group.mesh) return;
  const Placements whole = Placements::replicated(group.mesh->num_axes());
  for (const at::Tensor& gradient : group.gradients) tensor::reduce_in_storage(gradient, whole);
}

std::vector<at::Tensor> local_parts(const GradientGroup& group) {
  std::vector<at::Tensor> parts;
  parts.reserve(group.gradients.size());
  for (const at::Tensor& gradient : group.gradients) {
    if (is_here(gradient)) parts.push_back(local(gradient));
  }
  return parts;
}

at::Tensor real_numbers(const at::Tensor& part) {
  return part.is_complex() ? at::view_as_real(part.is_conj() ? part.conj() : part) : part;
}

void mark_written(const GradientGroup& group) {
  for (const at::Tensor& gradient : group.gradients) gradient.unsafeGetTensorImpl()->bump_version();
}

}  // namespace tessera::module
