// SPDX-License-Identifier: Apache-2.0
// Stages of equal time or memory: what a part costs, and the cut that follows.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "support/ranks.h"
#include "tessera/base/error.h"
#include "tessera/train/session.h"

namespace tessera::train {
namespace {

TrainConfig gpt_config() {
  TrainConfig config;
  config.model.layers = 4;
  config.model.hidden = 32;
  config.model.vocab = 64;
  config.model.seq_len = 16;
  config.data = {"synthetic", "sequential", ""};
  config.batch = 4;
  return config;
}

using Stages = std::vector<std::vector<std::string>>;

/// Of embed, block0 to block3 and head, in that order.
std::vector<PartCost> costs(const std::vector<double>& seconds, const std::vector<std::int64_t>& activation_bytes,
                            const std::vector<std::int64_t>& parameter_bytes) {
  const std::vector<std::string> names{"embed", "block0", "block1", "block2", "block3", "head"};
  std::vector<PartCost> result;
  for (std::size_t i = 0; i < names.size(); ++i) {
    result.push_back({names[i], seconds[i], activation_bytes[i], parameter_bytes[i]});
  }
  return result;
}

Stages stages_of(const std::string& balance, const std::vector<PartCost>& costs_of_parts) {
  TrainConfig config = gpt_config();
  config.plan.balance = balance;
  const Workload workload = make_workload(config.model, 0);
  return plan_of(config, workload, parse_axes("pp=2"), costs_of_parts).stages();
}

TEST(Balance, ByTimeMakesTheSlowestStageFast) {
  const auto slow_start = costs({1, 10, 1, 1, 1, 1}, {9, 9, 9, 9, 9, 9}, {1, 1, 1, 1, 1, 1});
  EXPECT_EQ(stages_of("time", slow_start), (Stages{{"embed", "block0"}, {"block1", "block2", "block3", "head"}}));
  const auto slow_end = costs({1, 1, 1, 1, 1, 10}, {9, 9, 9, 9, 9, 9}, {1, 1, 1, 1, 1, 1});
  EXPECT_EQ(stages_of("time", slow_end), (Stages{{"embed", "block0", "block1", "block2", "block3"}, {"head"}}));
}

TEST(Balance, ByMemoryCountsStateAndActivations) {
  // adamw: four values per parameter. 4 * 10 = 40 in the embedding against activations of 20 each.
  const auto parts = costs({9, 1, 1, 1, 1, 9}, {0, 20, 20, 20, 20, 0}, {10, 0, 0, 0, 0, 0});
  EXPECT_EQ(stages_of("memory", parts), (Stages{{"embed", "block0"}, {"block1", "block2", "block3", "head"}}));
}

TEST(Balance, WeighsTheStateOfTheOptimizer) {
  const PartCost cost{"part", 0.5, 7, 100};
  EXPECT_EQ(weight_of(cost, "time", {}), 0.5);
  EXPECT_EQ(weight_of(cost, "memory", {.name = "adamw"}), 407);
  EXPECT_EQ(weight_of(cost, "memory", {.name = "sgd", .momentum = 0.9}), 307);
  EXPECT_EQ(weight_of(cost, "memory", {.name = "sgd", .momentum = 0}), 207);
}

TEST(Balance, MeasuresEachPartAndLeavesNoTrace) {
  torch::set_num_threads(1);
  TrainConfig config = gpt_config();
  config.model.dropout = 0.1;
  const Workload workload = make_workload(config.model, 0);
  const Dataset data = load_dataset(config.data, workload.input, 0);
  torch::manual_seed(5);
  const std::vector<PartCost> parts = measure_parts(workload, data.train.slice(0, 4));
  const at::Tensor drawn = torch::rand({4});
  torch::manual_seed(5);
  EXPECT_TRUE(at::equal(drawn, torch::rand({4})));
  ASSERT_EQ(parts.size(), 6U);
  EXPECT_EQ(parts[0].path, "embed");
  EXPECT_EQ(parts[5].path, "head");
  const std::int64_t block_parameters = 4 * (12 * 32 * 32 + 13 * 32);
  for (std::size_t block = 1; block <= 4; ++block) {
    EXPECT_EQ(parts[block].parameter_bytes, block_parameters);
    EXPECT_EQ(parts[block].activation_bytes, parts[1].activation_bytes);
  }
  for (const PartCost& part : parts) {
    EXPECT_GT(part.seconds, 0);
    EXPECT_GT(part.activation_bytes, 0);
  }
  for (const at::Tensor& parameter : workload.module->parameters()) EXPECT_FALSE(parameter.grad().defined());
}

TEST(Balance, ByWhateverMeasureTrainsTheSameOn2Ranks) {
  for (const char* balance : {"time", "memory"}) {
    test::on_ranks(2, [&](const auto& world) {
      const auto losses = [&](const std::string& how) {
        TrainConfig config = gpt_config();
        config.mesh = "pp=2";
        config.plan.balance = how;
        const Workload shape = make_workload(config.model, 0);
        const auto data = std::make_shared<const Dataset>(load_dataset(config.data, shape.input, 0));
        Session session(config, data, Mesh(world, parse_axes(config.mesh)));
        std::vector<double> result;
        for (std::int64_t step = 0; step < 2; ++step) {
          result.push_back(session.forward_backward(step).template item<double>());
          session.update();
        }
        return result;
      };
      EXPECT_EQ(losses("parameters"), losses(balance));
    });
  }
}

TEST(Balance, RefusesToMeasureForAMeshWithoutStages) {
  ConfigReader reader;
  reader.set("mesh", "dp=2", "--mesh");
  reader.set("plan.balance", "time", "--balance");
  try {
    (void)reader.finish();
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("--balance: plan.balance: \"time\" balances stages over axis pp"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace tessera::train
