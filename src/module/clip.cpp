// SPDX-License-Identifier: Apache-2.0
// Clipping: local norms, one reduction, one host read.
#include "tessera/module/clip.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <bit>
#include <cmath>

#include "module/gradient_shards.h"
#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/tensor/stages.h"

namespace tessera {
namespace {

using module::GradientGroup;

/// Bit i set: the ranks along axis i hold different parts.
unsigned spread_axes(const Placements& placements) {
  unsigned axes = 0;
  for (int axis = 0; axis < placements.size(); ++axis) {
    if (!placements[axis].is_replicate()) axes |= 1U << static_cast<unsigned>(axis);
  }
  return axes;
}

/// What several pipeline stages have counts on the first of them.
bool is_first_here(const at::Tensor& gradient, const Mesh& mesh) {
  const int pp = mesh.axis_index("pp");
  if (pp < 0 || !placements(gradient)[pp].is_stage()) return true;
  const int first = std::countr_zero(placements(gradient)[pp].stages);
  return rank_of_stage(mesh)[static_cast<std::size_t>(first)] == mesh.coordinate(pp);
}

/// True if this rank holds the part that counts, among those along `axes` that hold the same.
bool counts_here(const Mesh& mesh, unsigned axes) {
  for (int axis = 0; axis < mesh.num_axes(); ++axis) {
    if ((axes >> static_cast<unsigned>(axis) & 1U) != 0 && mesh.coordinate(axis) != 0) return false;
  }
  return true;
}

/// Norms of 16-bit values overflow their type.
at::Tensor norm_of(const at::Tensor& local, double norm_type) {
  const bool narrow = local.scalar_type() == at::kHalf || local.scalar_type() == at::kBFloat16;
  return at::linalg_vector_norm(local, norm_type, std::nullopt, false,
                                narrow ? std::optional(at::kFloat) : std::nullopt)
      .to(at::kDouble);
}

/// Norms of the parts that count on this rank, and the axes over which they add up.
std::pair<std::vector<at::Tensor>, unsigned> local_norms(const GradientGroup& group, double norm_type) {
  std::vector<unsigned> axes_of;
  unsigned axes = 0;
  for (const at::Tensor& gradient : group.gradients) {
    axes_of.push_back(group.mesh ? spread_axes(placements(gradient)) : 0);
    axes |= axes_of.back();
  }
  std::vector<at::Tensor> norms;
  for (std::size_t i = 0; i < group.gradients.size(); ++i) {
    const at::Tensor part = local(group.gradients[i]);
    if (part.numel() == 0) continue;
    if (group.mesh && !(counts_here(*group.mesh, axes & ~axes_of[i]) && is_first_here(group.gradients[i], *group.mesh))) {
      continue;
    }
    norms.push_back(norm_of(part, norm_type));
  }
  return {std::move(norms), axes};
}

/// Sum of the p-th powers of all elements; the largest absolute value for the infinite norm.
at::Tensor power_of(const GradientGroup& group, double norm_type) {
  const auto [norms, axes] = local_norms(group, norm_type);
  const bool extreme = std::isinf(norm_type);
  const at::Device device = group.mesh ? group.mesh->device() : group.gradients.front().device();
  at::Tensor power = at::zeros({}, at::TensorOptions(device).dtype(at::kDouble));
  if (!norms.empty()) power = extreme ? at::stack(norms).max() : at::stack(norms).pow(norm_type).sum();
  if (axes != 0) group.mesh->across(axes).all_reduce(power, extreme ? comm::ReduceOp::kMax : comm::ReduceOp::kSum);
  return power;
}

double norm_over(const std::vector<GradientGroup>& groups, double norm_type) {
  check<ConfigError>(norm_type > 0, "gradient norm: norm_type = {}; allowed: above 0, or infinity", norm_type);
  double total = 0;
  for (const GradientGroup& group : groups) {
    module::reduce_partial(group);
    const double power = power_of(group, norm_type).item<double>();
    // Written so that NaN stays.
    total = std::isinf(norm_type) ? (power <= total ? total : power) : total + power;
  }
  return std::isinf(norm_type) ? total : std::pow(total, 1 / norm_type);
}

}  // namespace

double gradient_norm(const std::vector<at::Tensor>& parameters, double norm_type) {
  const at::NoGradGuard no_grad;
  return norm_over(module::group_gradients(parameters), norm_type);
}

double clip_grad_norm_(const std::vector<at::Tensor>& parameters, double max_norm, double norm_type) {
  check<ConfigError>(max_norm >= 0, "clip_grad_norm_: max_norm = {}; allowed: 0 and above", max_norm);
  const at::NoGradGuard no_grad;
  const std::vector<GradientGroup> groups = module::group_gradients(parameters);
  const double norm = norm_over(groups, norm_type);
  // 1e-6 as in torch.
  const double factor = max_norm / (norm + 1e-6);
  if (factor >= 1) return norm;
  for (const GradientGroup& group : groups) {
    const std::vector<at::Tensor> parts = module::local_parts(group);
    if (!parts.empty()) at::_foreach_mul_(parts, factor);
    module::mark_written(group);
  }
  return norm;
}

}  // namespace tessera
