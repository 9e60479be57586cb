// SPDX-License-Identifier: Apache-2.0
// Autocast, accumulation, finite checks, moving averages and master weights on meshes.
#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>

#include <limits>

#include "module/models.h"
#include "tessera/base/error.h"
#include "tessera/module/autocast.h"
#include "tessera/module/check_finite.h"
#include "tessera/module/ema.h"
#include "tessera/module/master_weights.h"

namespace tessera {
namespace {

using at::Tensor;

TEST(Autocast, ComputesIn16BitsAndKeepsFloatGradientsOnEveryLayout) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    const auto run = [&](test::Net& net, const auto& place) {
      net->to(torch::kFloat);
      Tensor output;
      Tensor loss;
      {
        const Autocast guard(at::kCPU, dtype);
        output = net->forward(place(test::inputs().to(torch::kFloat)));
        loss = test::squared_error(output, place(test::targets().to(torch::kFloat)));
      }
      EXPECT_EQ(output.scalar_type(), dtype);
      loss.backward();
      return output;
    };
    test::Net alone = test::make_net();
    const Tensor expected = run(alone, [](const Tensor& x) { return x; });
    // 16-bit rounding of sums of 14 products of about 1.
    const double rounding = dtype == at::kHalf ? 2e-3 : 2e-2;
    for (const test::Layout& layout : test::layouts()) {
      test::on_mesh(layout.axes, [&](const Mesh& mesh) {
        test::Net net = test::make_net();
        net->to(torch::kFloat);
        distribute(*net, mesh, layout.plan);
        const Tensor output = run(net, [&](const Tensor& x) { return shard_batch(mesh, x); });
        EXPECT_LE(test::difference(output.to(torch::kFloat), expected.to(torch::kFloat)), rounding);
        for (std::size_t i = 0; i < net->parameters().size(); ++i) {
          const Tensor& gradient = net->parameters()[i].grad();
          EXPECT_EQ(gradient.scalar_type(), torch::kFloat);
          EXPECT_LE(test::difference(gradient, alone->parameters()[i].grad()), rounding);
        }
      });
    }
  }
}

// A parameter's 16-bit copy is sharded as the parameter is: to save memory, not to compute with the shard.
TEST(Autocast, GathersParametersOfZero3WhereTheyAreUsed) {
  for (const char* axes : {"dp_shard=2", "pp=2,dp_shard=2"}) {
    test::on_mesh(axes, [](const Mesh& mesh) {
      test::Net net = test::make_net();
      net->to(at::kFloat);
      distribute(*net, mesh, Plan().zero(3).stages({{"first"}, {"second"}}));
      const Tensor x = shard_batch(mesh, test::inputs().to(at::kFloat));
      const comm::Communicator& group = mesh.along(mesh.axis_index("dp_shard"));
      const std::int64_t before = group.traffic().bytes;
      const Autocast guard(at::kCPU, at::kBFloat16);
      const Tensor y = net->forward(x);
      EXPECT_EQ(placements(y)[mesh.axis_index("dp_shard")], Shard(0)) << "the batch was moved instead";
      // Weights and biases travel in 16 bits; 5 outputs over two ranks as 6 rows.
      const std::int64_t first = 14 * (10 + 1) * 2;
      const std::int64_t second = 6 * (14 + 1) * 2;
      const int stages = mesh.axis_index("pp");
      const std::int64_t here = stages < 0 ? first + second : mesh.coordinate(stages) == 0 ? first : second;
      EXPECT_EQ(group.traffic().bytes - before, here);
    });
  }
}

TEST(Autocast, RestoresWhatWasBeforeAndRefusesFloat) {
  const auto before = at::autocast::get_autocast_dtype(at::kCPU);
  {
    const Autocast outer(at::kCPU, at::kHalf);
    { const Autocast inner(at::kCPU, at::kBFloat16); }
    EXPECT_EQ(at::autocast::get_autocast_dtype(at::kCPU), at::kHalf);
    EXPECT_TRUE(at::autocast::is_autocast_enabled(at::kCPU));
  }
  EXPECT_EQ(at::autocast::get_autocast_dtype(at::kCPU), before);
  EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
  EXPECT_THROW(Autocast(at::kCPU, at::kFloat), ConfigError);
}

TEST(Accumulation, OfManyBatchesSendsTheBytesOfOne) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    test::Net net = test::make_net();
    distribute(*net, mesh, Plan());
    const auto bytes_of = [&](int batches) {
      net->zero_grad();
      const auto before = mesh.traffic();
      {
        const NoSync guard(*net);
        for (int index = 1; index < batches; ++index) test::backward(mesh, net, index);
      }
      test::backward(mesh, net);
      for (const Tensor& parameter : net->parameters()) (void)full(parameter.grad());
      return std::pair(mesh.traffic().bytes - before.bytes, mesh.traffic().calls - before.calls);
    };
    const auto one = bytes_of(1);
    EXPECT_GT(one.first, 0);
    // Beside gradients, the loss of each step: 8 bytes.
    EXPECT_EQ(bytes_of(4), std::pair(one.first + 3 * 8, one.second + 3));
    EXPECT_EQ(bytes_of(7), std::pair(one.first + 6 * 8, one.second + 6));
  });
}

std::string failure_of(const torch::nn::Module& module) {
  try {
    check_finite(module);
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

TEST(CheckFinite, NamesTheParameterAndTheRankOnEveryRank) {
  test::on_layouts([](const Mesh& mesh, test::Net& net) {
    test::backward(mesh, net);
    EXPECT_EQ(failure_of(*net), "");
    const int culprit = mesh.size() - 1;
    if (mesh.rank() == culprit) local(net->second->weight.detach()).view({-1})[0] = std::nan("");
    const std::string message = failure_of(*net);
    EXPECT_NE(message.find("parameter second.weight is not finite"), std::string::npos) << message;
    EXPECT_NE(message.find(fmt::format("rank {} of {}: 1 NaN and 0 infinite", culprit, mesh.size())), std::string::npos)
        << message;
  });
}

TEST(CheckFinite, NamesTheRankWhoseSamplesMadeTheGradientInfinite) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    test::Net net = test::make_net();
    distribute(*net, mesh, Plan());
    Tensor targets = test::targets();
    targets[7][0] = std::numeric_limits<double>::infinity();
    const NoSync guard(*net);
    test::backward(net, shard_batch(mesh, test::inputs()), shard_batch(mesh, targets));
    const std::string message = failure_of(*net);
    EXPECT_NE(message.find("gradient of first.weight is not finite on rank 1 of 2"), std::string::npos) << message;
  });
}

TEST(CheckFinite, CostsOneReductionWhenAllIsFinite) {
  test::on_layouts([](const Mesh& mesh, test::Net& net) {
    test::backward(mesh, net);
    for (const Tensor& parameter : net->parameters()) (void)full(parameter.grad());
    const auto before = mesh.traffic();
    check_finite(*net);
    EXPECT_EQ(mesh.traffic().calls - before.calls, 1);
  });
}

TEST(CheckFinite, ChecksPlainModules) {
  test::Net net = test::make_net();
  EXPECT_EQ(failure_of(*net), "");
  net->first->bias.detach()[3] = -std::numeric_limits<double>::infinity();
  EXPECT_NE(failure_of(*net).find("parameter first.bias is not finite on rank 0 of 1: 0 NaN and 1 infinite"),
            std::string::npos);
}

TEST(Ema, AveragesAsOneDeviceDoesAndStaysSharded) {
  const auto average = [](test::Net& net, const auto& run_backward) {
    torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.5));
    Ema ema(net->parameters(), 0.9);
    for (int index = 0; index < 4; ++index) {
      optimizer.zero_grad();
      run_backward(index);
      optimizer.step();
      ema.update();
    }
    return ema;
  };
  test::Net alone = test::make_net();
  const Ema expected = average(alone, [&](int index) { test::backward(alone, test::inputs(index), test::targets()); });
  EXPECT_GT(test::difference(expected.averages()[0], alone->parameters()[0]), 1e-3) << "an average lags behind";
  test::on_layouts([&](const Mesh& mesh, test::Net& net) {
    Ema ema = average(net, [&](int index) { test::backward(mesh, net, index); });
    for (std::size_t i = 0; i < net->parameters().size(); ++i) {
      const Tensor parameter = net->parameters()[i];
      EXPECT_EQ(placements(ema.averages()[i]), placements(parameter));
      EXPECT_LE(test::difference(ema.averages()[i], expected.averages()[i]), 1e-14);
    }
    const auto before = mesh.traffic();
    ema.update();
    { const Ema::Swapped averaged(ema); }
    EXPECT_EQ(mesh.traffic().calls, before.calls);
  });
}

TEST(Ema, SwapsInAndOut) {
  test::on_layouts([](const Mesh& mesh, test::Net& net) {
    Ema ema(net->parameters(), 0.5);
    test::backward(mesh, net);
    torch::optim::SGD(net->parameters(), torch::optim::SGDOptions(0.5)).step();
    ema.update();
    const Tensor weight = net->first->weight;
    const Tensor own = full(weight.detach()).clone();
    const Tensor average = full(ema.averages()[0]).clone();
    {
      const Ema::Swapped averaged(ema);
      EXPECT_TRUE(torch::equal(full(weight.detach()), average));
    }
    EXPECT_TRUE(torch::equal(full(weight.detach()), own));
    EXPECT_TRUE(torch::equal(full(ema.averages()[0]), average));
    EXPECT_FALSE(torch::equal(own, average));
  });
}

TEST(Ema, RefusesADecayAboveOne) { EXPECT_THROW(Ema({}, 1.5), ConfigError); }

TEST(MasterWeights, KeepUpdatesThatBfloat16Swallows) {
  const auto train = [](bool masters) {
    Tensor weight = torch::ones({4}, torch::kBFloat16).requires_grad_();
    const torch::optim::SGDOptions options(1e-3);
    std::unique_ptr<torch::optim::Optimizer> optimizer;
    if (masters) {
      optimizer = make_master_weights<torch::optim::SGD>({weight}, options);
    } else {
      optimizer = std::make_unique<torch::optim::SGD>(std::vector<Tensor>{weight}, options);
    }
    for (int index = 0; index < 100; ++index) {
      weight.mutable_grad() = torch::ones({4}, torch::kBFloat16);
      optimizer->step();
    }
    return weight[0].item<double>();
  };
  EXPECT_EQ(train(false), 1.0) << "1 - 0.001 rounds to 1";
  EXPECT_NEAR(train(true), 0.9, 4e-3);
}

TEST(MasterWeights, MatchOneDeviceUnderEveryOptimizerOnEveryLayout) {
  const auto check = [](const MasterWeights::Make& make) {
    const auto train = [&](test::Net& net, const auto& place) {
      MasterWeights optimizer(net->parameters(), make);
      for (int index = 0; index < 3; ++index) {
        optimizer.zero_grad();
        test::backward(net, place(test::inputs(index).to(torch::kBFloat16)),
                       place(test::targets().to(torch::kBFloat16)));
        optimizer.step();
      }
      return optimizer.masters();
    };
    test::Net alone = test::make_net();
    alone->to(torch::kBFloat16);
    const auto expected = train(alone, [](const Tensor& x) { return x; });
    for (const test::Layout& layout : test::layouts()) {
      test::on_mesh(layout.axes, [&](const Mesh& mesh) {
        test::Net net = test::make_net();
        net->to(torch::kBFloat16);
        distribute(*net, mesh, layout.plan);
        const auto found = train(net, [&](const Tensor& x) { return shard_batch(mesh, x); });
        for (std::size_t i = 0; i < found.size(); ++i) {
          EXPECT_EQ(found[i].scalar_type(), torch::kFloat);
          EXPECT_EQ(placements(found[i]), placements(net->parameters()[i]));
          // Three steps of 0.05 with gradients rounded to 8 bits.
          EXPECT_LE(test::difference(found[i], expected[i]), 3 * 0.05 * 2e-2);
          EXPECT_TRUE(torch::equal(full(found[i].detach()).to(torch::kBFloat16), full(net->parameters()[i].detach())));
        }
      });
    }
  };
  check([](std::vector<Tensor> p) {
    return std::make_unique<torch::optim::SGD>(p, torch::optim::SGDOptions(0.05).momentum(0.9));
  });
  check([](std::vector<Tensor> p) {
    return std::make_unique<torch::optim::Adagrad>(p, torch::optim::AdagradOptions(1e-3));
  });
}

TEST(MasterWeights, SaveAndLoadCopiesAndState) {
  const auto fresh = [](double value) {
    Tensor weight = torch::full({4}, value, torch::kBFloat16).requires_grad_();
    weight.mutable_grad() = torch::ones({4}, torch::kBFloat16);
    return weight;
  };
  const Tensor weight = fresh(1.0);
  auto optimizer = make_master_weights<torch::optim::AdamW>({weight}, torch::optim::AdamWOptions(1e-4));
  optimizer->step();
  torch::serialize::OutputArchive written;
  optimizer->save(written);
  std::stringstream stream;
  written.save_to(stream);
  const Tensor other = fresh(5.0);
  auto loaded = make_master_weights<torch::optim::AdamW>({other}, torch::optim::AdamWOptions(1e-4));
  loaded->step();
  torch::serialize::InputArchive read;
  read.load_from(stream);
  loaded->load(read);
  EXPECT_TRUE(torch::equal(loaded->masters()[0].detach(), optimizer->masters()[0].detach()));
  optimizer->step();
  loaded->step();
  EXPECT_TRUE(torch::equal(loaded->masters()[0].detach(), optimizer->masters()[0].detach()));
}

Tensor bfloat16_ones() { return torch::ones({4}, torch::kBFloat16).requires_grad_(); }

TEST(MasterWeights, UpdateGroupsThatWereAddedWithTheirOptions) {
  using torch::optim::OptimizerParamGroup;
  using torch::optim::SGDOptions;
  const std::vector<Tensor> weights{bfloat16_ones(), bfloat16_ones(), bfloat16_ones()};
  auto optimizer = make_master_weights<torch::optim::SGD>({weights[0]}, SGDOptions(1e-3));
  optimizer->add_param_group(OptimizerParamGroup({weights[1], weights[1]}, std::make_unique<SGDOptions>(2e-3)));
  optimizer->add_param_group(OptimizerParamGroup({weights[2]}));
  for (int index = 0; index < 100; ++index) {
    for (const Tensor& weight : weights) weight.mutable_grad() = torch::ones({4}, torch::kBFloat16);
    optimizer->step();
  }
  EXPECT_EQ(optimizer->masters().size(), 3U);
  EXPECT_NEAR(weights[0][0].item<double>(), 0.9, 4e-3);
  EXPECT_NEAR(weights[1][0].item<double>(), 0.8, 4e-3);
  EXPECT_NEAR(weights[2][0].item<double>(), 0.9, 4e-3) << "the options of the inner optimizer";
}

TEST(MasterWeights, RefusesAGroupThatCameToItsBase) {
  auto optimizer = make_master_weights<torch::optim::SGD>({bfloat16_ones()}, torch::optim::SGDOptions(1e-3));
  torch::optim::Optimizer& base = *optimizer;
  base.add_param_group(torch::optim::OptimizerParamGroup({bfloat16_ones()}));
  torch::serialize::OutputArchive archive;
  EXPECT_THROW(optimizer->step(), ConfigError);
  EXPECT_THROW(optimizer->save(archive), ConfigError);
}

TEST(MasterWeights, RefusesAnOptimizerThatComputesTheLossAgain) {
  EXPECT_THROW((void)make_master_weights<torch::optim::LBFGS>({bfloat16_ones()}, torch::optim::LBFGSOptions(1)),
               ConfigError);
}

struct CountsWarnings : c10::WarningHandler {
  void process(const c10::Warning&) override { ++count; }
  int count = 0;
};

TEST(MasterWeights, StepWithoutWarnings) {
  CountsWarnings warnings;
  const c10::WarningUtils::WarningHandlerGuard guard(&warnings);
  auto optimizer = make_master_weights<torch::optim::SGD>({bfloat16_ones()}, torch::optim::SGDOptions(1e-3));
  optimizer->step();
  EXPECT_EQ(warnings.count, 0);
}

}  // namespace
}  // namespace tessera
