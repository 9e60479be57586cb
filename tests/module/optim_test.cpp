// SPDX-License-Identifier: Apache-2.0
// Every optimizer of torch::optim on parameters of every placement, against one device.
#include <gtest/gtest.h>

#include "module/models.h"
#include "module/optimizer_maker.h"

namespace tessera {
namespace {

using at::Tensor;
using test::maker;
using test::MakeOptimizer;

/// Replicate, Shard(0) and Shard(1) on every axis of three meshes, and both shards together.
std::vector<test::Layout> every_placement() {
  std::vector<test::Layout> all;
  const auto add = [&](const std::string& axes, const Plan& plan) {
    all.push_back({axes + " with plan\n" + plan.to_toml(), axes, plan});
  };
  for (const std::string axes : {"dp=2", "tp=2", "dp=2,tp=2"}) {
    add(axes, Plan());
    for (const std::string axis : {"dp", "tp"}) {
      if (axes.find(axis) == std::string::npos) continue;
      add(axes, Plan().add("*", {{axis, Shard(0)}}));
      add(axes, Plan().add("*.weight", {{axis, Shard(1)}}));
    }
  }
  add("dp=2,tp=2", Plan().add("*.weight", {{"dp", Shard(0)}, {"tp", Shard(1)}}));
  add("dp=2,tp=2", Plan().add("*", {{"dp", Shard(0)}, {"tp", Shard(0)}}));
  return all;
}

template <class Place>
std::vector<Tensor> train(test::Net& net, const MakeOptimizer& make, const Place& place) {
  const auto optimizer = make(net->parameters());
  for (int index = 0; index < 3; ++index) {
    const auto closure = [&] {
      optimizer->zero_grad();
      return step(*net, place(test::inputs(index)), place(test::targets()), test::squared_error);
    };
    (void)optimizer->step(closure);
  }
  return net->parameters();
}

void expect_equal_on_every_placement(const MakeOptimizer& make) {
  test::Net alone = test::make_net();
  const auto expected = train(alone, make, [](const Tensor& x) { return x; });
  EXPECT_GT(test::difference(expected[0], test::make_net()->parameters()[0]), 1e-4) << "nothing was trained";
  for (const test::Layout& layout : every_placement()) {
    SCOPED_TRACE(layout.name);
    test::on_mesh(layout.axes, [&](const Mesh& mesh) {
      test::Net net = test::make_net();
      distribute(*net, mesh, layout.plan);
      const auto found = train(net, make, [&](const Tensor& x) { return shard_batch(mesh, x); });
      for (std::size_t i = 0; i < expected.size(); ++i) {
        EXPECT_LE(test::difference(found[i], expected[i]), 1e-12) << "parameter " << i << " on " << layout.name;
      }
    });
  }
}

TEST(TorchOptim, AdamMatchesOneDevice) {
  using torch::optim::AdamOptions;
  expect_equal_on_every_placement(maker<torch::optim::Adam>(AdamOptions(1e-2)));
  expect_equal_on_every_placement(maker<torch::optim::Adam>(AdamOptions(1e-2).amsgrad(true).weight_decay(0.1)));
}

TEST(TorchOptim, AdamWMatchesOneDevice) {
  using torch::optim::AdamWOptions;
  expect_equal_on_every_placement(maker<torch::optim::AdamW>(AdamWOptions(1e-2)));
  expect_equal_on_every_placement(maker<torch::optim::AdamW>(AdamWOptions(1e-2).amsgrad(true)));
}

TEST(TorchOptim, SgdMatchesOneDevice) {
  using torch::optim::SGDOptions;
  expect_equal_on_every_placement(maker<torch::optim::SGD>(SGDOptions(0.1)));
  expect_equal_on_every_placement(maker<torch::optim::SGD>(SGDOptions(0.1).momentum(0.9).dampening(0.3)));
  expect_equal_on_every_placement(
      maker<torch::optim::SGD>(SGDOptions(0.1).momentum(0.9).nesterov(true).weight_decay(0.1)));
}

TEST(TorchOptim, AdagradMatchesOneDevice) {
  expect_equal_on_every_placement(maker<torch::optim::Adagrad>(torch::optim::AdagradOptions(1e-2).lr_decay(0.1)));
}

TEST(TorchOptim, RmspropMatchesOneDevice) {
  using torch::optim::RMSpropOptions;
  expect_equal_on_every_placement(maker<torch::optim::RMSprop>(RMSpropOptions(1e-3)));
  expect_equal_on_every_placement(maker<torch::optim::RMSprop>(RMSpropOptions(1e-3).centered(true).momentum(0.9)));
}

TEST(TorchOptim, LbfgsMatchesOneDevice) {
  using torch::optim::LBFGSOptions;
  expect_equal_on_every_placement(maker<torch::optim::LBFGS>(LBFGSOptions(0.1).max_iter(4)));
  expect_equal_on_every_placement(
      maker<torch::optim::LBFGS>(LBFGSOptions(1).max_iter(4).line_search_fn("strong_wolfe")));
}

}  // namespace
}  // namespace tessera
