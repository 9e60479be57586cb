// SPDX-License-Identifier: Apache-2.0
// A module that is hard to cut, and how its blocks lie on the stages of a schedule.
#pragma once

#include <torch/torch.h>

#include <ostream>
#include <string>
#include <vector>

#include "tessera/module/plan.h"
#include "tessera/pipeline/schedule.h"

namespace tessera::test {

using at::Tensor;

inline constexpr std::int64_t kWidth = 6;

/// Blocks with a residual each, a skip over all of them, and a weight that is used at both ends and has one name.
struct ChainImpl : torch::nn::Module {
  explicit ChainImpl(int num_blocks) {
    embed = register_module("embed", torch::nn::Linear(torch::nn::LinearOptions(kWidth, kWidth).bias(false)));
    for (int i = 0; i < num_blocks; ++i) {
      blocks->push_back(torch::nn::Linear(kWidth, kWidth));
    }
    register_module("blocks", blocks);
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({kWidth})));
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

inline Tensor batch(int samples, int index) {
  return (torch::arange(samples * kWidth, torch::kDouble) * 0.11 + index).cos().view({samples, kWidth});
}

/// One block per stage; the first and the last stage have the ends.
inline std::vector<std::vector<std::string>> stages_of(int num_stages) {
  std::vector<std::vector<std::string>> stages;
  for (int i = 0; i < num_stages; ++i) stages.push_back({"blocks." + std::to_string(i)});
  stages.front().push_back("embed");
  stages.back().insert(stages.back().end(), {"norm", "+embed.weight"});
  return stages;
}

/// How a schedule runs a Chain.
struct Case {
  std::string schedule;
  int ranks;
  int chunks;
  int microbatches;
  std::string more_axes;
};

inline void PrintTo(const Case& one, std::ostream* stream) {
  *stream << one.schedule << " pp=" << one.ranks << one.more_axes << " x" << one.chunks << " m=" << one.microbatches;
}

/// Where the schedule wants its stages; the number of micro-batches does not matter for that.
inline StageOrder order_of(const Case& one) {
  return pipeline::stage_order(pipeline::make_schedule(
      one.schedule, {.ranks = one.ranks, .chunks = one.chunks, .microbatches = 2 * one.ranks}));
}

/// Stages in the order of the schedule, ZeRO 3, and the blocks over tp.
inline Plan plan_for(const Case& one) {
  Plan plan;
  plan.add("blocks.*", {{"tp", Shard(0)}});
  return plan.stages(stages_of(one.ranks * one.chunks), order_of(one)).zero(3);
}

}  // namespace tessera::test
