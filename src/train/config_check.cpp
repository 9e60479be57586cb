// SPDX-License-Identifier: Apache-2.0
// Checks between configuration fields that are legal one by one.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/base/error.h"
#include "tessera/mesh/mesh.h"
#include "tessera/pipeline/schedule.h"
#include "tessera/tensor/recompute.h"
#include "train/config_values.h"
#include "train/names.h"

namespace tessera::train {
namespace {

using Problems = std::vector<std::pair<std::string, std::string>>;

void check_model(const ModelConfig& model, Problems& problems) {
  if (model.name == "mlp" && model.sizes.size() < 2) {
    problems.emplace_back("model.sizes", "an mlp needs at least an input and an output width, for instance [64, 10]");
  }
  if (model.name == "cnn" && model.channels % 4 != 0) {
    problems.emplace_back("model.channels",
                          fmt::format("{} channels do not make 4 equal groups; take a multiple of 4", model.channels));
  }
  if (model.name == "resnet" && model.blocks < 3) {
    problems.emplace_back("model.blocks", fmt::format("{} blocks do not make 3 stages; take at least 3", model.blocks));
  }
  if ((model.name == "cnn" || model.name == "resnet") && model.dropout > 0) {
    problems.emplace_back("model.dropout", fmt::format("the {} drops nothing; set dropout = 0, or take mlp or gpt", model.name));
  }
  if (model.name == "gpt" && model.hidden % model.heads != 0) {
    problems.emplace_back("model.heads",
                          fmt::format("hidden = {} is not a multiple of heads = {} ({} mod {} = {})", model.hidden,
                                      model.heads, model.hidden, model.heads, model.hidden % model.heads));
  }
}

void check_data(const TrainConfig& config, Problems& problems) {
  if (config.data.order == "sequential" && config.eval_every > 0) {
    problems.emplace_back("eval_every",
                          "data.order = \"sequential\" holds no data out to evaluate on; set eval_every = 0");
  }
  if (config.data.source.empty()) return;
  try {
    const auto source = parse_source(config.data.source);
    const bool tokens = model_takes_tokens(config.model.name);
    if (!(tokens ? source.kind->for_tokens : source.kind->for_vectors)) {
      problems.emplace_back("data.source",
                            fmt::format("model {} cannot be trained on \"{}\"; allowed: {}", config.model.name,
                                        config.data.source, describe_sources(tokens)));
    }
  } catch (const ConfigError& error) {
    problems.emplace_back("data.source", error.what());
  }
}

void check_mesh(const TrainConfig& config, Problems& problems) {
  std::int64_t replicas = 1;
  bool has_dp_shard = config.mesh.empty();
  bool has_pp = config.mesh.empty();
  try {
    for (const auto& axis : parse_axes(config.mesh)) {
      has_dp_shard = has_dp_shard || axis.name == "dp_shard";
      has_pp = has_pp || axis.name == "pp";
      if (axis.name == "dp_replicate" || axis.name == "dp_shard") replicas *= std::max(axis.size, 1);
    }
  } catch (const ConfigError& error) {
    problems.emplace_back("mesh", error.what());
  }
  if (config.plan.sequence_parallel && (config.model.name != "gpt" || !config.plan.file.empty())) {
    problems.emplace_back("plan.sequence_parallel",
                          "shards the sequence of the standard plan of gpt; in a plan file, give the embedding's weight "
                          "output.tp = \"shard(1)\" instead");
  }
  try {
    (void)parse_recompute(config.plan.recompute);
  } catch (const ConfigError& error) {
    problems.emplace_back("plan.recompute", error.what());
  }
  if (config.plan.zero > 0 && !has_dp_shard) {
    problems.emplace_back("plan.zero", fmt::format("{} shards over axis dp_shard, which mesh \"{}\" does not have; allowed: "
                                                   "0, or a mesh such as dp_shard=4",
                                                   config.plan.zero, config.mesh));
  }
  if (config.plan.balance != "parameters" && !has_pp) {
    problems.emplace_back("plan.balance", fmt::format("\"{}\" balances stages over axis pp, which mesh \"{}\" does not "
                                                      "have; leave it, or take a mesh such as pp=2",
                                                      config.plan.balance, config.mesh));
  }
  if (config.batch < replicas) {
    problems.emplace_back("batch",
                          fmt::format("{} samples do not reach all {} data-parallel ranks of mesh \"{}\"; take "
                                      "at least {}",
                                      config.batch, replicas, config.mesh, replicas));
  }
}

void check_numerics(const TrainConfig& config, Problems& problems) {
  if (config.batch < config.microbatches) {
    problems.emplace_back("microbatches", fmt::format("batch = {} samples do not make {} micro-batches; allowed: 1 to {}",
                                                      config.batch, config.microbatches, config.batch));
  }
  const std::vector<std::string> names = pipeline::schedule_names();
  if (!config.schedule.starts_with("file:") && std::find(names.begin(), names.end(), config.schedule) == names.end()) {
    problems.emplace_back("schedule", fmt::format("\"{}\" is no schedule; allowed: {}, file:PATH", config.schedule,
                                                  fmt::join(names, ", ")));
  }
  if (config.check_finite && config.precision == "fp16") {
    problems.emplace_back("check_finite",
                          "fp16 finds its loss scale by overflowing gradients; leave one of the two, or take bf16");
  }
}

void check_checkpoints(const TrainConfig& config, Problems& problems) {
  if (config.checkpoint_every > 0 && config.out.empty()) {
    problems.emplace_back("checkpoint_every", "checkpoints lie in the run's folder; name one, for instance --out run");
  }
  if (config.resume == "auto" && config.out.empty()) {
    problems.emplace_back("resume", "\"auto\" is the newest checkpoint of the run's folder; name one, for instance --out run");
  }
  if (config.keep == 1) {
    problems.emplace_back("keep", "1 leaves nothing if the newest checkpoint is damaged; allowed: 0 for all, or 2 and above");
  }
}

}  // namespace

std::vector<std::pair<std::string, std::string>> find_contradictions(const TrainConfig& config) {
  Problems problems;
  check_model(config.model, problems);
  check_data(config, problems);
  check_mesh(config, problems);
  check_numerics(config, problems);
  check_checkpoints(config, problems);
  return problems;
}

}  // namespace tessera::train
