// SPDX-License-Identifier: Apache-2.0
// The activations that a rank holds at once are as many as the validator says, by the bytes that allocators count.
#include <gtest/gtest.h>

#include <torch/torch.h>

#include <map>
#include <set>

#include "support/ranks.h"
#include "tensor/decision_cache.h"
#include "tessera/module/distribute.h"
#include "tessera/pipeline/step.h"
#include "tessera/tensor/stages.h"
#include "tessera/train/memory_meter.h"

namespace tessera {
namespace {

using at::Tensor;

constexpr std::int64_t kRows = 2048;
constexpr std::int64_t kWidth = 32;
/// Backward of a block needs its input and its output.
constexpr double kUnitBytes = 2.0 * kRows * kWidth * sizeof(float);

/// Blocks of one size, one per stage; tells what is held after each.
struct BlocksImpl : torch::nn::Module {
  explicit BlocksImpl(int count) {
    shift = register_parameter("shift", torch::zeros({1}));
    for (int i = 0; i < count; ++i) blocks->push_back(torch::nn::Linear(torch::nn::LinearOptions(kWidth, kWidth).bias(false)));
    register_module("blocks", blocks);
  }
  Tensor forward(const Tensor& x) {
    Tensor hidden = (x + shift).expand({kRows, kWidth}).contiguous();
    for (std::size_t i = 0; i < blocks->size(); ++i) {
      hidden = torch::tanh(blocks[i]->as<torch::nn::Linear>()->forward(hidden));
      if (after_block) after_block(static_cast<int>(i));
    }
    return hidden;
  }
  Tensor shift;
  torch::nn::ModuleList blocks;
  std::function<void(int)> after_block;
};
TORCH_MODULE(Blocks);

std::vector<std::vector<std::string>> stages_of(int num_stages) {
  std::vector<std::vector<std::string>> stages;
  for (int i = 0; i < num_stages; ++i) stages.push_back({"blocks." + std::to_string(i)});
  stages.front().push_back("shift");
  return stages;
}

/// The most units at once: the numbers of peak_activations, but where a V turns. There a rank has two stages in a row: the
/// input of the second is the output of the first, and its gradient waits here for the first one's backward.
double expected_units(const pipeline::Schedule& schedule, int rank) {
  using pipeline::ActionKind;
  std::map<std::pair<int, int>, ActionKind> held;
  std::set<std::pair<int, int>> gave_gradient;
  double most = 0;
  for (const pipeline::Action& action : schedule.actions[static_cast<std::size_t>(rank)]) {
    const auto unit = std::make_pair(action.stage, action.microbatch);
    const bool frees = action.kind == ActionKind::kBackward || action.kind == ActionKind::kBackwardWeight;
    if (frees) {
      held.erase(unit);
    } else {
      held[unit] = action.kind;
    }
    if (action.kind == ActionKind::kBackward || action.kind == ActionKind::kBackwardInput) gave_gradient.insert(unit);
    double units = 0;
    for (const auto& [one, kind] : held) {
      const std::pair<int, int> next{one.first + 1, one.second};
      const bool is_whole = kind == ActionKind::kForward;
      units += 1 - (is_whole && held.count(next) != 0 ? 0.5 : 0) + (is_whole && gave_gradient.count(next) != 0 ? 0.5 : 0);
    }
    most = std::max(most, units);
  }
  return most;
}

class Held : public testing::TestWithParam<std::string> {};

TEST_P(Held, activations_are_as_many_as_the_validator_says) {
  for (const int ranks : {2, 4}) {
    const int microbatches = 2 * ranks + 1;
    const pipeline::Schedule schedule =
        pipeline::make_schedule(GetParam(), {.ranks = ranks, .microbatches = microbatches});
    const bool is_v = pipeline::stage_order(schedule) == StageOrder::kV;
    const std::vector<int> validator = pipeline::peak_activations(schedule);
    for (int rank = 0; rank < (is_v ? ranks - 1 : ranks); ++rank) {
      ASSERT_EQ(expected_units(schedule, rank), validator[static_cast<std::size_t>(rank)]);
    }
    test::on_mesh("pp=" + std::to_string(ranks), [&](const Mesh& mesh) {
      const int rank = mesh.rank();
      Blocks model(schedule.num_stages());
      distribute(*model, mesh, Plan().stages(stages_of(schedule.num_stages()), is_v ? StageOrder::kV : StageOrder::kLoop));
      const Tensor x = torch::ones({microbatches, 1});
      const auto mean = [](const Tensor& output, const Tensor&) { return output.mean(); };
      const StepOptions options{.microbatches = microbatches, .schedule = GetParam()};
      (void)step(*model, x, x, mean, options);
      model->zero_grad();
      const train::MemoryMeter meter;
      const std::int64_t before = meter.allocated_bytes();
      double most = 0;
      model->after_block = [&](int stage) {
        if (schedule.rank_of_stage[static_cast<std::size_t>(stage)] != rank) return;
        // A gradient that the rank before has not fetched yet is no activation.
        tensor::MeshRuntime::of(mesh).stages.finish_sends();
        most = std::max(most, static_cast<double>(meter.allocated_bytes() - before) / kUnitBytes);
      };
      (void)step(*model, x, x, mean, options);
      EXPECT_NEAR(most, expected_units(schedule, rank), 0.1) << GetParam() << " pp=" << ranks << " rank " << rank;
    });
  }
}

INSTANTIATE_TEST_SUITE_P(, Held, testing::ValuesIn(pipeline::schedule_names()), [](const auto& one) {
  std::string name = one.param;
  for (char& letter : name) letter = letter == '-' ? '_' : letter;
  return name;
});

}  // namespace
}  // namespace tessera
