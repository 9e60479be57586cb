// SPDX-License-Identifier: Apache-2.0
// ZeRO's closed forms: what a rank holds after a step, and what it sends for one.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "support/ranks.h"
#include "tessera/base/error.h"
#include "tessera/module/distribute.h"
#include "tessera/train/session.h"
#include "support/temporary_folder.h"

namespace tessera::train {
namespace {

using test::TemporaryFolder;

TrainConfig gpt_config(int zero, const std::string& mesh) {
  TrainConfig config;
  config.model.layers = 2;
  config.model.hidden = 64;
  config.model.vocab = 64;
  config.model.seq_len = 16;
  config.data = {"synthetic", "sequential", ""};
  config.batch = 8;
  config.plan.zero = zero;
  config.mesh = mesh;
  config.optimizer.name = "adamw";
  return config;
}

std::shared_ptr<const Dataset> data_of(const TrainConfig& config) {
  const Workload shape = make_workload_shape(config.model);
  return std::make_shared<const Dataset>(load_dataset(config.data, shape.input, 0));
}

/// A step to make the optimizer's state, then one to measure.
void after_a_step(int zero, const std::string& axes, const std::function<void(Session&, const Mesh&)>& measure) {
  const TrainConfig config = gpt_config(zero, axes);
  const auto data = data_of(config);
  test::on_mesh(axes, [&](const Mesh& mesh) {
    Session session(config, data, mesh, {.count_memory = true});
    (void)session.forward_backward(0).item<double>();
    session.update();
    measure(session, mesh);
  }, {.strict = true});
}

std::int64_t parameter_bytes(const Session& session) {
  return 4 * count_parameters(*session.workload().module);
}

struct ResidentCase {
  int zero;
  /// Of parameters, gradients and the two moments, so many quarters of each stay on one of four ranks.
  int value, gradient, state;
};

class ZeroMemory : public ::testing::TestWithParam<ResidentCase> {};

TEST_P(ZeroMemory, IsWhatTheStageLeavesOnARankOn4Ranks) {
  const ResidentCase row = GetParam();
  after_a_step(row.zero, "dp_shard=4", [&](Session& session, const Mesh&) {
    const double whole = static_cast<double>(parameter_bytes(session));
    const double expected = whole * (row.value + row.gradient + 2 * row.state) / 4.0;
    EXPECT_LE(static_cast<double>(session.memory()->allocated_bytes()), 1.02 * expected);
    EXPECT_GE(static_cast<double>(session.memory()->allocated_bytes()), expected);
  });
}

INSTANTIATE_TEST_SUITE_P(Stages, ZeroMemory,
                         ::testing::Values(ResidentCase{0, 4, 4, 4}, ResidentCase{1, 4, 4, 1}, ResidentCase{2, 4, 1, 1},
                                           ResidentCase{3, 1, 1, 1}),
                         [](const auto& stage) { return "Zero" + std::to_string(stage.param.zero); });

TEST(ZeroMemory, OfAModelTwiceWhatARankHasSufficesToBuildAndTrainItOn8Ranks) {
  TrainConfig config = gpt_config(3, "dp_shard=8");
  config.model.hidden = 128;
  config.model.layers = 6;
  config.model.seq_len = 4;
  config.optimizer.name = "sgd";
  config.precision = "fp64";
  const auto data = data_of(config);
  test::on_mesh("dp_shard=8", [&](const Mesh& mesh) {
    Session session(config, data, mesh, {.count_memory = true});
    const std::int64_t half = 8 * count_parameters(*session.workload().module) / 2;
    EXPECT_LT(session.memory()->peak_bytes(), half) << "while it was built";
    session.memory()->reset_peak();
    (void)session.forward_backward(0).item<double>();
    session.update();
    EXPECT_LT(session.memory()->peak_bytes(), half) << "in a step";
  });
}

struct Held {
  std::int64_t resident_bytes = 0;
  std::int64_t peak_bytes = 0;
  std::int64_t parameter_bytes = 0;
};

/// Of the first of four ranks in a step of ZeRO 3 that gathers up to `prefetch_bytes` ahead.
Held held_under_zero_3(std::int64_t prefetch_bytes) {
  const TemporaryFolder folder;
  TrainConfig config = gpt_config(0, "dp_shard=4");
  config.plan.file = folder.write("plan.toml", Plan().zero(3).prefetch_bytes(prefetch_bytes).to_toml());
  const auto data = data_of(config);
  Held held;
  test::on_mesh("dp_shard=4", [&](const Mesh& mesh) {
    Session session(config, data, mesh, {.count_memory = true});
    for (int index = 0; index < 3; ++index) {
      session.memory()->reset_peak();
      (void)session.forward_backward(index).item<double>();
      session.update();
    }
    if (mesh.rank() == 0)
      held = {session.memory()->allocated_bytes(), session.memory()->peak_bytes(), parameter_bytes(session)};
  });
  return held;
}

TEST(ZeroPrefetch, HoldsAWindowMoreAtMostOn4Ranks) {
  const Held at_use = held_under_zero_3(0);
  for (const std::int64_t window_bytes : {std::int64_t{1} << 14, std::int64_t{1} << 16}) {
    const Held ahead = held_under_zero_3(window_bytes);
    const double share = 4.0 * static_cast<double>(ahead.parameter_bytes) / 4;
    EXPECT_LE(static_cast<double>(ahead.resident_bytes), 1.02 * share + static_cast<double>(window_bytes));
    EXPECT_LE(ahead.peak_bytes, at_use.peak_bytes + window_bytes);
    EXPECT_GT(ahead.peak_bytes, at_use.peak_bytes) << "nothing was gathered ahead";
  }
}

/// Payload of one step in units of the parameters' bytes.
double traffic_of_a_step(int zero, const std::string& axes) {
  double result = 0;
  after_a_step(zero, axes, [&](Session& session, const Mesh& mesh) {
    const std::int64_t before = mesh.traffic().bytes;
    (void)session.forward_backward(1);
    session.update();
    const auto bytes = static_cast<double>(mesh.traffic().bytes - before);
    if (mesh.rank() == 0) result = bytes / static_cast<double>(parameter_bytes(session));
  });
  return result;
}

TEST(ZeroTraffic, OfStage0IsOneAllReduce) { EXPECT_NEAR(traffic_of_a_step(0, "dp_shard=4"), 1.0, 1e-3); }

TEST(ZeroTraffic, OfStages1And2IsAReductionAndOneGather) {
  EXPECT_NEAR(traffic_of_a_step(1, "dp_shard=4"), 2.0, 1e-3);
  EXPECT_NEAR(traffic_of_a_step(2, "dp_shard=4"), 2.0, 1e-3);
}

TEST(ZeroTraffic, OfStage3IsAGatherForForwardOneForBackwardAndAReduceScatter) {
  const TrainConfig config = gpt_config(3, "");
  const Workload shape = make_workload_shape(config.model);
  // Backward needs weights of products and norms, not embeddings or biases of products.
  std::int64_t gathered_once = 0;
  std::int64_t all = 0;
  for (const auto& item : shape.module->named_parameters()) {
    all += item.value().numel();
    const bool bias_of_product = item.key().ends_with(".bias") && item.key().find("ln") == std::string::npos &&
                                 item.key().find("norm") == std::string::npos;
    if (item.key().starts_with("embed.") || bias_of_product) gathered_once += item.value().numel();
  }
  // norms gather weight and bias again in backward
  const double expected = 3.0 - static_cast<double>(gathered_once) / static_cast<double>(all);
  EXPECT_NEAR(traffic_of_a_step(3, "dp_shard=4"), expected, 5e-3);
}

TEST(Zero, LeavesGradientsOfAHybridMeshShardedAndWholeOverReplicas) {
  after_a_step(3, "dp_replicate=2,dp_shard=2", [](Session& session, const Mesh&) {
    for (const at::Tensor& parameter : session.workload().module->parameters()) {
      EXPECT_EQ(placements(parameter), (Placements{Replicate(), Shard(0)}));
      EXPECT_EQ(placements(parameter.grad()), (Placements{Replicate(), Shard(0)}));
    }
  });
}

TEST(Zero, KeepsTheCutOfTensorParallelismUnderItsOwn) {
  after_a_step(3, "dp_shard=2,tp=2", [](Session& session, const Mesh& mesh) {
    const auto parameters = session.workload().module->named_parameters();
    const at::Tensor& weight = parameters["block0.up.weight"];
    EXPECT_EQ(placements(weight), (Placements{Shard(0), Shard(0)}));
    // Gathering over dp_shard alone gives the tensor-parallel shard.
    const at::Tensor gathered = redistribute(weight.detach(), {Replicate(), Shard(0)});
    EXPECT_TRUE(at::equal(local(gathered), full(weight.detach()).chunk(2, 0)[static_cast<std::size_t>(mesh.coordinate(1))]));
  });
}

TEST(Plan, RefusesAZeroStageThatIsNone) {
  EXPECT_THROW(Plan().zero(4), ConfigError);
  EXPECT_THROW((void)Plan::parse("zero = \"three\"", "plan.toml"), ConfigError);
  try {
    (void)Plan::parse("\nzero = 7", "plan.toml");
    FAIL() << "not refused";
  } catch (const ConfigError& error) {
    EXPECT_EQ(std::string(error.what()).find("plan.toml:2: zero = 7 is out of range"), 0U) << error.what();
  }
}

TEST(Plan, WritesAndReadsItsZeroStage) {
  EXPECT_EQ(Plan::parse(Plan().zero(2).to_toml(), "plan.toml").zero(), 2);
}

}  // namespace
}  // namespace tessera::train
