// SPDX-License-Identifier: Apache-2.0
// Ready plans as tables.
#include <fnmatch.h>

#include <algorithm>
#include <utility>

#include "tessera/module/plan.h"

namespace tessera {
namespace {

using Table = std::vector<std::pair<const char*, Placement>>;

Plan take_matching(const Table& table, const std::vector<std::string>& parameters) {
  Plan plan;
  for (const auto& [pattern, placement] : table) {
    const bool any = std::any_of(parameters.begin(), parameters.end(), [&, pattern = pattern](const std::string& name) {
      return ::fnmatch(pattern, name.c_str(), 0) == 0;
    });
    if (any) plan.add(pattern, {{"tp", placement}});
  }
  return plan;
}

constexpr std::string_view kWeight = ".weight";

}  // namespace

Plan plan_for_mlp(const std::vector<std::string>& parameters) {
  std::vector<std::string> layers;
  for (const std::string& name : parameters) {
    if (name.ends_with(kWeight)) layers.push_back(name.substr(0, name.size() - kWeight.size()));
  }
  Plan plan;
  for (std::size_t i = 0; i + 1 < layers.size(); i += 2) {
    plan.add(layers[i] + ".*", {{"tp", Shard(0)}});
    plan.add(layers[i + 1] + ".weight", {{"tp", Shard(1)}});
  }
  return plan;
}

Plan plan_for_cnn(const std::vector<std::string>& parameters) {
  return take_matching({{"*conv1.*", Shard(0)}, {"*norm1.*", Shard(0)}, {"*conv2.weight", Shard(1)}}, parameters);
}

Plan plan_for_resnet(const std::vector<std::string>& parameters) {
  return take_matching({{"*layer1.*", Shard(0)}, {"*layer2.conv.weight", Shard(1)}}, parameters);
}

Plan plan_for_transformer(const std::vector<std::string>& parameters, const TransformerPlanOptions& options) {
  constexpr Placement kThreeInOne = Shard(0, {.groups = 3});
  constexpr Placement kTwoInOne = Shard(0, {.groups = 2});
  Plan plan = take_matching({{"*.qkv.*", Shard(0)},
                             {"*in_proj_weight", kThreeInOne},
                             {"*in_proj_bias", kThreeInOne},
                             {"*qkv_proj.*", kThreeInOne},
                             {"*gate_up_proj.*", kTwoInOne},
                             {"*.linear1.*", Shard(0)},
                             {"*out_proj.weight", Shard(1)},
                             {"*o_proj.weight", Shard(1)},
                             {"*down_proj.weight", Shard(1)},
                             {"*.linear2.weight", Shard(1)},
                             {"*.q.*", Shard(0)},
                             {"*.k.*", Shard(0)},
                             {"*.v.*", Shard(0)},
                             {"*.up.*", Shard(0)},
                             {"*.gate.*", Shard(0)},
                             {"*.proj.weight", Shard(1)},
                             {"*.down.weight", Shard(1)},
                             {"head.out.weight", Shard(0)}},
                            parameters);
  constexpr const char* kTokens = "*tok.weight";
  const bool has_tokens = std::any_of(parameters.begin(), parameters.end(), [](const std::string& name) {
    return ::fnmatch(kTokens, name.c_str(), 0) == 0;
  });
  if (!has_tokens) return plan;
  constexpr int kSequenceDim = 1;
  if (options.sequence_parallel) return plan.add(kTokens, {{"tp", Shard(0)}}, {{"tp", Shard(kSequenceDim)}});
  return plan.add(kTokens, {{"tp", Shard(0)}});
}

}  // namespace tessera
