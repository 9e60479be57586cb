// SPDX-License-Identifier: Apache-2.0
// Fused optimizers against those of torch::optim, on plain and on mesh parameters.
#include "tessera/module/fused_optimizers.h"

#include <gtest/gtest.h>

#include "module/models.h"
#include "tessera/base/error.h"

namespace tessera {
namespace {

using at::Tensor;

using test::kRounding;
using test::kSteps;

template <class Fused, class Reference, class Options>
void expect_equal(const Options& options) {
  const std::vector<Tensor> expected = test::train_alone<Reference>(options);
  const std::vector<Tensor> alone = test::train_alone<Fused>(options);
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_LE(test::difference(alone[i], expected[i]), kRounding);
  test::on_layouts([&](const Mesh& mesh, test::Net& net) {
    Fused optimizer(net->parameters(), options);
    for (int index = 0; index < kSteps; ++index) {
      optimizer.zero_grad();
      test::backward(mesh, net, index);
      optimizer.step();
    }
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_LE(test::difference(net->parameters()[i], expected[i]), kRounding) << i;
    }
    EXPECT_TRUE(replicated_fallbacks(mesh).empty());
  });
}

TEST(FusedAdamW, MatchesTorchOnPlainAndMeshParameters) {
  using torch::optim::AdamWOptions;
  for (const AdamWOptions& options :
       {AdamWOptions(1e-2), AdamWOptions(1e-2).amsgrad(true), AdamWOptions(1e-2).weight_decay(0),
        AdamWOptions(1e-2).betas({0.5, 0.7}).eps(1e-4)}) {
    expect_equal<FusedAdamW, torch::optim::AdamW>(options);
  }
}

TEST(FusedSgd, MatchesTorchOnPlainAndMeshParameters) {
  using torch::optim::SGDOptions;
  for (const SGDOptions& options :
       {SGDOptions(0.1), SGDOptions(0.1).weight_decay(0.01), SGDOptions(0.1).momentum(0.9).dampening(0.2),
        SGDOptions(0.1).momentum(0.9).nesterov(true).weight_decay(0.01)}) {
    expect_equal<FusedSgd, torch::optim::SGD>(options);
  }
}

TEST(FusedAdamW, MatchesTorchUnderEveryZeroStage) {
  const torch::optim::AdamWOptions options(1e-2);
  const std::vector<Tensor> expected = test::train_alone<torch::optim::AdamW>(options);
  for (const int stage : {1, 2, 3}) {
    for (const char* axes : {"dp_shard=2", "dp_shard=3", "dp_replicate=2,dp_shard=2"}) {
      test::on_mesh(axes, [&](const Mesh& mesh) {
        test::Net net = test::make_net();
        distribute(*net, mesh, Plan().zero(stage));
        const std::vector<Tensor> parameters = net->parameters();
        FusedAdamW optimizer(parameters, options);
        for (int index = 0; index < kSteps; ++index) {
          optimizer.zero_grad();
          test::backward(mesh, net, index);
          optimizer.step();
        }
        for (std::size_t i = 0; i < expected.size(); ++i) {
          EXPECT_LE(test::difference(parameters[i], expected[i]), kRounding) << i << " at stage " << stage;
          const auto& state = *optimizer.state().at(parameters[i].unsafeGetTensorImpl());
          const Tensor moment = static_cast<const torch::optim::AdamWParamState&>(state).exp_avg();
          EXPECT_TRUE(placements(moment)[mesh.axis_index("dp_shard")].is_shard(0)) << i << " at stage " << stage;
        }
      });
    }
  }
}

TEST(FusedAdamW, KeepsTheStateOfTorchWhereTheParameterLies) {
  test::on_layouts([](const Mesh& mesh, test::Net& net) {
    FusedAdamW optimizer(net->parameters());
    test::backward(mesh, net);
    optimizer.step();
    for (const Tensor& parameter : net->parameters()) {
      const auto& state =
          static_cast<torch::optim::AdamWParamState&>(*optimizer.state().at(parameter.unsafeGetTensorImpl()));
      EXPECT_EQ(state.step(), 1);
      EXPECT_EQ(placements(state.exp_avg()), placements(parameter));
      EXPECT_EQ(placements(state.exp_avg_sq()), placements(parameter));
    }
  });
}

TEST(FusedAdamW, SendsNothingOnceGradientsAreReduced) {
  test::on_layouts([](const Mesh& mesh, test::Net& net) {
    FusedAdamW optimizer(net->parameters());
    test::backward(mesh, net);
    for (const Tensor& parameter : net->parameters())
      parameter.mutable_grad() = redistribute(parameter.grad(), placements(parameter));
    const auto before = mesh.traffic();
    optimizer.step();
    EXPECT_EQ(mesh.traffic().calls, before.calls);
  });
}

TEST(FusedAdamW, GathersUpdatedParametersWithOneMessageUnderZero1And2) {
  const auto calls_of_a_step = [](torch::optim::Optimizer& optimizer, const Mesh& mesh, test::Net& net) {
    test::backward(mesh, net);
    for (const Tensor& parameter : net->parameters()) (void)local(parameter.grad());
    const auto before = mesh.traffic();
    optimizer.step();
    return std::pair(mesh.traffic().calls - before.calls, mesh.traffic().bytes - before.bytes);
  };
  for (const int zero : {1, 2}) {
    for (const char* axes : {"dp_shard=2", "dp_shard=3", "dp_replicate=2,dp_shard=2"}) {
      test::on_mesh(axes, [&](const Mesh& mesh) {
        test::Net net = test::make_net();
        distribute(*net, mesh, Plan().zero(zero));
        FusedAdamW adam(net->parameters());
        FusedSgd sgd(net->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
        const std::int64_t ranks = mesh.axis_size(mesh.axis_index("dp_shard"));
        const auto padded = [&](std::int64_t rows) { return (rows + ranks - 1) / ranks * ranks; };
        const std::int64_t bytes = (padded(14) * (10 + 1) + padded(5) * (14 + 1)) * 8;
        const std::pair<std::int64_t, std::int64_t> one_message{1, bytes};
        EXPECT_EQ(calls_of_a_step(adam, mesh, net), one_message) << axes << " zero " << zero;
        EXPECT_EQ(calls_of_a_step(sgd, mesh, net), one_message) << axes << " zero " << zero;
      });
    }
  }
}

TEST(FusedAdamW, UpdatesParametersOfSeveralDtypesMemoryOrdersAndAges) {
  const auto run = [](auto make) {
    std::vector<Tensor> parameters{torch::linspace(0, 1, 12, torch::kDouble).view({3, 4}).t(),
                                   torch::linspace(0, 1, 20, torch::kFloat).view({4, 5}).slice(1, 0, 5, 2),
                                   torch::linspace(0, 1, 7, torch::kDouble)};
    for (Tensor& parameter : parameters) parameter = parameter.detach().requires_grad_();
    const auto optimizer = make(parameters);
    for (int index = 0; index < kSteps; ++index) {
      optimizer->zero_grad();
      // The last one joins late.
      for (std::size_t i = 0; i < parameters.size() - (index < 2 ? 1 : 0); ++i) {
        (parameters[i].contiguous().pow(2) * (i + 1)).sum().backward();
      }
      optimizer->step();
    }
    return parameters;
  };
  const auto expected =
      run([](auto p) { return std::make_unique<torch::optim::AdamW>(p, torch::optim::AdamWOptions(0.1)); });
  const auto found = run([](auto p) { return std::make_unique<FusedAdamW>(p, torch::optim::AdamWOptions(0.1)); });
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_LE(test::difference(found[i], expected[i]), expected[i].scalar_type() == torch::kDouble ? kRounding : 1e-6);
  }
}

TEST(FusedAdamW, TellsAutogradThatParametersChanged) {
  test::on_layouts([](const Mesh& mesh, test::Net& net) {
    FusedAdamW optimizer(net->parameters());
    test::backward(mesh, net);
    const Tensor output = net->forward(shard_batch(mesh, test::inputs()).requires_grad_());
    optimizer.step();
    EXPECT_THROW(output.sum().backward(), c10::Error) << "the graph saved weights that are gone";
  });
}

TEST(FusedAdamW, SavesAndLoadsAsTorchDoes) {
  test::Net net = test::make_net();
  torch::optim::AdamW torch_optimizer(net->parameters(), torch::optim::AdamWOptions(0.1));
  FusedAdamW fused(net->parameters(), torch::optim::AdamWOptions(0.2));
  test::backward(net, test::inputs(), test::targets());
  torch_optimizer.step();
  torch::serialize::OutputArchive written;
  torch_optimizer.save(written);
  std::stringstream stream;
  written.save_to(stream);
  torch::serialize::InputArchive read;
  read.load_from(stream);
  fused.load(read);
  EXPECT_EQ(static_cast<torch::optim::AdamWOptions&>(fused.param_groups()[0].options()).lr(), 0.1);
  fused.step();
  const auto& state = *fused.state().at(net->parameters()[0].unsafeGetTensorImpl());
  EXPECT_EQ(static_cast<const torch::optim::AdamWParamState&>(state).step(), 2);
}

/// The state was made on one device, and the module came to a mesh afterwards.
TEST(FusedSgd, GoesOnWhenTheModuleComesToAMesh) {
  const torch::optim::SGDOptions options = torch::optim::SGDOptions(0.1).momentum(0.9);
  test::Net alone = test::make_net();
  FusedSgd expected(alone->parameters(), options);
  for (int index = 0; index < 2; ++index) {
    expected.zero_grad();
    test::backward(alone, test::inputs(index), test::targets());
    expected.step();
  }
  test::on_mesh("dp=2", [&](const Mesh& mesh) {
    test::Net net = test::make_net();
    FusedSgd optimizer(net->parameters(), options);
    test::backward(net, test::inputs(0), test::targets());
    optimizer.step();
    optimizer.zero_grad();
    distribute(*net, mesh, Plan());
    test::backward(mesh, net, 1);
    optimizer.step();
    for (std::size_t i = 0; i < alone->parameters().size(); ++i) {
      EXPECT_LE(test::difference(net->parameters()[i], alone->parameters()[i]), kRounding) << i;
    }
  });
}

/// A step on one device, saved; the rest on a mesh, where the state is read as it was saved.
template <class Fused, class Reference, class Options>
void expect_equal_after_loading(const Options& options) {
  test::Net alone = test::make_net();
  Reference expected(alone->parameters(), options);
  const auto step_alone = [&](int index) {
    expected.zero_grad();
    test::backward(alone, test::inputs(index), test::targets());
    expected.step();
  };
  step_alone(0);
  torch::serialize::OutputArchive written;
  expected.save(written);
  std::stringstream stream;
  written.save_to(stream);
  std::vector<Tensor> start;
  for (const Tensor& parameter : alone->parameters()) start.push_back(parameter.detach().clone());
  for (int index = 1; index < kSteps; ++index) step_alone(index);
  std::vector<test::Layout> layouts = test::layouts();
  for (const int zero : {1, 2, 3}) layouts.push_back({"zero", "dp_shard=2,tp=2", Plan(layouts[1].plan).zero(zero)});
  layouts.push_back({"two stages", "pp=2,dp_shard=2", Plan().stages({{"first"}, {"second"}}).zero(3)});
  for (const test::Layout& layout : layouts) {
    SCOPED_TRACE(layout.axes);
    test::on_mesh(layout.axes, [&](const Mesh& mesh) {
      test::Net net = test::make_net();
      for (std::size_t i = 0; i < start.size(); ++i) net->parameters()[i].detach().copy_(start[i]);
      distribute(*net, mesh, layout.plan);
      Fused optimizer(net->parameters(), options);
      std::stringstream own(stream.str());
      torch::load(optimizer, own);
      for (int index = 1; index < kSteps; ++index) {
        optimizer.zero_grad();
        test::backward(mesh, net, index);
        optimizer.step();
      }
      for (std::size_t i = 0; i < start.size(); ++i) {
        EXPECT_LE(test::difference(net->parameters()[i], alone->parameters()[i]), kRounding) << i;
      }
    });
  }
}

TEST(FusedAdamW, GoesOnFromTheSavedStateOfOneDevice) {
  expect_equal_after_loading<FusedAdamW, torch::optim::AdamW>(torch::optim::AdamWOptions(1e-2).amsgrad(true));
}

TEST(FusedSgd, GoesOnFromTheSavedStateOfOneDevice) {
  expect_equal_after_loading<FusedSgd, torch::optim::SGD>(torch::optim::SGDOptions(0.1).momentum(0.9));
}

TEST(FusedAdamW, RefusesSparseGradients) {
  Tensor parameter = torch::ones({4}, torch::requires_grad());
  parameter.mutable_grad() = torch::sparse_coo_tensor(torch::zeros({1, 1}, torch::kLong), torch::ones({1}), {4});
  FusedAdamW optimizer({parameter});
  EXPECT_THROW(optimizer.step(), ShapeError);
}

}  // namespace
}  // namespace tessera
