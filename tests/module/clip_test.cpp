// SPDX-License-Identifier: Apache-2.0
// The global gradient norm and clipping, against torch on one device.
#include "tessera/module/clip.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "module/models.h"
#include "tessera/base/error.h"

namespace tessera {
namespace {

using at::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::pair<double, std::vector<Tensor>> clipped_alone(double max_norm, double norm_type) {
  test::Net net = test::make_net();
  test::backward(net, test::inputs(), test::targets());
  const double norm = torch::nn::utils::clip_grad_norm_(net->parameters(), max_norm, norm_type);
  std::vector<Tensor> gradients;
  for (const Tensor& parameter : net->parameters()) gradients.push_back(parameter.grad());
  return {norm, gradients};
}

TEST(ClipGradNorm, MatchesTorchOnEveryLayout) {
  for (const double norm_type : {2.0, 1.0, 3.0, kInfinity}) {
    for (const double max_norm : {0.01, 100.0}) {
      const auto [norm, gradients] = clipped_alone(max_norm, norm_type);
      test::on_layouts([&, norm = norm, gradients = gradients](const Mesh& mesh, test::Net& net) {
        test::backward(mesh, net);
        EXPECT_NEAR(clip_grad_norm_(net->parameters(), max_norm, norm_type), norm, 1e-14 + 1e-14 * norm);
        for (std::size_t i = 0; i < gradients.size(); ++i) {
          EXPECT_LE(test::difference(net->parameters()[i].grad(), gradients[i]), 1e-15);
        }
      });
    }
  }
}

TEST(ClipGradNorm, TorchsOwnGivesTheSameOnMeshTensors) {
  const auto [norm, gradients] = clipped_alone(0.01, 2.0);
  test::on_layouts([&, norm = norm, gradients = gradients](const Mesh& mesh, test::Net& net) {
    test::backward(mesh, net);
    EXPECT_NEAR(torch::nn::utils::clip_grad_norm_(net->parameters(), 0.01), norm, 1e-14);
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      EXPECT_LE(test::difference(net->parameters()[i].grad(), gradients[i]), 1e-15);
    }
  });
}

TEST(GradientNorm, CostsAtMostOneReductionForAllParameters) {
  test::on_layouts([](const Mesh& mesh, test::Net& net) {
    test::backward(mesh, net);
    bool sharded = false;
    for (const Tensor& parameter : net->parameters()) {
      parameter.mutable_grad() = redistribute(parameter.grad(), placements(parameter));
      for (const Placement& placement : placements(parameter)) sharded = sharded || placement.is_shard();
    }
    (void)gradient_norm(net->parameters());
    const auto before = mesh.traffic();
    (void)gradient_norm(net->parameters());
    EXPECT_EQ(mesh.traffic().calls - before.calls, sharded ? 1 : 0);
    EXPECT_EQ(mesh.traffic().bytes - before.bytes, sharded ? 8 : 0);
  });
}

TEST(GradientNorm, SumsPartialGradientsFirst) {
  const auto [norm, gradients] = clipped_alone(100.0, 2.0);
  test::on_layouts([&, norm = norm](const Mesh& mesh, test::Net& net) {
    const NoSync guard(*net);
    test::backward(mesh, net);
    EXPECT_NEAR(gradient_norm(net->parameters()), norm, 1e-14);
  });
}

TEST(GradientNorm, CountsTiedParametersAndMixedOnesOnce) {
  test::on_mesh("dp=2,tp=2", [](const Mesh& mesh) {
    Tensor cut = distribute(torch::ones({5, 3}, torch::kDouble), mesh, {Replicate(), Shard(0)});
    Tensor whole = distribute(torch::ones({4}, torch::kDouble), mesh, {Replicate(), Replicate()});
    Tensor plain = torch::ones({6}, torch::kDouble);
    std::vector<Tensor> parameters{cut, whole, plain, cut};
    for (Tensor& parameter : parameters) parameter.mutable_grad() = torch::ones_like(parameter);
    EXPECT_DOUBLE_EQ(gradient_norm(parameters), 5.0);
  });
}

TEST(GradientNorm, OfWideHalfPrecisionGradientsDoesNotOverflow) {
  Tensor parameter = torch::zeros({4}, torch::kHalf);
  parameter.mutable_grad() = torch::full({4}, 60000.0, torch::kHalf);
  EXPECT_NEAR(gradient_norm({parameter}), 120000.0, 100.0);
}

TEST(ClipGradNorm, LetsNaNThrough) {
  Tensor parameter = torch::zeros({2}, torch::kDouble);
  parameter.mutable_grad() = torch::full({2}, std::nan(""), torch::kDouble);
  EXPECT_TRUE(std::isnan(clip_grad_norm_({parameter}, 1.0)));
  EXPECT_TRUE(std::isnan(clip_grad_norm_({parameter}, 1.0, kInfinity)));
}

TEST(ClipGradNorm, RefusesNegativeNorms) {
  EXPECT_THROW(clip_grad_norm_({}, -1.0), ConfigError);
  EXPECT_THROW((void)gradient_norm({}, 0.0), ConfigError);
  EXPECT_EQ(clip_grad_norm_({}, 1.0), 0.0);
}

}  // namespace
}  // namespace tessera
