// SPDX-License-Identifier: Apache-2.0
// Dynamic loss scaling: the scale's course, and agreement of all ranks.
#include "tessera/module/grad_scaler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "module/models.h"
#include "tessera/base/error.h"
#include "tessera/module/clip.h"
#include "tessera/module/master_weights.h"

namespace tessera {
namespace {

using at::Tensor;

Tensor parameter_with_gradient(double value) {
  Tensor parameter = torch::ones({3}, torch::kFloat).requires_grad_();
  parameter.mutable_grad() = torch::full({3}, value, torch::kFloat);
  return parameter;
}

TEST(GradScaler, StartsGrowsAndShrinksAsInTorch) {
  Tensor parameter = parameter_with_gradient(0);
  torch::optim::SGD optimizer({parameter}, torch::optim::SGDOptions(1.0));
  GradScaler scaler({.growth_interval = 2});
  EXPECT_EQ(scaler.get_scale(), 65536.0);
  const auto step_with = [&](double gradient) {
    parameter.mutable_grad() = torch::full({3}, gradient, torch::kFloat);
    const bool stepped = scaler.step(optimizer);
    scaler.update();
    return stepped;
  };
  EXPECT_TRUE(step_with(1));
  EXPECT_EQ(scaler.state(), (GradScaler::State{65536.0, 1}));
  EXPECT_TRUE(step_with(1));
  EXPECT_EQ(scaler.state(), (GradScaler::State{131072.0, 0}));
  EXPECT_TRUE(step_with(1));
  EXPECT_FALSE(step_with(std::numeric_limits<double>::infinity()));
  EXPECT_EQ(scaler.state(), (GradScaler::State{65536.0, 0}));
}

TEST(GradScaler, LeavesParametersAloneWhenAStepIsSkipped) {
  Tensor parameter = parameter_with_gradient(std::nan(""));
  torch::optim::SGD optimizer({parameter}, torch::optim::SGDOptions(1.0));
  GradScaler scaler;
  EXPECT_FALSE(scaler.step(optimizer));
  EXPECT_TRUE(torch::equal(parameter.detach(), torch::ones({3})));
}

TEST(GradScaler, TrainsAsWithoutScalingOnEveryLayout) {
  const auto train = [](test::Net& net, const auto& place, bool enabled) {
    torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.1));
    GradScaler scaler({.init_scale = 1024, .enabled = enabled});
    for (int index = 0; index < 3; ++index) {
      optimizer.zero_grad();
      scaler.scale(test::squared_error(net->forward(place(test::inputs(index))), place(test::targets()))).backward();
      EXPECT_TRUE(scaler.step(optimizer));
      scaler.update();
    }
  };
  test::Net alone = test::make_net();
  train(
      alone, [](const Tensor& x) { return x; }, /*enabled=*/false);
  test::on_layouts([&](const Mesh& mesh, test::Net& net) {
    train(
        net, [&](const Tensor& x) { return shard_batch(mesh, x); }, /*enabled=*/true);
    for (std::size_t i = 0; i < net->parameters().size(); ++i) {
      EXPECT_LE(test::difference(net->parameters()[i], alone->parameters()[i]), 1e-13);
    }
  });
}

TEST(GradScaler, KeepsGradientsOfMasterWeightsThatFp16CannotHold) {
  Tensor parameter = torch::ones({3}, torch::kHalf).requires_grad_();
  const auto optimizer = make_master_weights<torch::optim::SGD>({parameter}, torch::optim::SGDOptions(1024.0));
  GradScaler scaler;
  const auto step_with = [&](double gradient) {
    parameter.mutable_grad() = torch::full({3}, gradient, torch::kHalf);
    const bool stepped = scaler.step(*optimizer);
    scaler.update();
    return stepped;
  };
  EXPECT_TRUE(step_with(std::ldexp(1.0, -10)));
  EXPECT_EQ(parameter.grad()[0].item<double>(), std::ldexp(1.0, -26)) << "a quarter of the least fp16 number";
  EXPECT_EQ(optimizer->masters()[0][0].item<double>(), 1 - std::ldexp(1.0, -16));
  EXPECT_FALSE(step_with(std::numeric_limits<double>::infinity()));
  EXPECT_EQ(optimizer->masters()[0][0].item<double>(), 1 - std::ldexp(1.0, -16));
}

TEST(GradScaler, TrainsAHalfPrecisionModelUnderMasterWeightsOnEveryLayout) {
  const auto train = [](test::Net& net, const auto& place) {
    const auto optimizer = make_master_weights<torch::optim::SGD>(net->parameters(), torch::optim::SGDOptions(0.1));
    GradScaler scaler({.init_scale = 1024});
    for (int index = 0; index < 3; ++index) {
      optimizer->zero_grad();
      const Tensor output = net->forward(place(test::inputs(index).to(torch::kHalf)));
      scaler.scale(test::squared_error(output.to(torch::kFloat), place(test::targets().to(torch::kFloat)))).backward();
      scaler.unscale_(*optimizer);
      (void)clip_grad_norm_(net->parameters(), 0.5);
      EXPECT_TRUE(scaler.step(*optimizer));
      scaler.update();
    }
    return optimizer->masters();
  };
  const auto make_half_net = [] {
    test::Net net = test::make_net();
    net->to(torch::kHalf);
    return net;
  };
  test::Net alone = make_half_net();
  const std::vector<Tensor> expected = train(alone, [](const Tensor& x) { return x; });
  for (const test::Layout& layout : test::layouts()) {
    SCOPED_TRACE(layout.name);
    test::on_mesh(layout.axes, [&](const Mesh& mesh) {
      test::Net net = make_half_net();
      distribute(*net, mesh, layout.plan);
      const std::vector<Tensor> found = train(net, [&](const Tensor& x) { return shard_batch(mesh, x); });
      for (std::size_t i = 0; i < expected.size(); ++i) {
        // Three steps of 0.1 with gradients of at most 0.5, rounded to 11 bits.
        EXPECT_LE(test::difference(found[i], expected[i]), 3 * 0.1 * 0.5 * 5e-3) << i;
      }
    });
  }
}

TEST(GradScaler, SkipsTheStepOnEveryRankIfOneRankOverflows) {
  test::on_layouts([](const Mesh& mesh, test::Net& net) {
    torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.1));
    test::backward(mesh, net);
    (void)full(net->second->weight.grad());
    // The last rank's shard only: nobody else can see it without asking.
    if (mesh.rank() == mesh.size() - 1) {
      const Tensor part = local(net->second->weight.grad());
      part.view({-1})[0] = std::numeric_limits<double>::infinity();
    }
    GradScaler scaler;
    EXPECT_FALSE(scaler.step(optimizer));
    scaler.update();
    EXPECT_EQ(scaler.get_scale(), 32768.0);
  });
}

TEST(GradScaler, StateCanBeCarriedOver) {
  GradScaler scaler;
  scaler.load_state({512.0, 7});
  EXPECT_EQ(scaler.get_scale(), 512.0);
  EXPECT_EQ(scaler.state().growth_tracker, 7);
  EXPECT_EQ(scaler.scale(torch::ones({}, torch::kHalf)).item<double>(), 512.0);
}

TEST(GradScaler, RefusesCallsOutOfOrderAndHalfPrecisionGradients) {
  Tensor parameter = parameter_with_gradient(1);
  torch::optim::SGD optimizer({parameter}, torch::optim::SGDOptions(1.0));
  GradScaler scaler;
  EXPECT_THROW(scaler.update(), Error);
  scaler.unscale_(optimizer);
  EXPECT_THROW(scaler.unscale_(optimizer), Error);
  (void)scaler.step(optimizer);
  EXPECT_THROW((void)scaler.step(optimizer), Error);
  scaler.update();
  Tensor half = torch::ones({3}, torch::kHalf);
  half.mutable_grad() = torch::ones({3}, torch::kHalf);
  torch::optim::SGD half_optimizer({half}, torch::optim::SGDOptions(1.0));
  EXPECT_THROW(scaler.unscale_(half_optimizer), Error);
  EXPECT_THROW(GradScaler({.growth_factor = 1.0}), ConfigError);
  EXPECT_THROW(GradScaler({.backoff_factor = 1.0}), ConfigError);
}

TEST(GradScaler, PassesEverythingThroughWhenDisabled) {
  Tensor parameter = parameter_with_gradient(1);
  torch::optim::SGD optimizer({parameter}, torch::optim::SGDOptions(1.0));
  GradScaler scaler({.enabled = false});
  const Tensor loss = torch::ones({});
  EXPECT_TRUE(scaler.scale(loss).is_same(loss));
  EXPECT_TRUE(scaler.step(optimizer));
  scaler.update();
  EXPECT_TRUE(torch::equal(parameter.detach(), torch::zeros({3})));
}

}  // namespace
}  // namespace tessera
