// SPDX-License-Identifier: Apache-2.0
// Meshes and plans of the battery.
#include "battery/layouts.h"

#include <functional>
#include <random>

namespace tessera::battery {
namespace {

/// Each parameter lies replicated or sharded along any of its dims, whichever the seed says.
PlanOf random_plan(const std::string& seed, int zero = 0) {
  return [seed, zero](const torch::nn::Module& module) {
    std::seed_seq sequence(seed.begin(), seed.end());
    std::mt19937 generator(sequence);
    Plan plan;
    for (const auto& parameter : module.named_parameters()) {
      const std::int64_t choice = generator() % static_cast<std::uint64_t>(parameter.value().dim() + 1);
      if (choice > 0) plan.add(parameter.key(), {{"tp", Shard(choice - 1)}});
    }
    return plan.zero(zero);
  };
}

std::vector<std::string> names_of(const torch::nn::Module& module) {
  std::vector<std::string> names;
  for (const auto& parameter : module.named_parameters()) names.push_back(parameter.key());
  return names;
}

Layout pipeline(const std::string& schedule, int stages) {
  const PlanOf plan = [stages](const torch::nn::Module& module) { return Plan().stages(balanced_stages(module, stages)); };
  return {"pp=2 " + schedule, "pp=2", plan, {.microbatches = 2, .schedule = schedule}};
}

}  // namespace

std::vector<Layout> layouts_of(const Row& row) {
  const PlanOf replicated = [](const torch::nn::Module&) { return Plan(); };
  const PlanOf sharded = [](const torch::nn::Module&) { return Plan().zero(3); };
  std::vector<Layout> layouts{{"dp=2", "dp=2", replicated}, {"dp=3", "dp=3", replicated}, {"zero 3", "dp_shard=2", sharded}};
  for (const std::string axes : {"tp=2", "tp=3", "dp=2,tp=2"}) {
    layouts.push_back({axes + " random", axes, random_plan(row.name + axes)});
  }
  const std::string hybrid = "dp_replicate=2,dp_shard=2,tp=2";
  layouts.push_back({hybrid + " random", hybrid, random_plan(row.name + hybrid, 3)});
  if (row.traits.plan) {
    const PlanOf ready = [plan = row.traits.plan](const torch::nn::Module& module) { return plan(names_of(module)); };
    layouts.push_back({"tp=2 ready", "tp=2", ready});
    layouts.push_back({"dp=2,tp=2 ready", "dp=2,tp=2", ready});
  }
  if (row.traits.stages >= 2) layouts.push_back(pipeline("1f1b", 2));
  if (row.traits.stages >= 4) layouts.push_back(pipeline("interleaved", 4));
  return layouts;
}

}  // namespace tessera::battery
