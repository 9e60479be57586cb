// SPDX-License-Identifier: Apache-2.0
// Unmodified modules, losses and optimizers on meshes, against one device.
#include <gtest/gtest.h>

#include <torch/torch.h>

#include "module/optimizer_maker.h"
#include "support/ranks.h"
#include "tessera/base/error.h"
#include "tessera/module/distribute.h"
#include "tessera/module/plan.h"
#include "tessera/pipeline/step.h"

namespace tessera {
namespace {

using at::Tensor;

/// A residual block as a user would write it, without a word about ranks.
struct BlockImpl : torch::nn::Module {
  BlockImpl()
      : up(register_module("up", torch::nn::Linear(12, 24))),
        down(register_module("down", torch::nn::Linear(24, 12))),
        norm(register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({12})))) {
    to(torch::kDouble);
  }
  Tensor forward(const Tensor& x) { return norm(x + down(torch::gelu(up(x)))); }
  torch::nn::Linear up;
  torch::nn::Linear down;
  torch::nn::LayerNorm norm;
};
TORCH_MODULE(Block);

void fill(torch::nn::Module& module) {
  const at::NoGradGuard no_grad;
  double phase = 0.1;
  for (Tensor& parameter : module.parameters()) {
    parameter.copy_((torch::arange(parameter.numel(), torch::kDouble) * 0.37 + phase).sin().view(parameter.sizes()) / 2);
    phase += 0.5;
  }
}

Tensor batch() { return (torch::arange(8 * 12, torch::kDouble) * 0.11).cos().view({8, 12}); }
Tensor targets() { return torch::arange(8, torch::kLong); }
Tensor loss_of(const Tensor& output, const Tensor& target) { return torch::nn::functional::cross_entropy(output, target); }

Plan tensor_parallel() {
  Plan plan;
  plan.add("up.*", {{"tp", Shard(0)}}).add("down.weight", {{"tp", Shard(1)}});
  return plan;
}

using test::maker;
using test::MakeOptimizer;

/// Parameters and losses after some steps.
std::pair<std::vector<Tensor>, std::vector<double>> train(Block model, const MakeOptimizer& make,
                                                          const std::function<Tensor(const Tensor&)>& place, double clip) {
  const auto optimizer = make(model->parameters());
  std::vector<double> losses;
  for (int index = 0; index < 4; ++index) {
    optimizer->zero_grad();
    losses.push_back(step(*model, place(batch()), place(targets()), loss_of).item<double>());
    if (clip > 0) torch::nn::utils::clip_grad_norm_(model->parameters(), clip);
    optimizer->step();
  }
  return {model->parameters(), losses};
}

void expect_same_training(const std::string& axes, const MakeOptimizer& make, double clip = 0) {
  Block alone;
  fill(*alone);
  const auto [expected, expected_losses] = train(alone, make, [](const Tensor& x) { return x; }, clip);
  test::on_mesh(axes, [&, expected = expected, expected_losses = expected_losses](const Mesh& mesh) {
    Block model;
    fill(*model);
    distribute(*model, mesh, tensor_parallel());
    const auto [found, losses] = train(model, make, [&](const Tensor& x) { return shard_batch(mesh, x); }, clip);
    for (std::size_t i = 0; i < losses.size(); ++i) EXPECT_NEAR(losses[i], expected_losses[i], 1e-13);
    // 1e-11: Adam divides by the root of tiny second moments, which lifts rounding by about two digits.
    for (std::size_t i = 0; i < found.size(); ++i) EXPECT_TRUE(at::allclose(full(found[i]), expected[i], 1e-11, 1e-12));
    EXPECT_TRUE(replicated_fallbacks(mesh).empty()) << replicated_fallbacks(mesh).begin()->first;
  });
}

TEST(Module, TrainsAsOneDeviceUnderAdamW) {
  for (const char* axes : {"dp=1", "dp=2", "tp=2", "tp=3", "dp=2,tp=2", "dp_replicate=2,dp_shard=2,tp=2", "dp=3"}) {
    expect_same_training(axes, maker<torch::optim::AdamW>(torch::optim::AdamWOptions(1e-2)));
  }
}

TEST(Module, TrainsAsOneDeviceUnderEveryFirstOrderOptimizer) {
  expect_same_training("dp=2,tp=2", maker<torch::optim::SGD>(torch::optim::SGDOptions(0.1).momentum(0.9).nesterov(true)));
  expect_same_training("dp=2,tp=2", maker<torch::optim::Adam>(torch::optim::AdamOptions(1e-2)));
  expect_same_training("dp=2,tp=2", maker<torch::optim::RMSprop>(torch::optim::RMSpropOptions(1e-3)));
  expect_same_training("dp=2,tp=2", maker<torch::optim::Adagrad>(torch::optim::AdagradOptions(1e-2)));
}

TEST(Module, ClipsByTheGlobalNormOnEveryMesh) {
  for (const char* axes : {"dp=2", "tp=2", "dp=2,tp=2"}) {
    expect_same_training(axes, maker<torch::optim::SGD>(torch::optim::SGDOptions(0.1)), 0.05);
  }
}

TEST(Distribute, StartsEveryRankFromRankZero) {
  Block reference;
  fill(*reference);
  test::on_mesh("dp=3", [&](const Mesh& mesh) {
    Block model;
    fill(*model);
    const at::NoGradGuard no_grad;
    for (Tensor& parameter : model->parameters()) parameter.add_(mesh.rank());
    distribute(*model, mesh, Plan());
    for (std::size_t i = 0; i < model->parameters().size(); ++i) {
      EXPECT_TRUE(at::equal(full(model->parameters()[i]), reference->parameters()[i]));
    }
  });
}

TEST(Distribute, KeepsHandlesOfTheUser) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    Block model;
    const Tensor handle = model->up->weight;
    distribute(*model, mesh, Plan());
    EXPECT_TRUE(is_mesh_tensor(handle));
    EXPECT_TRUE(handle.is_same(model->named_parameters()["up.weight"]));
  });
}

TEST(Distribute, NamesTheParameterThatDoesNotFit) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    Block model;
    try {
      distribute(*model, mesh, Plan().add("up.bias", {{"dp", Shard(1)}}));
      FAIL() << "a bias has one dim";
    } catch (const ShapeError& error) {
      EXPECT_NE(std::string(error.what()).find("parameter up.bias"), std::string::npos) << error.what();
    }
  });
}

TEST(GradientBuckets, SendEveryGradientOnceOn2Ranks) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    Block model;
    fill(*model);
    distribute(*model, mesh, Plan());
    (void)step(*model, shard_batch(mesh, batch()), shard_batch(mesh, targets()), loss_of);
    const auto before = mesh.traffic();
    std::int64_t bytes = 0;
    for (const Tensor& parameter : model->parameters()) {
      EXPECT_TRUE(placements(parameter.grad()).all_replicate());
      bytes += static_cast<std::int64_t>(parameter.numel()) * 8;
    }
    EXPECT_EQ(mesh.traffic().calls, before.calls) << "reading placements must not communicate";
    model->zero_grad();
    const auto start = mesh.traffic();
    (void)step(*model, shard_batch(mesh, batch()), shard_batch(mesh, targets()), loss_of);
    // One bucket, the count of targets that the mean divides by, and the loss.
    EXPECT_EQ(mesh.traffic().calls - start.calls, 3);
    EXPECT_EQ(mesh.traffic().bytes - start.bytes, bytes + 8 + 8);
  });
}

TEST(GradientBuckets, AreCutBySize) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    Block model;
    fill(*model);
    distribute(*model, mesh, Plan(), {.bucket_bytes = 1, .first_bucket_bytes = 1});
    const auto start = mesh.traffic();
    (void)step(*model, shard_batch(mesh, batch()), shard_batch(mesh, targets()), loss_of);
    EXPECT_EQ(mesh.traffic().calls - start.calls, 2 + static_cast<std::int64_t>(model->parameters().size()));
  });
}

/// A scale between two products; its gradient may come out sharded along dp_shard while tp, which cuts first, has yet to
/// add it up.
struct ScaledImpl : torch::nn::Module {
  ScaledImpl() {
    in = register_parameter("in", torch::arange(16 * 16, torch::kDouble).sin().view({16, 16}));
    scale = register_parameter("scale", torch::arange(16, torch::kDouble).cos());
    out = register_parameter("out", torch::arange(24 * 16, torch::kDouble).cos().view({24, 16}));
  }
  Tensor forward(const Tensor& x) { return torch::linear(torch::linear(x, in) * scale, out); }
  Tensor in, scale, out;
};
TORCH_MODULE(Scaled);

TEST(Distribute, AGradientThatTwoAxesCutAlongOneDimIsCutInTheirOrder) {
  const Tensor x = torch::arange(5 * 6 * 16, torch::kDouble).cos().view({5, 6, 16});
  const auto gradient = [&](Scaled& model) {
    (void)step(*model, x, x, [](const Tensor& output, const Tensor&) { return output.pow(2).mean(); });
    return full(model->scale.grad());
  };
  Scaled alone;
  const Tensor expected = gradient(alone);
  for (const std::string name : {"in", "out"}) {
    test::on_mesh("dp_shard=2,tp=2", [&](const Mesh& mesh) {
      Scaled model;
      distribute(*model, mesh, Plan().add("scale", {{"tp", Shard(0)}}).add(name, {{"tp", Shard(name == "in" ? 1 : 0)}}).zero(3));
      EXPECT_LE((gradient(model) - expected).abs().max().item<double>(), 1e-12 * expected.abs().max().item<double>()) << name;
    });
  }
}

TEST(NoSync, AddsGradientsWithoutCommunication) {
  Block alone;
  fill(*alone);
  for (int i = 0; i < 3; ++i) (void)step(*alone, batch(), targets(), loss_of);
  test::on_mesh("dp=2", [&](const Mesh& mesh) {
    Block model;
    fill(*model);
    distribute(*model, mesh, Plan());
    const auto start = mesh.traffic();
    {
      const NoSync guard(*model);
      for (int i = 0; i < 2; ++i) (void)step(*model, shard_batch(mesh, batch()), shard_batch(mesh, targets()), loss_of);
    }
    EXPECT_EQ(mesh.traffic().calls - start.calls, 4) << "only the counts of targets, and the losses";
    (void)step(*model, shard_batch(mesh, batch()), shard_batch(mesh, targets()), loss_of);
    EXPECT_EQ(mesh.traffic().calls - start.calls, 7) << "one bucket for three backward passes";
    for (std::size_t i = 0; i < model->parameters().size(); ++i) {
      EXPECT_TRUE(at::allclose(full(model->parameters()[i].grad()), alone->parameters()[i].grad(), 1e-12, 1e-13));
    }
  });
}

TEST(NoSync, StopsEveryPartThatWasDistributedAlone) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Block first;
    const Block second;
    torch::nn::Sequential both(first, second);
    for (const auto& child : both->children()) distribute(*child, mesh, Plan());
    const auto start = mesh.traffic();
    {
      const NoSync guard(*both);
      both->forward(shard_batch(mesh, batch())).sum().backward();
    }
    EXPECT_EQ(mesh.traffic().calls, start.calls);
    both->forward(shard_batch(mesh, batch())).sum().backward();
    EXPECT_EQ(mesh.traffic().calls - start.calls, 2) << "one bucket of each";
  });
}

TEST(NoSync, LeavesAModuleWhoseGradientsNobodyReducesAlone) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    torch::nn::Linear frozen(4, 4);
    for (Tensor& parameter : frozen->parameters()) parameter.set_requires_grad(false);
    distribute(*frozen, mesh, Plan());
    EXPECT_NO_THROW(NoSync guard(*frozen));
    EXPECT_NO_THROW(NoSync guard(*frozen->clone()));
  });
}

TEST(NoSync, RefusesAModuleThatIsNotOnAMesh) {
  Block model;
  EXPECT_THROW(NoSync guard(*model), ConfigError);
}

TEST(TensorParallel, CommunicatesOncePerPairForwardAndBackward) {
  test::on_mesh("tp=2", [](const Mesh& mesh) {
    Block model;
    fill(*model);
    distribute(*model, mesh, tensor_parallel());
    const Tensor input = shard_batch(mesh, batch()).requires_grad_();
    const auto start = mesh.traffic();
    const Tensor output = model->forward(input);
    EXPECT_EQ(mesh.traffic().calls - start.calls, 1);
    output.sum().backward();
    (void)full(input.grad());
    EXPECT_EQ(mesh.traffic().calls - start.calls, 2);
  });
}

TEST(Plan, FirstMatchDecides) {
  test::on_mesh("tp=2", [](const Mesh& mesh) {
    Plan plan;
    plan.add("up.weight", {{"tp", Shard(1)}}).add("up.*", {{"tp", Shard(0)}});
    EXPECT_EQ(plan.layout_of("up.weight", 2, mesh).value, (Placements{Shard(1)}));
    EXPECT_EQ(plan.layout_of("up.bias", 1, mesh).value, (Placements{Shard(0)}));
    EXPECT_EQ(plan.layout_of("norm.weight", 1, mesh).value, (Placements{Replicate()}));
  });
}

TEST(Plan, ParseAndFormatAreInverse) {
  const Plan plan = plan_for_transformer({"block0.qkv.weight", "block0.proj.weight", "head.out.weight"});
  const Plan again = Plan::parse(plan.to_toml(), "plan.toml");
  ASSERT_EQ(again.entries().size(), 3U);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(again.entries()[i].match, plan.entries()[i].match);
    EXPECT_EQ(again.entries()[i].placements, plan.entries()[i].placements);
  }
}

TEST(Plan, RefusesAPatternThatMatchesNothingAndSuggestsTheNearestName) {
  try {
    Plan().add("block*.qvk.*", {{"tp", Shard(0)}}).check_matches({"block0.qkv.weight", "head.out.weight"});
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("block0.qkv.weight"), std::string::npos) << error.what();
  }
}

TEST(Plan, RefusesWhatItDoesNotKnowAndNamesTheLine) {
  const auto message = [](const char* text) -> std::string {
    try {
      (void)Plan::parse(text, "plan.toml");
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  EXPECT_NE(message("[[parameters]]\nmatch = \"a\"\nttp = \"colwise\"\n").find("did you mean \"tp\""), std::string::npos);
  EXPECT_NE(message("[[parameters]]\nmatch = \"a\"\ntp = \"columns\"\n").find("allowed: replicate"), std::string::npos);
  EXPECT_NE(message("[[parameters]]\ntp = \"colwise\"\n").find("needs match"), std::string::npos);
  EXPECT_NE(message("[params]\nmatch = 1\n").find("\"params\" is not known"), std::string::npos);
  EXPECT_NE(message("a = = 1").find("plan.toml:1"), std::string::npos);
  EXPECT_EQ(message("\nstages = [[\"a\"], []]").find("plan.toml:2: plan: stage 1 names nothing"), 0U);
  EXPECT_EQ(message("stages = [[\"a\", \"+\"]]").find("plan.toml:1: plan: stage 0 has the pattern \"+\""), 0U);
  EXPECT_EQ(message("stage_order = \"v\"").find("plan.toml:1: stage_order without stages"), 0U);
  EXPECT_EQ(message("[[parameters]]\nmatch = \"a\"\nttp = \"colwise\"\n").find("plan.toml:1: plan: axis \"ttp\""), 0U);
  EXPECT_THROW((void)Plan::load("/nonexistent/plan.toml"), FileError);
}

}  // namespace
}  // namespace tessera
