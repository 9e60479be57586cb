// SPDX-License-Identifier: Apache-2.0
// NaN and infinity by name and rank.
#include "tessera/module/check_finite.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/isinf.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <limits>
#include <optional>

#include "module/gradient_shards.h"
#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/tensor/stages.h"

namespace tessera {
namespace {

struct Checked {
  std::string name;
  at::Tensor tensor;
};

std::vector<Checked> everything(const torch::nn::Module& module) {
  std::vector<Checked> all;
  for (const auto& item : module.named_parameters()) {
    all.push_back({"parameter " + item.key(), item.value().detach()});
  }
  for (const auto& item : module.named_parameters()) {
    if (item.value().grad().defined()) all.push_back({"gradient of " + item.key(), item.value().grad()});
  }
  return all;
}

/// x - x is 0 for finite values and NaN for all others, so that one sum tells.
bool is_finite(const at::Tensor& local) {
  if (!local.is_floating_point() && !local.is_complex()) return true;
  const at::Tensor numbers = module::real_numbers(local);
  return numbers.sub(numbers).sum().item<double>() == 0;
}

std::optional<Mesh> mesh_among(const std::vector<Checked>& all) {
  for (const Checked& item : all) {
    if (is_mesh_tensor(item.tensor)) return mesh_of(item.tensor);
  }
  return std::nullopt;
}

constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();

std::int64_t first_not_finite(const std::vector<Checked>& all) {
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (is_here(all[i].tensor) && !is_finite(local(all[i].tensor))) return static_cast<std::int64_t>(i);
  }
  return kNone;
}

/// Counts of NaN and infinity in what `rank` holds of `tensor`, on every rank.
std::pair<std::int64_t, std::int64_t> counts(const at::Tensor& tensor, const std::optional<Mesh>& mesh, int rank) {
  at::Tensor found = at::zeros({2}, at::TensorOptions(at::kLong).device(mesh ? mesh->device() : tensor.device()));
  if (is_here(tensor)) found = at::stack({at::isnan(local(tensor)).sum(), at::isinf(local(tensor)).sum()});
  if (mesh && mesh->size() > 1) mesh->everyone().broadcast(found, rank);
  return {found[0].item<std::int64_t>(), found[1].item<std::int64_t>()};
}

}  // namespace

void check_finite(const torch::nn::Module& module) {
  const at::NoGradGuard no_grad;
  const std::vector<Checked> all = everything(module);
  const std::optional<Mesh> mesh = mesh_among(all);
  const std::int64_t size = mesh ? mesh->size() : 1;
  const std::int64_t mine = first_not_finite(all);
  // Item and rank in one number, so that one reduction finds the first item and the first rank that holds it.
  std::int64_t first = mine == kNone ? kNone : mine * size + (mesh ? mesh->rank() : 0);
  if (mesh && size > 1) {
    at::Tensor number = at::tensor({first}, at::kLong).to(mesh->device());
    mesh->everyone().all_reduce(number, comm::ReduceOp::kMin);
    first = number.item<std::int64_t>();
  }
  if (first == kNone) return;
  const Checked& found = all[static_cast<std::size_t>(first / size)];
  const int rank = static_cast<int>(first % size);
  const auto [nans, infinities] = counts(found.tensor, mesh, rank);
  throw Error(
      fmt::format("{} is not finite on rank {} of {}: {} NaN and {} infinite values; lower the learning rate, "
                  "clip gradients, or look at that rank's data",
                  found.name, rank, size, nans, infinities));
}

}  // namespace tessera
