// SPDX-License-Identifier: Apache-2.0
// Recomputation changes no number, on any mesh, and leaves the memory that closed forms say.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "support/ranks.h"
#include "tessera/base/error.h"
#include "tessera/base/text.h"
#include "tessera/module/distribute.h"
#include "tessera/tensor/random.h"
#include "tessera/train/session.h"

namespace tessera::train {
namespace {

std::shared_ptr<const Dataset> data_of(const TrainConfig& config) {
  const Workload shape = make_workload(config.model, 0);
  return std::make_shared<const Dataset>(load_dataset(config.data, shape.input, 0));
}

TrainConfig small(const std::string& model) {
  TrainConfig config;
  config.model.name = model;
  config.model.sizes = {16, 24, 20, 24, 10};
  config.model.channels = 4;
  config.model.blocks = 4;
  config.model.layers = 4;
  config.model.hidden = 32;
  config.model.vocab = 64;
  config.model.seq_len = 16;
  config.model.dropout = model == "mlp" || model == "gpt" ? 0.1 : 0;
  config.data = {"synthetic", "sequential", ""};
  config.batch = 8;
  config.optimizer.clip = 1.0;
  return config;
}

struct Training {
  std::vector<double> losses;
  std::vector<at::Tensor> gradients;
  std::vector<at::Tensor> parameters;
  RandomState random;
  RecomputeCounts counts;
};

Training train(TrainConfig config, const std::string& recompute, const std::shared_ptr<const Dataset>& data,
               const Mesh& mesh) {
  config.plan.recompute = recompute;
  Session session(config, data, mesh);
  Training run;
  for (std::int64_t step = 0; step < 3; ++step) {
    run.losses.push_back(session.forward_backward(step).item<double>());
    for (const at::Tensor& parameter : session.workload().module->parameters()) {
      run.gradients.push_back(full(parameter.grad()).clone());
    }
    session.update();
  }
  for (const at::Tensor& parameter : session.workload().module->parameters()) {
    run.parameters.push_back(full(parameter).clone());
  }
  run.random = random_state(mesh);
  run.counts = recompute_counts(mesh);
  return run;
}

void expect_same(const std::vector<at::Tensor>& expected, const std::vector<at::Tensor>& found, const char* what) {
  ASSERT_EQ(expected.size(), found.size());
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(expected[i], found[i])) << what << " " << i;
}

struct Case {
  const char* name;
  const char* model;
  const char* axes;
  int zero = 0;
  bool sequence_parallel = false;
  int microbatches = 1;
  const char* precision = "fp32";
};

class RecomputeOn : public ::testing::TestWithParam<std::tuple<Case, const char*>> {};

TEST_P(RecomputeOn, EqualsKeepingEverythingBitByBit) {
  const auto& [row, mode] = GetParam();
  TrainConfig config = small(row.model);
  config.mesh = row.axes;
  config.plan.zero = row.zero;
  config.plan.sequence_parallel = row.sequence_parallel;
  config.microbatches = row.microbatches;
  config.precision = row.precision;
  const auto data = data_of(config);
  test::on_ranks(4, [&, recompute = std::string(mode)](const auto& world) {
    const Training expected = train(config, "none", data, Mesh(world, parse_axes(config.mesh)));
    const Training found = train(config, recompute, data, Mesh(world, parse_axes(config.mesh)));
    EXPECT_EQ(expected.losses, found.losses);
    expect_same(expected.gradients, found.gradients, "gradient");
    expect_same(expected.parameters, found.parameters, "parameter");
    EXPECT_EQ(expected.random, found.random);
    EXPECT_EQ(expected.counts, RecomputeCounts{});
    EXPECT_GT(found.counts.dropped, 0) << "nothing was recomputed";
    EXPECT_GT(found.counts.operators, 0) << "nothing was recomputed";
  });
}

INSTANTIATE_TEST_SUITE_P(
    Meshes, RecomputeOn,
    ::testing::Combine(
        ::testing::Values(Case{"MlpData", "mlp", "dp=4"}, Case{"MlpTensor", "mlp", "tp=4"},
                          Case{"MlpZero3", "mlp", "dp_shard=4", 3}, Case{"MlpStagesTensor", "mlp", "pp=2,tp=2"},
                          Case{"CnnDataTensor", "cnn", "dp=2,tp=2"}, Case{"ResnetData", "resnet", "dp=4"},
                          Case{"GptData", "gpt", "dp=4"}, Case{"GptTensor", "gpt", "tp=4"},
                          Case{"GptSequence", "gpt", "dp=2,tp=2", 0, true}, Case{"GptZero3", "gpt", "dp_shard=4", 3},
                          Case{"GptZero3Tensor", "gpt", "dp_shard=2,tp=2", 3, true},
                          Case{"GptStagesData", "gpt", "pp=2,dp=2", 0, false, 2},
                          Case{"GptStagesTensor", "gpt", "pp=2,tp=2", 0, true, 2},
                          Case{"GptStagesZero3", "gpt", "pp=2,dp_shard=2", 3},
                          Case{"GptBfloat16", "gpt", "dp=2,tp=2", 0, false, 1, "bf16"}),
        ::testing::Values("full", "selective", "500B")),
    [](const auto& test) {
      const std::string mode = std::get<1>(test.param);
      return std::string(std::get<0>(test.param).name) + (mode == "full"        ? "Full"
                                                          : mode == "selective" ? "Selective"
                                                                                : "Within");
    });

/// What forward leaves for backward, on one rank, and what backward then runs again.
struct Left {
  std::int64_t bytes = 0;
  std::int64_t operators = 0;
};

Left left_by_forward(const TrainConfig& config, const Mesh& mesh, const std::shared_ptr<const Dataset>& data) {
  Session session(config, data, mesh, {.count_memory = true});
  const Batch batch = BatchStream(data->train, batch_order(config.data), 0, config.batch).at(0);
  const at::Tensor input = shard_batch(mesh, batch.input);
  const at::Tensor target = shard_batch(mesh, batch.target);
  Left left;
  // What a later block reads is learned in the first pass.
  for (int pass = 0; pass < 2; ++pass) {
    const std::int64_t before = session.memory()->allocated_bytes();
    const std::int64_t operators_before = recompute_counts(mesh).operators;
    const at::Tensor loss = session.workload().loss(session.workload().forward(input), target);
    left.bytes = session.memory()->allocated_bytes() - before;
    loss.backward();
    session.optimizer().zero_grad();
    left.operators = recompute_counts(mesh).operators - operators_before;
  }
  return left;
}

/// Of one block more than `layers`.
double bytes_of_a_block(const std::string& recompute, double dropout, const std::string& axes) {
  double result = 0;
  TrainConfig config = small("gpt");
  config.plan.recompute = recompute;
  config.model.dropout = dropout;
  config.mesh = axes;
  const auto data = data_of(config);
  int ranks = 1;
  for (const Axis& axis : parse_axes(axes)) ranks *= axis.size;
  test::on_ranks(ranks, [&](const auto& world) {
    const auto bytes = [&](std::int64_t layers) {
      TrainConfig sized = config;
      sized.model.layers = layers;
      return left_by_forward(sized, Mesh(world, parse_axes(axes)), data).bytes;
    };
    const std::int64_t more = bytes(6);
    const std::int64_t less = bytes(4);
    if (world->rank() == 0) result = static_cast<double>(more - less) / 2;
  });
  return result;
}

// A block keeps, in units of 4 B T D bytes (B sequences, T tokens, D width, H heads, feed-forward 4 D, t ranks along
// tp), as Korthikanti et al. count, for what LibTorch saves in float32:
//
//                    replicated along tp                  sharded along tp
//   none             x, ln1, y, ln2; 4 / D of norms       qkv 3, attention 1 and H / D, up 4, gelu 4
//   selective        x, proj                              qkv 3, attention 1 and H / D, up 4
//   full             x                                    -
//
// y is the input of ln2. With dropout attention runs in its plain form: no log-sum-exp, but with r = H T / D, 3 r for
// probabilities, mask and product; masks of what enters the residual stream; the causal mask of T x T numbers.
constexpr double kSequences = 8, kTokens = 16, kWidth = 32, kHeads = 4;
constexpr double kUnitBytes = 4 * kSequences * kTokens * kWidth;
constexpr double kCausalMask = kTokens / (kSequences * kWidth);

TEST(RecomputeMemory, IsWhatTheClosedFormsSay) {
  for (const auto& [axes, t] : {std::pair("dp=1", 1.0), std::pair("tp=2", 2.0)}) {
    SCOPED_TRACE(axes);
    EXPECT_EQ(bytes_of_a_block("none", 0, axes) / kUnitBytes, 4 + 4 / kWidth + (12 + kHeads / kWidth) / t);
    EXPECT_EQ(bytes_of_a_block("selective", 0, axes) / kUnitBytes, 2 + (8 + kHeads / kWidth) / t);
    EXPECT_EQ(bytes_of_a_block("full", 0, axes) / kUnitBytes, 1);
  }
}

TEST(RecomputeMemory, UnderDropoutIsWhatTheClosedFormsSay) {
  const double r = kHeads * kTokens / kWidth;
  EXPECT_EQ(bytes_of_a_block("none", 0.1, "dp=1") / kUnitBytes, 18 + 4 / kWidth + 3 * r);
  for (const auto& [axes, t] : {std::pair("dp=1", 1.0), std::pair("tp=2", 2.0)}) {
    SCOPED_TRACE(axes);
    EXPECT_EQ(bytes_of_a_block("selective", 0.1, axes) / kUnitBytes, 2 + 7 / t + kCausalMask);
    EXPECT_EQ(bytes_of_a_block("full", 0.1, axes) / kUnitBytes, 1 + kCausalMask);
  }
}

TEST(RecomputeMemory, FillsABudgetAndRunsTheLessAgainTheLargerItIs) {
  for (const char* axes : {"dp=1", "tp=2"}) {
    SCOPED_TRACE(axes);
    TrainConfig config = small("gpt");
    config.model.dropout = 0;
    config.model.layers = 6;
    config.mesh = axes;
    const auto data = data_of(config);
    test::on_ranks(std::string(axes) == "tp=2" ? 2 : 1, [&](const auto& world) {
      const auto with = [&](const std::string& recompute) {
        TrainConfig changed = config;
        changed.plan.recompute = recompute;
        return left_by_forward(changed, Mesh(world, parse_axes(axes)), data);
      };
      const Left none = with("none"), selective = with("selective"), full = with("full");
      const auto unit = static_cast<std::int64_t>(kUnitBytes);
      // The head is the last block: it is never dropped, and not counted.
      const std::int64_t head = full.bytes - 7 * unit;
      Left before = with("1B");
      EXPECT_EQ(before.bytes, full.bytes);
      EXPECT_EQ(before.operators, full.operators);
      for (std::int64_t units = 10; units <= 100; units += 10) {
        SCOPED_TRACE(units);
        const std::int64_t budget = units * unit;
        const Left now = with(base::exact_bytes(budget));
        EXPECT_LE(now.bytes, budget + head);
        EXPECT_GT(now.bytes, std::min(none.bytes, budget + head) - 4 * unit) << "one activation less would have done";
        EXPECT_LE(now.operators, before.operators);
        before = now;
      }
      EXPECT_EQ(before.bytes, none.bytes);
      EXPECT_EQ(before.operators, 0);
      EXPECT_LE(with(base::exact_bytes(selective.bytes - head)).operators, selective.operators) << "nothing expensive";
    });
  }
}

}  // namespace
}  // namespace tessera::train
