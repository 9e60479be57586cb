// SPDX-License-Identifier: Apache-2.0
// Activations that are dropped after forward: the module knows nothing of it, and nobody sees other numbers.
#include <gtest/gtest.h>

#include <torch/torch.h>

#include "module/models.h"
#include "tessera/base/error.h"
#include "tessera/module/fused_optimizers.h"
#include "tessera/tensor/random.h"

namespace tessera {
namespace {

using at::Tensor;

/// Writes in place, into a view and into what was read before; keeps views; drops at random; has a parameter that it
/// uses twice, and a branch without gradients.
struct AwkwardBlockImpl : torch::nn::Module {
  AwkwardBlockImpl()
      : norm(register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({12})))),
        up(register_module("up", torch::nn::Linear(12, 24))),
        down(register_module("down", torch::nn::Linear(12, 12))),
        scale(register_parameter("scale", torch::ones({12}))) {}

  Tensor forward(const Tensor& x) {
    Tensor hidden = up(norm(x)).relu_();
    inner = hidden;
    hidden = torch::dropout(hidden, 0.25, is_training());
    const std::vector<Tensor> halves = hidden.chunk(2, -1);
    Tensor gated = halves[0] * torch::sigmoid(halves[1]);
    const Tensor read_before = gated * 3;
    Tensor bound;
    {
      const at::NoGradGuard no_grad;
      gated.narrow(-1, 3, 5).mul_(2);
      bound = gated.abs().amax() + 1;
    }
    gated.mul_(scale);
    Tensor out = down(torch::sin(gated) + torch::cos(read_before)) / bound;
    out.add_(x);
    return out * scale;
  }

  torch::nn::LayerNorm norm;
  torch::nn::Linear up;
  torch::nn::Linear down;
  Tensor scale;
  Tensor inner;  ///< an activation that somebody looks at
};
TORCH_MODULE(AwkwardBlock);

/// Blocks in a list, and a long skip from the middle of the first to the last.
struct AwkwardNetImpl : torch::nn::Module {
  AwkwardNetImpl() : blocks(register_module("blocks", torch::nn::ModuleList())) {
    for (int i = 0; i < 4; ++i) blocks->push_back(AwkwardBlock());
    head = register_module("head", torch::nn::Linear(12, 5));
    to(torch::kDouble);
  }
  Tensor forward(const Tensor& x) {
    Tensor hidden = x;
    for (const auto& block : *blocks) hidden = torch::tanh(block->as<AwkwardBlock>()->forward(hidden));
    return head(hidden * inner(0).narrow(-1, 0, 12));
  }
  Tensor inner(std::size_t block) { return blocks[block]->as<AwkwardBlock>()->inner; }
  torch::nn::ModuleList blocks;
  torch::nn::Linear head{nullptr};
};
TORCH_MODULE(AwkwardNet);

Tensor some_batch() { return (torch::arange(8 * 12, torch::kDouble) * 0.13).cos().view({8, 12}); }

AwkwardNet make_net(const Mesh& mesh, Plan plan, Recompute mode) {
  AwkwardNet net;
  test::fill(*net);
  distribute(*net, mesh, plan.recompute(mode));
  manual_seed(mesh, 3);
  return net;
}

struct Training {
  std::vector<Tensor> losses, gradients, parameters;
};

Training train(AwkwardNet& net, const Mesh& mesh) {
  FusedAdamW optimizer(net->parameters(), torch::optim::AdamWOptions(0.01));
  Training run;
  for (int step = 0; step < 3; ++step) {
    optimizer.zero_grad();
    const Tensor loss = net->forward(shard_batch(mesh, some_batch())).pow(2).mean();
    loss.backward();
    run.losses.push_back(full(loss.detach()));
    for (const Tensor& parameter : net->parameters()) run.gradients.push_back(full(parameter.grad()).clone());
    optimizer.step();
  }
  for (const Tensor& parameter : net->parameters()) run.parameters.push_back(full(parameter.detach()).clone());
  return run;
}

bool same(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Tensor& x, const Tensor& y) { return at::equal(x, y); });
}

struct Layout {
  const char* axes;
  Plan plan;
};

std::vector<Layout> layouts() {
  const auto tensor_parallel = [] {
    return Plan().add("*.up.*", {{"tp", Shard(0)}}).add("*.down.weight", {{"tp", Shard(1)}});
  };
  return {{"dp=2", Plan()},
          {"tp=2", tensor_parallel()},
          {"dp_shard=2", Plan().zero(3)},
          {"dp_shard=2,tp=2", tensor_parallel().zero(3)}};
}

TEST(Recompute, ChangesNoBitOfAModuleThatWritesInPlaceAndSkips) {
  for (const Layout& layout : layouts()) {
    for (const Recompute mode : {Recompute(Recompute::kFull), Recompute(Recompute::kSelective), Recompute::within(1),
                                 Recompute::within(2 << 10), Recompute::within(4 << 10), Recompute::within(6 << 10)}) {
      SCOPED_TRACE(std::string(layout.axes) + " " + to_string(mode));
      int ranks = 1;
      for (const Axis& axis : parse_axes(layout.axes)) ranks *= axis.size;
      test::on_ranks(ranks, [&](const auto& world) {
        const auto run = [&](Recompute how) {
          const Mesh mesh(world, parse_axes(layout.axes));
          AwkwardNet net = make_net(mesh, layout.plan, how);
          const Training result = train(net, mesh);
          EXPECT_EQ(recompute_counts(mesh).operators > 0, how != Recompute::kNone);
          return result;
        };
        const Training expected = run(Recompute::kNone);
        const Training found = run(mode);
        EXPECT_TRUE(same(expected.losses, found.losses));
        EXPECT_TRUE(same(expected.gradients, found.gradients));
        EXPECT_TRUE(same(expected.parameters, found.parameters));
      });
    }
  }
}

TEST(Recompute, DrawsTheSameDropoutMaskAgain) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const auto gradient = [&](Recompute mode) {
      AwkwardNet net = make_net(mesh, Plan(), mode);
      const Tensor loss = net->forward(shard_batch(mesh, some_batch())).pow(2).mean();
      (void)torch::rand_like(net->head->weight);  // others draw in between
      const RandomState before = random_state(mesh);
      loss.backward();
      EXPECT_EQ(random_state(mesh), before) << "running again drew new numbers";
      return full(net->parameters()[0].grad()).clone();
    };
    EXPECT_TRUE(at::equal(gradient(Recompute::kNone), gradient(Recompute::kFull)));
  });
}

TEST(Recompute, KeepsWhatALaterBlockReadsFromTheSecondPassOn) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    AwkwardNet net = make_net(mesh, Plan(), Recompute::kFull);
    const auto operators_in_forward = [&] {
      const std::int64_t before = recompute_counts(mesh).operators;
      const Tensor loss = net->forward(shard_batch(mesh, some_batch())).sum();
      const std::int64_t after = recompute_counts(mesh).operators;
      loss.backward();
      return after - before;
    };
    EXPECT_GT(operators_in_forward(), 0) << "the skip's start was not dropped";
    EXPECT_EQ(operators_in_forward(), 0);
  });
}

TEST(Recompute, MakesADroppedActivationAgainForWhoeverReadsIt) {
  test::on_mesh("tp=2", [](const Mesh& mesh) {
    const Plan plan = layouts()[1].plan;
    AwkwardNet expected = make_net(mesh, plan, Recompute::kNone);
    (void)expected->forward(shard_batch(mesh, some_batch()));
    AwkwardNet net = make_net(mesh, plan, Recompute::kFull);
    (void)net->forward(shard_batch(mesh, some_batch()));
    const std::int64_t before = recompute_counts(mesh).operators;
    EXPECT_TRUE(at::equal(full(net->inner(1)), full(expected->inner(1))));
    EXPECT_GT(recompute_counts(mesh).operators, before);
  });
}

TEST(Recompute, RefusesToMakeAgainWhatCameFromAParameterThatWasUpdated) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    AwkwardNet net = make_net(mesh, Plan(), Recompute::kFull);
    FusedAdamW optimizer(net->parameters(), torch::optim::AdamWOptions(0.01));
    net->forward(shard_batch(mesh, some_batch())).sum().backward();
    (void)net->forward(shard_batch(mesh, some_batch()));
    optimizer.step();
    try {
      (void)full(net->inner(1));
      FAIL() << "made from another weight";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("has been written since"), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("recompute = \"none\""), std::string::npos) << error.what();
    }
  });
}

TEST(Recompute, LeavesForwardWithoutGradientsAlone) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    AwkwardNet net = make_net(mesh, Plan(), Recompute::kFull);
    const at::NoGradGuard no_grad;
    (void)net->forward(shard_batch(mesh, some_batch()));
    (void)net->forward(shard_batch(mesh, some_batch()));
    EXPECT_EQ(recompute_counts(mesh), RecomputeCounts{});
  });
}

TEST(Recompute, GivesSecondDerivatives) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const auto penalty = [&](Recompute mode) {
      AwkwardNet net = make_net(mesh, Plan(), mode);
      net->eval();
      const Tensor loss = net->forward(shard_batch(mesh, some_batch())).pow(2).mean();
      const auto gradients = torch::autograd::grad({loss}, {net->head->weight}, {}, true, /*create_graph=*/true);
      gradients[0].pow(2).sum().backward();
      return full(net->parameters()[0].grad()).clone();
    };
    EXPECT_TRUE(at::equal(penalty(Recompute::kNone), penalty(Recompute::kFull)));
  });
}

TEST(Recompute, KeepsItsGraphForASecondBackward) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const auto twice = [&](Recompute mode) {
      AwkwardNet net = make_net(mesh, Plan(), mode);
      const Tensor loss = net->forward(shard_batch(mesh, some_batch())).pow(2).mean();
      loss.backward({}, /*retain_graph=*/true);
      loss.backward();
      return full(net->parameters()[0].grad()).clone();
    };
    EXPECT_TRUE(at::equal(twice(Recompute::kNone), twice(Recompute::kFull)));
  });
}

TEST(Plan, WritesAndReadsItsRecomputation) {
  EXPECT_EQ(Plan::parse(Plan().recompute(Recompute::kSelective).to_toml(), "plan.toml").recompute(),
            Recompute::kSelective);
  EXPECT_EQ(Plan::parse("recompute = \"full\"", "plan.toml").recompute(), Recompute::kFull);
}

TEST(Recompute, IsWrittenAsAModeOrAsBytes) {
  EXPECT_EQ(parse_recompute("selective"), Recompute::kSelective);
  EXPECT_EQ(parse_recompute("8GiB"), Recompute::within(std::int64_t{8} << 30));
  EXPECT_EQ(to_string(parse_recompute("1.5GiB")), "1536MiB");
  for (const char* word : {"", "some", "8", "0B", "0GiB", "-1GiB", "8GB"}) {
    EXPECT_THROW((void)parse_recompute(word), ConfigError) << word;
  }
  EXPECT_THROW((void)Recompute::within(0), ConfigError);
  const Plan plan = Plan().recompute(Recompute::within(3 << 20));
  EXPECT_EQ(Plan::parse(plan.to_toml(), "plan.toml").recompute(), plan.recompute());
}

TEST(Plan, RefusesARecomputationThatIsNone) {
  try {
    (void)Plan::parse("zero = 1\nrecompute = \"most\"", "plan.toml");
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(),
                 "plan.toml:2: recompute = \"most\" is not known; allowed: \"none\", \"selective\", \"full\", or more "
                 "than 0 bytes, as in \"8GiB\" (B, KiB, MiB, GiB, TiB)");
  }
}

TEST(Plan, NamesTheKeyWhoseTextIsNoText) {
  for (const char* key : {"recompute", "reduce_dtype", "stage_order"}) {
    try {
      (void)Plan::parse(std::string("stages = [[\"0\"], [\"1\"]]\n") + key + " = 8", "plan.toml");
      ADD_FAILURE() << key;
    } catch (const ConfigError& error) {
      EXPECT_EQ(std::string(error.what()).find(std::string("plan.toml:2: ") + key), 0U) << error.what();
      EXPECT_EQ(std::string(error.what()).find("\"\""), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace tessera
