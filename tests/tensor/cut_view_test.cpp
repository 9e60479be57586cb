// SPDX-License-Identifier: Apache-2.0
// Views along sharded dims: what is written and added up is what one device writes and adds up.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <torch/torch.h>

#include <functional>
#include <string>
#include <vector>

#include "support/ranks.h"
#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera {
namespace {

using at::Tensor;

Tensor values(at::IntArrayRef sizes) {
  return (torch::arange(c10::multiply_integers(sizes), torch::kDouble) * 0.37 + 0.2).sin().view(sizes);
}

/// A mesh, and placements of a matrix on it.
struct Lies {
  const char* axes;
  Placements placements;
};

/// Even, uneven and empty shards of 7 x 5; both dims cut; one dim cut twice.
const std::vector<Lies> kWays = {{"dp=2", {Shard(0)}},
                                 {"tp=2", {Shard(1)}},
                                 {"tp=3", {Shard(0)}},
                                 {"tp=6", {Shard(1)}},
                                 {"dp=2", {Replicate()}},
                                 {"dp=2,tp=2", {Shard(0), Shard(1)}},
                                 {"dp=2,tp=2", {Shard(0), Shard(0)}},
                                 {"dp=2,tp=2", {Replicate(), Shard(0)}}};

/// Calls `body` with a plain 7 x 5 matrix and the same in each way on a mesh.
void on_each_way(const std::function<void(const Tensor& plain, const Tensor& spread)>& body) {
  for (const Lies& lies : kWays) {
    std::string name = lies.axes;
    for (const Placement& placement : lies.placements) name += " " + to_string(placement);
    SCOPED_TRACE(name);
    const Tensor plain = values({7, 5});
    test::on_mesh(lies.axes, [&](const Mesh& mesh) {
      SCOPED_TRACE(name);
      body(plain, distribute(plain, mesh, lies.placements));
    });
  }
}

TEST(CutView, GradientsThatAreViewsAddUp) {
  using Loss = std::function<Tensor(const Tensor&)>;
  const std::vector<std::pair<const char*, Loss>> losses = {
      {"a tensor joined to itself", [](const Tensor& h) { return torch::cat({h, h}, 0).exp(); }},
      {"along the other dim", [](const Tensor& h) { return torch::cat({h, h, h}, 1).exp(); }},
      {"states of a recurrence",
       [](const Tensor& h) {
         Tensor state = torch::zeros({5}, torch::kDouble);
         std::vector<Tensor> states;
         for (std::int64_t i = 0; i < h.size(0); ++i) states.push_back(state = torch::tanh(h[i] + state));
         return torch::stack(states, 0) * h;
       }},
      {"pieces that are used again",
       [](const Tensor& h) {
         const auto pieces = h.split(3, 0);
         return torch::cat({pieces[0], pieces[1].exp(), pieces[0] * 2, pieces[2]}, 0);
       }},
  };
  for (const auto& [name, loss] : losses) {
    SCOPED_TRACE(name);
    const auto gradient = [&, &loss = loss](const Tensor& x) {
      const Tensor leaf = x.detach().requires_grad_();
      loss(leaf * 1.5).pow(2).sum().backward();
      return leaf.grad();
    };
    on_each_way([&](const Tensor& plain, const Tensor& spread) {
      EXPECT_TRUE(at::allclose(full(gradient(spread)), gradient(plain), 1e-12, 1e-12));
    });
  }
}

}  // namespace
}  // namespace tessera
