// SPDX-License-Identifier: Apache-2.0
// A module that was never touched for it, trained in micro-batches by every schedule, equals one device.
#include "tessera/pipeline/step.h"

#include <gtest/gtest.h>

#include <torch/torch.h>

#include "support/ranks.h"
#include "tessera/base/error.h"
#include "tessera/module/distribute.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/tensor/random.h"
#include "tessera/tensor/stages.h"

namespace tessera {
namespace {

using at::Tensor;

constexpr std::int64_t kWidth = 6;

/// Blocks with a residual each, a skip over all of them, and a weight used at both ends.
struct ChainImpl : torch::nn::Module {
  explicit ChainImpl(int num_blocks) {
    embed = register_module("embed", torch::nn::Linear(torch::nn::LinearOptions(kWidth, kWidth).bias(false)));
    for (int i = 0; i < num_blocks; ++i) {
      blocks->push_back(torch::nn::Linear(kWidth, kWidth));
    }
    register_module("blocks", blocks);
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({kWidth})));
    register_parameter("head", embed->weight);
    to(torch::kDouble);
    const torch::NoGradGuard no_grad;
    double phase = 0;
    for (Tensor& parameter : parameters()) {
      parameter.copy_((torch::arange(parameter.numel(), torch::kDouble) * 0.7 + phase).sin().view(parameter.sizes()) * 0.4);
      phase += 1;
    }
  }
  Tensor forward(const Tensor& x) {
    const Tensor first = embed(x);
    Tensor hidden = first;
    for (const auto& block : *blocks) hidden = hidden + torch::tanh(block->as<torch::nn::Linear>()->forward(hidden));
    return torch::linear(norm(hidden + first), embed->weight);
  }
  torch::nn::Linear embed{nullptr};
  torch::nn::ModuleList blocks;
  torch::nn::LayerNorm norm{nullptr};
};
TORCH_MODULE(Chain);

Tensor batch(int samples, int index) {
  return (torch::arange(samples * kWidth, torch::kDouble) * 0.11 + index).cos().view({samples, kWidth});
}

Tensor squared_error(const Tensor& output, const Tensor& target) { return torch::mse_loss(output, target); }

struct Training {
  std::vector<double> losses;
  std::vector<Tensor> parameters;
};

Training train(Chain& model, int samples, const StepOptions& options, int steps = 3) {
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  Training run;
  for (int index = 0; index < steps; ++index) {
    optimizer.zero_grad();
    const Tensor x = batch(samples, index);
    run.losses.push_back(step(*model, x, x.flip(0), squared_error, options).item<double>());
    optimizer.step();
  }
  for (const Tensor& parameter : model->parameters()) run.parameters.push_back(full(parameter.detach()).clone());
  return run;
}

void expect_equal(const Training& found, const Training& expected, double tolerance) {
  for (std::size_t i = 0; i < expected.losses.size(); ++i) EXPECT_NEAR(found.losses[i], expected.losses[i], tolerance);
  for (std::size_t i = 0; i < expected.parameters.size(); ++i) {
    EXPECT_LE((found.parameters[i] - expected.parameters[i]).abs().max().item<double>(), tolerance) << i;
  }
}

/// One block per stage; the first and the last stage have the ends.
std::vector<std::vector<std::string>> stages_of(int num_stages) {
  std::vector<std::vector<std::string>> stages;
  for (int i = 0; i < num_stages; ++i) stages.push_back({"blocks." + std::to_string(i)});
  stages.front().push_back("embed");
  stages.back().insert(stages.back().end(), {"norm", "head"});
  return stages;
}

struct Case {
  std::string schedule;
  int ranks;
  int chunks;
  int microbatches;
  std::string more_axes;
};

void PrintTo(const Case& one, std::ostream* stream) {
  *stream << one.schedule << " pp=" << one.ranks << one.more_axes << " x" << one.chunks << " m=" << one.microbatches;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const pipeline::ScheduleInfo& info : pipeline::schedules()) {
    for (const int ranks : {2, 3, 4}) {
      for (const int microbatches : {1, 4, 8}) {
        if (microbatches > 1 && microbatches < info.min_microbatches_per_rank * ranks) continue;
        all.push_back({info.name, ranks, info.default_chunks, microbatches, ""});
      }
    }
    all.push_back({info.name, 2, info.default_chunks, 4, ",dp=2"});
    all.push_back({info.name, 2, info.default_chunks, 4, ",tp=2"});
  }
  all.push_back({"interleaved", 2, 3, 6, ""});
  all.push_back({"interleaved", 3, 2, 5, ""});
  all.push_back({"interleaved", 2, 2, 4, ",dp_shard=2"});
  return all;
}

Plan plan_for(const Case& one) {
  Plan plan;
  plan.add("blocks.*", {{"tp", Shard(0)}});
  const bool is_v = one.schedule == "zbv" || one.schedule == "dualpipev";
  plan.stages(stages_of(one.ranks * one.chunks), is_v ? StageOrder::kV : StageOrder::kLoop).zero(3);
  return plan;
}

class EverySchedule : public testing::TestWithParam<Case> {};

TEST_P(EverySchedule, trains_as_one_device) {
  const Case& one = GetParam();
  const StepOptions options{.microbatches = one.microbatches, .schedule = one.schedule};
  // The last micro-batches are smaller.
  const int samples = 3 * one.microbatches + (one.microbatches > 1 ? 2 : 1);
  Chain alone(one.ranks * one.chunks);
  const Training expected = train(alone, samples, options);
  test::on_mesh("pp=" + std::to_string(one.ranks) + one.more_axes, [&](const Mesh& mesh) {
    Chain model(one.ranks * one.chunks);
    distribute(*model, mesh, plan_for(one));
    expect_equal(train(model, samples, options), expected, 1e-13);
  });
}

std::string name_of(const testing::TestParamInfo<Case>& one) {
  std::string name = one.param.schedule + "_pp" + std::to_string(one.param.ranks) + one.param.more_axes + "_v" +
                     std::to_string(one.param.chunks) + "_m" + std::to_string(one.param.microbatches);
  for (char& letter : name) letter = std::isalnum(static_cast<unsigned char>(letter)) != 0 ? letter : '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(, EverySchedule, testing::ValuesIn(cases()), name_of);

}  // namespace
}  // namespace tessera
