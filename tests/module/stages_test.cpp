// SPDX-License-Identifier: Apache-2.0
// Model parallelism: a module whose parameters lie on pipeline stages, never touched for it, equals one device.
#include <gtest/gtest.h>

#include <torch/torch.h>

#include "module/models.h"
#include "module/stage_patterns.h"
#include "tessera/base/error.h"
#include "tessera/module/build.h"
#include "tessera/module/check_finite.h"
#include "tessera/module/clip.h"
#include "tessera/module/fused_optimizers.h"
#include "tessera/tensor/random.h"
#include "tessera/tensor/stages.h"

namespace tessera {
namespace {

using at::Tensor;

/// A long skip over all layers, a weight used at both ends, two outputs, an auxiliary loss, a buffer, and a branch on a
/// value: what makes a module hard to cut.
struct TangleImpl : torch::nn::Module {
  TangleImpl()
      : embed(register_module("embed", torch::nn::Linear(torch::nn::LinearOptions(12, 12).bias(false)))),
        // Batch norm takes out what a bias adds: its gradient would be rounding, which Adam makes large.
        lower(register_module("lower", torch::nn::Linear(torch::nn::LinearOptions(12, 20).bias(false)))),
        norm(register_module("norm", torch::nn::BatchNorm1d(20))),
        upper(register_module("upper", torch::nn::Linear(20, 12))),
        side(register_module("side", torch::nn::Linear(12, 3))) {
    register_parameter("tied", embed->weight);
    to(torch::kDouble);
  }
  std::pair<Tensor, Tensor> forward(const Tensor& x) {
    const Tensor first = torch::tanh(embed(x));
    Tensor hidden = torch::relu(norm(lower(first)));
    if (hidden.mean().item<double>() > 0.1) hidden = hidden * 0.5;
    hidden = upper(hidden) + first;
    hidden.mul_(1.25);
    return {torch::linear(hidden + x, embed->weight), side(hidden)};
  }
  torch::nn::Linear embed;
  torch::nn::Linear lower;
  torch::nn::BatchNorm1d norm;
  torch::nn::Linear upper;
  torch::nn::Linear side;
};
TORCH_MODULE(Tangle);

Tangle make_tangle() {
  Tangle model;
  test::fill(*model);
  return model;
}

Tensor batch(int index) { return (torch::arange(8 * 12, torch::kDouble) * 0.11 + index).cos().view({8, 12}); }
Tensor goal() { return (torch::arange(8 * 12, torch::kDouble) * 0.07).sin().view({8, 12}); }

Tensor loss_of(const std::pair<Tensor, Tensor>& outputs, const Tensor& target) {
  return torch::mse_loss(outputs.first, target) + outputs.second.pow(2).mean() * 0.3;
}

struct Training {
  std::vector<double> losses;
  std::vector<double> norms;
  std::vector<Tensor> parameters;
  Tensor running_mean;
};

template <class Optimizer>
Training train(Tangle& model, Optimizer& optimizer, const std::function<Tensor(const Tensor&)>& place) {
  Training run;
  for (int index = 0; index < 4; ++index) {
    optimizer.zero_grad();
    const Tensor loss = loss_of(model->forward(place(batch(index))), place(goal()));
    loss.backward();
    run.norms.push_back(clip_grad_norm_(model->parameters(), 0.5));
    check_finite(*model);
    optimizer.step();
    run.losses.push_back(loss.item<double>());
  }
  for (const Tensor& parameter : model->parameters()) run.parameters.push_back(full(parameter.detach()).clone());
  run.running_mean = full(model->norm->running_mean).clone();
  return run;
}

void expect_equal(const Training& found, const Training& expected) {
  for (std::size_t i = 0; i < expected.losses.size(); ++i) {
    EXPECT_NEAR(found.losses[i], expected.losses[i], 1e-13);
    EXPECT_NEAR(found.norms[i], expected.norms[i], 1e-13);
  }
  for (std::size_t i = 0; i < expected.parameters.size(); ++i) {
    EXPECT_TRUE(at::allclose(found.parameters[i], expected.parameters[i], 1e-11, 1e-12)) << i;
  }
  EXPECT_TRUE(at::allclose(found.running_mean, expected.running_mean, 1e-12, 1e-13));
}

using Patterns = std::vector<std::vector<std::string>>;

const std::map<std::string, Patterns>& cuts() {
  static const std::map<std::string, Patterns> kCuts{
      {"pp=2", {{"embed", "lower", "norm"}, {"upper", "side", "tied"}}},
      {"pp=3", {{"embed", "lower"}, {"norm", "upper"}, {"side", "tied"}}},
      {"pp=4", {{"embed"}, {"lower", "norm"}, {"upper"}, {"side", "tied"}}},
      {"pp=2,dp=2", {{"embed", "lower", "norm"}, {"upper", "side", "tied"}}},
      {"pp=2,dp_shard=2", {{"embed", "lower", "norm"}, {"upper", "side", "tied"}}},
      {"pp=2,tp=2", {{"embed", "lower", "norm"}, {"upper", "side", "tied"}}},
      {"pp=2,dp_shard=2,tp=2", {{"embed", "lower", "norm"}, {"upper", "side", "tied"}}},
  };
  return kCuts;
}

Plan plan_for(const Patterns& patterns, int zero = 0) {
  Plan plan;
  plan.add("lower.*", {{"tp", Shard(0)}}).add("norm.*", {{"tp", Shard(0)}}).add("upper.weight", {{"tp", Shard(1)}});
  plan.stages(patterns).zero(zero);
  return plan;
}

class Cut : public testing::TestWithParam<std::string> {};

TEST_P(Cut, of_a_tangled_module_trains_as_one_device) {
  Tangle alone = make_tangle();
  torch::optim::Adam adam(alone->parameters(), 1e-2);
  const Training expected = train(alone, adam, [](const Tensor& x) { return x; });
  for (const int zero : {0, 1, 2, 3}) {
    if (zero > 0 && GetParam().find("dp_shard") == std::string::npos) continue;
    SCOPED_TRACE(zero);
    test::on_mesh(GetParam(), [&](const Mesh& mesh) {
      Tangle model = make_tangle();
      distribute(*model, mesh, plan_for(cuts().at(GetParam()), zero));
      torch::optim::Adam optimizer(model->parameters(), 1e-2);
      expect_equal(train(model, optimizer, [&](const Tensor& x) { return shard_batch(mesh, x); }), expected);
    });
  }
}

TEST_P(Cut, works_with_fused_optimizers) {
  Tangle alone = make_tangle();
  FusedAdamW adam(alone->parameters(), torch::optim::AdamWOptions(1e-2));
  const Training expected = train(alone, adam, [](const Tensor& x) { return x; });
  test::on_mesh(GetParam(), [&](const Mesh& mesh) {
    Tangle model = make_tangle();
    distribute(*model, mesh, plan_for(cuts().at(GetParam()), 1));
    FusedAdamW optimizer(model->parameters(), torch::optim::AdamWOptions(1e-2));
    expect_equal(train(model, optimizer, [&](const Tensor& x) { return shard_batch(mesh, x); }), expected);
  });
}

INSTANTIATE_TEST_SUITE_P(Meshes, Cut,
                         testing::Values("pp=2", "pp=3", "pp=4", "pp=2,dp=2", "pp=2,dp_shard=2", "pp=2,tp=2",
                                         "pp=2,dp_shard=2,tp=2"));

TEST(Stages, a_rank_outside_a_stage_holds_no_memory_for_it) {
  test::on_mesh("pp=2", [](const Mesh& mesh) {
    Tangle model = make_tangle();
    distribute(*model, mesh, plan_for(cuts().at("pp=2")));
    EXPECT_EQ(is_here(model->lower->weight), mesh.rank() == 0);
    EXPECT_EQ(is_here(model->upper->weight), mesh.rank() == 1);
    EXPECT_EQ(local(model->upper->weight).is_meta(), mesh.rank() == 0);
    EXPECT_TRUE(is_here(model->embed->weight)) << "tied: on both";
  });
}

TEST(Stages, shapes_are_sent_in_the_first_step_only) {
  test::on_mesh("pp=2", [](const Mesh& mesh) {
    Tangle model = make_tangle();
    distribute(*model, mesh, plan_for(cuts().at("pp=2")));
    torch::optim::SGD optimizer(model->parameters(), 1e-3);
    std::vector<StageTraffic> after;
    for (int index = 0; index < 3; ++index) {
      optimizer.zero_grad();
      loss_of(model->forward(shard_batch(mesh, batch(0))), shard_batch(mesh, goal())).backward();
      optimizer.step();
      after.push_back(stage_traffic(mesh));
    }
    EXPECT_GT(after[0].shapes_sent, 0);
    EXPECT_EQ(after[1].shapes_sent, after[0].shapes_sent);
    EXPECT_EQ(after[2].shapes_sent, after[0].shapes_sent);
    EXPECT_EQ(after[2].sent - after[1].sent, after[1].sent - after[0].sent);
  });
}

/// Two layers in a row: what moves is known.
TEST(Stages, an_activation_crosses_once_in_each_direction) {
  test::on_mesh("pp=2", [](const Mesh& mesh) {
    test::Net net = test::make_net();
    distribute(*net, mesh, Plan().stages({{"first"}, {"second"}}));
    const StageTraffic before = stage_traffic(mesh);
    test::backward(mesh, net);
    const StageTraffic after = stage_traffic(mesh);
    // And the loss, from the last stage to the first.
    EXPECT_EQ(after.sent - before.sent, 1 + mesh.coordinate(0));
    EXPECT_EQ(after.sent_bytes - before.sent_bytes, 8 * 14 * 8 + 8 * mesh.coordinate(0));
  });
}

TEST(Stages, a_write_to_a_tensor_that_another_stage_has_reaches_that_stage) {
  test::on_mesh("pp=2", [](const Mesh& mesh) {
    const Tensor first = distribute(torch::ones({3}), mesh, {Stage(0)});
    const Tensor second = distribute(torch::ones({3}) * 2, mesh, {Stage(1)});
    const Tensor sum = first + second;  // sends `first` to stage 1
    first.add_(10);
    EXPECT_TRUE(full(first + second).equal(torch::ones({3}) * 13));
    first.narrow(0, 0, 1).zero_();
    EXPECT_TRUE(full(first * second).equal(torch::tensor({0.F, 22.F, 22.F})));
    EXPECT_TRUE(full(sum).equal(torch::ones({3}) * 3));
  });
}

/// A write that autograd does not see, through a view, and a maximum whose gradient looks at what was written.
Tensor loss_with_hidden_write(test::Net& net, const Tensor& x, const Tensor& target) {
  const Tensor hidden = net->first(x);
  {
    const at::NoGradGuard no_grad;
    hidden.narrow(1, 0, 5).mul_(0.5);
  }
  return torch::mse_loss(net->second(torch::tanh(hidden - hidden.amax(1, true))), target);
}

TEST(Stages, a_write_that_autograd_does_not_see_trains_as_on_one_device) {
  test::Net alone = test::make_net();
  loss_with_hidden_write(alone, test::inputs(), test::targets()).backward();
  for (const std::string axes : {"pp=2", "pp=2,dp=2"}) {
    SCOPED_TRACE(axes);
    test::on_mesh(axes, [&](const Mesh& mesh) {
      test::Net net = test::make_net();
      distribute(*net, mesh, Plan().stages({{"first"}, {"second"}}));
      loss_with_hidden_write(net, shard_batch(mesh, test::inputs()), shard_batch(mesh, test::targets())).backward();
      for (std::size_t i = 0; i < alone->parameters().size(); ++i) {
        EXPECT_LE(test::difference(net->parameters()[i].grad(), alone->parameters()[i].grad()), 1e-13) << i;
      }
    });
  }
}

TEST(Stages, a_tensor_equals_itself_without_a_message) {
  test::on_mesh("pp=2", [](const Mesh& mesh) {
    const Tensor x = distribute(torch::arange(6).view({2, 3}), mesh, {Stage(1)});
    EXPECT_TRUE(torch::equal(x, x));
    EXPECT_TRUE(torch::equal(x, x.detach()));
    EXPECT_EQ(stage_traffic(mesh).scalars_sent, 0);
    EXPECT_FALSE(torch::equal(x, x + 1));
    EXPECT_FALSE(torch::equal(x, x.view({3, 2})));
    EXPECT_TRUE(torch::equal(x, x.clone()));
  });
}

TEST(Stages, sizes_that_depend_on_values_are_told_each_time) {
  test::on_mesh("pp=2", [](const Mesh& mesh) {
    for (int count = 1; count < 4; ++count) {
      const Tensor mask = distribute(torch::arange(5) < count, mesh, {Stage(1)});
      EXPECT_EQ(mask.nonzero().size(0), count);
      EXPECT_EQ(mask.sum().item<int>(), count);
    }
  });
}

TEST(Stages, dropout_draws_the_same_on_any_cut) {
  const auto run = [](const std::string& axes, const Plan& plan) {
    double result = 0;
    test::on_mesh(axes, [&](const Mesh& mesh) {
      test::Net net = test::make_net();
      distribute(*net, mesh, plan);
      manual_seed(mesh, 7);
      const Tensor hidden = torch::dropout(net->first(shard_batch(mesh, test::inputs())), 0.5, true);
      const double value = torch::dropout(net->second(hidden), 0.5, true).sum().item<double>();
      if (mesh.rank() == 0) result = value;
    });
    return result;
  };
  EXPECT_NEAR(run("pp=2", Plan().stages({{"first"}, {"second"}})), run("dp=1", Plan()), 1e-12);
}

TEST(Stages, building_makes_each_stage_where_it_belongs) {
  const auto make = [] {
    test::Net net;
    torch::nn::init::xavier_uniform_(net->first->weight);
    return net;
  };
  Tensor expected;
  test::on_mesh("dp=1", [&](const Mesh& mesh) { expected = full(build(mesh, Plan(), make)->second->weight).clone(); });
  test::on_mesh("pp=2,tp=2", [&](const Mesh& mesh) {
    auto net = build(mesh, test::layouts()[1].plan.stages({{"first"}, {"second"}}), make);
    EXPECT_EQ(is_here(net->first->weight), mesh.coordinate(0) == 0);
    EXPECT_TRUE(full(net->second->weight).equal(expected));
  });
}

TEST(Stages, of_a_sequence_are_slices_of_its_children) {
  test::on_mesh("pp=2", [](const Mesh& mesh) {
    const auto make = [] {
      torch::nn::Sequential layers(torch::nn::Linear(4, 4), torch::nn::ReLU(), torch::nn::Linear(4, 4),
                                   torch::nn::Linear(4, 4));
      layers->to(torch::kDouble);
      test::fill(*layers);
      return layers;
    };
    auto layers = make();
    distribute(*layers, mesh, Plan().stages({{"0-1"}, {"2-"}}));
    EXPECT_EQ(is_here(layers->parameters()[0]), mesh.rank() == 0);
    EXPECT_EQ(is_here(layers->parameters()[2]), mesh.rank() == 1);
    const Tensor x = torch::arange(8, torch::kDouble).view({2, 4});
    EXPECT_TRUE(full(layers->forward(shard_batch(mesh, x))).equal(make()->forward(x)));
  });
}

TEST(StagePatterns, name_paths_ranges_and_wildcards) {
  using module::names;
  EXPECT_TRUE(names("layers.0-4", "layers.3.weight"));
  EXPECT_FALSE(names("layers.0-4", "layers.5.weight"));
  EXPECT_TRUE(names("block2-3", "block2.mlp.up.weight"));
  EXPECT_FALSE(names("block2-3", "block12.mlp.up.weight"));
  EXPECT_TRUE(names("8-", "11.bias"));
  EXPECT_TRUE(names("h*.norm", "head.norm.weight"));
  EXPECT_FALSE(names("head.norm", "head"));
  EXPECT_TRUE(names("head", "head.out.weight"));
}

TEST(BalancedStages, are_as_equal_as_a_chain_allows) {
  torch::nn::Sequential layers;
  for (const int width : {8, 1, 1, 1, 5, 8})
    layers->push_back(torch::nn::Linear(torch::nn::LinearOptions(1, width).bias(false)));
  EXPECT_EQ(balanced_stages(*layers, 3), (Patterns{{"0"}, {"1", "2", "3", "4"}, {"5"}}));
  EXPECT_THROW((void)balanced_stages(*layers, 7), ConfigError);
}

void expect_refusal(const std::string& axes, const Plan& plan, const std::string& words) {
  test::on_mesh(axes, [&](const Mesh& mesh) {
    test::Net net = test::make_net();
    try {
      distribute(*net, mesh, plan);
      ADD_FAILURE() << "not refused: " << words;
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
  });
}

TEST(Stages, bad_plans_are_refused_before_anything_moves) {
  expect_refusal("pp=2", Plan(), "names no stages");
  expect_refusal("pp=2", Plan().stages({{"first"}, {"secnd"}}), "no stage names \"second.weight\"");
  expect_refusal("pp=2", Plan().stages({{"first", "second"}, {"first.bias"}}),
                 "stage 1 of 2 (first.bias) names no parameter");
  expect_refusal("pp=2", Plan().stages({{"first.weight"}, {"first.bias"}, {"second"}}), "a multiple of 2");
  expect_refusal("pp=2", Plan().stages({{"first"}, {"second", "+frist.weight"}}),
                 "stage 1 has \"+frist.weight\", which names no parameter or buffer; the nearest name is \"first.weight\"");
  expect_refusal("pp=2", Plan().stages({{"first.weight"}, {"second", "+first.bias"}}),
                 "no stage names \"first.bias\"");
  EXPECT_THROW(Plan().stages({}), ConfigError);
  EXPECT_THROW(Plan().stages({{"first"}, {}}), ConfigError);
}

/// A row-parallel product is a partial sum, which the next stage's norm and this stage's skip both read.
TEST(Stages, ranks_without_data_know_what_was_reduced) {
  test::on_mesh("pp=2,tp=2", [](const Mesh& mesh) {
    const Tensor weight = distribute(torch::ones({4, 6}), mesh, {Stage(0), Shard(1)});
    const Tensor x = distribute(torch::ones({2, 6}), mesh, {Stage(0), Replicate()});
    const Tensor product = torch::linear(x, weight);
    EXPECT_TRUE(placements(product)[1].is_partial());
    (void)torch::tanh(product);
    EXPECT_TRUE(placements(product)[1].is_replicate());
  });
}

/// Gradients wait in a bucket to be reduced together: who looks at one that lies as it is wanted must not empty it, since
/// ranks of other stages cannot see whether it was.
TEST(Stages, a_gradient_that_is_used_within_backward_is_reduced_alike_on_all_ranks) {
  const Tensor batch = torch::arange(24, torch::kDouble).view({4, 6}).sin();
  const auto train = [](torch::nn::Sequential& net, const Tensor& x) {
    const auto last = net[1]->as<torch::nn::Linear>();
    double seen = 0;
    const Tensor hidden = torch::tanh(net[0]->as<torch::nn::Linear>()->forward(x));
    hidden.register_hook([&](const Tensor&) {
      const Tensor halved = last->bias.grad() * 0.5;
      seen = last->weight.grad().sum().item<double>();
    });
    last->forward(hidden).pow(2).mean().backward();
    return seen;
  };
  const auto make = [] {
    torch::nn::Sequential net(torch::nn::Linear(6, 4), torch::nn::Linear(4, 2));
    net->to(torch::kDouble);
    test::fill(*net);
    return net;
  };
  torch::nn::Sequential alone = make();
  const double expected = train(alone, batch);
  test::on_mesh("pp=2,dp=2", [&](const Mesh& mesh) {
    torch::nn::Sequential net = make();
    distribute(*net, mesh, Plan().stages({{"0"}, {"1"}}));
    EXPECT_NEAR(train(net, shard_batch(mesh, batch)), expected, 1e-12);
    EXPECT_TRUE(at::allclose(full(net[0]->as<torch::nn::Linear>()->weight.grad()),
                             alone[0]->as<torch::nn::Linear>()->weight.grad(), 1e-13, 1e-13));
  });
}

/// An operator that may draw and does not: ranks of all stages count what was drawn, not what could have been.
TEST(Stages, random_numbers_are_counted_alike_on_all_stages) {
  test::on_mesh("pp=2", [](const Mesh& mesh) {
    const Tensor x = distribute(torch::ones({6}) * -1, mesh, {Stage(1)});
    (void)torch::rrelu(x, 0.1, 0.3, /*training=*/false);
    EXPECT_EQ(random_state(mesh).num_draws, 0U);
    (void)torch::rrelu(x, 0.1, 0.3, /*training=*/true);
    (void)torch::dropout(x, 0.5, true);
    EXPECT_EQ(random_state(mesh).num_draws, 2U);
  });
}

TEST(Stages, a_stage_agrees_on_samples_without_the_others) {
  test::on_mesh("pp=2,dp=2", [](const Mesh& mesh) {
    torch::nn::FractionalMaxPool2d pool(torch::nn::FractionalMaxPool2dOptions(2).output_size(3));
    const Tensor x = torch::arange(2 * 3 * 7 * 7, torch::kDouble).view({2, 3, 7, 7});
    const Tensor pooled = pool(distribute(x, mesh, {Stage(1), Shard(0)}));
    EXPECT_EQ(full(pooled).sizes(), (std::vector<std::int64_t>{2, 3, 3, 3}));
  });
}

TEST(Stages, lists_of_tensors_of_several_stages_are_taken_apart) {
  test::on_mesh("pp=2", [](const Mesh& mesh) {
    const std::vector<Tensor> values{distribute(torch::ones({3}), mesh, {Stage(0)}),
                                     distribute(torch::ones({3}) * 2, mesh, {Stage(1)})};
    const std::vector<Tensor> sums = at::_foreach_add(values, 1);
    EXPECT_TRUE(full(sums[1]).equal(torch::ones({3}) * 3));
    EXPECT_EQ(is_here(sums[0]), mesh.rank() == 0);
    EXPECT_TRUE(full(torch::stack(values)[0]).equal(torch::ones({3})));
    EXPECT_EQ(torch::cat(values).chunk(2).size(), 2U);
  });
}

TEST(Stages, survive_a_round_trip_through_a_file) {
  const Plan plan = Plan().stages({{"first"}, {"second", "third"}, {"a"}, {"b"}}, StageOrder::kV);
  const Plan read = Plan::parse(plan.to_toml(), "plan.toml");
  EXPECT_EQ(read.stages(), plan.stages());
  EXPECT_EQ(read.rank_of_stage(2), (std::vector<int>{0, 1, 1, 0}));
}

}  // namespace
}  // namespace tessera
