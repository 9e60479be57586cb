// SPDX-License-Identifier: Apache-2.0
// Every built-in model learns its data on one device, with nothing but LibTorch around it.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "tessera/train/dataset.h"
#include "tessera/train/workload.h"

namespace tessera::train {
namespace {

struct LearningCase {
  const char* model;
  double lr;
  int steps;
  // Loss of the last step over loss of the first: reached with a wide margin by the seeds below.
  double ratio;
};

class Learning : public ::testing::TestWithParam<LearningCase> {};

TEST_P(Learning, LowersTheLossOnAFewSamples) {
  // One thread: these operators are too small to share, and ranks run with one as well.
  torch::set_num_threads(1);
  const auto& row = GetParam();
  ModelConfig config;
  config.name = row.model;
  config.sizes = {16, 32, 4};
  config.channels = 4;
  config.blocks = 3;
  config.layers = 1;
  config.hidden = 32;
  config.heads = 2;
  config.vocab = 16;
  config.seq_len = 16;
  auto workload = make_workload(config, 0);
  const DataConfig data{"synthetic", "shuffled", ""};
  const auto few = load_dataset(data, workload.input, 0).train.subset(make_permutation(64, 0, 0));
  BatchStream stream(few, batch_order(data), 0, 32);
  torch::optim::AdamW optimizer(workload.module->parameters(), torch::optim::AdamWOptions(row.lr));
  double first = 0.0;
  double last = 0.0;
  for (int step = 0; step < row.steps; ++step) {
    const auto batch = stream.at(step);
    optimizer.zero_grad();
    const auto loss = workload.loss(workload.forward(batch.input), batch.target);
    loss.backward();
    optimizer.step();
    last = loss.item<double>();
    if (step == 0) first = last;
  }
  RecordProperty("loss_ratio_percent", static_cast<int>(100.0 * last / first));
  EXPECT_LT(last, row.ratio * first) << "from " << first << " to " << last;
}

INSTANTIATE_TEST_SUITE_P(Models, Learning,
                         ::testing::Values(LearningCase{"mlp", 1e-2, 60, 0.3}, LearningCase{"cnn", 1e-2, 60, 0.6},
                                           LearningCase{"resnet", 1e-2, 60, 0.6},
                                           LearningCase{"gpt", 1e-2, 60, 0.7}),
                         [](const auto& learning) { return std::string(learning.param.model); });

}  // namespace
}  // namespace tessera::train
