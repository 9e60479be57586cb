// SPDX-License-Identifier: Apache-2.0
// Checkpoints of a session.
#include "tessera/train/run_state.h"

#include <algorithm>
#include <sstream>

#include "tessera/base/error.h"
#include "tessera/base/log.h"

namespace tessera::train {
namespace {

/// What decides the numbers of a run. Sizes of the model are not among them: tensors say more about those.
bool decides(const std::string& key) {
  constexpr const char* kKeys[] = {"model.name",     "model.tie",      "model.dropout",          "data.source",
                                   "data.order",     "batch",          "seed",                   "optimizer.name",
                                   "optimizer.momentum", "optimizer.weight_decay"};
  return std::find(std::begin(kKeys), std::end(kKeys), key) != std::end(kKeys);
}

std::string decided_by(const TrainConfig& config) {
  std::string lines;
  for (const ConfigField& field : config_fields()) {
    if (decides(field.key)) lines += fmt::format("{} = {}\n", field.key, format_value(field, config));
  }
  return lines;
}

/// Lines of `a` that `b` does not have.
std::vector<std::string> missing(const std::string& a, const std::string& b) {
  std::vector<std::string> lines;
  std::istringstream text(a);
  for (std::string line; std::getline(text, line);) {
    if (b.find(line + "\n") == std::string::npos) lines.push_back(line);
  }
  return lines;
}

}  // namespace

RunState::RunState(Session& session, const TrainConfig& config)
    : session_(session), config_(config), decided_(decided_by(config)) {
  session_.add_to(state_);
  state_.add("step", step_).add("samples", samples_).add("config", decided_);
  if (config.checkpoint_every > 0 || config.resume == "auto") {
    checkpoints_ = std::make_unique<Checkpoints>(
        config.out, state_, CheckpointsOptions{.every = config.checkpoint_every, .keep = config.keep, .save = {}});
  }
}

std::int64_t RunState::resume() {
  if (config_.resume.empty()) return 0;
  const bool automatic = config_.resume == "auto";
  if (automatic) {
    if (!checkpoints_->resume()) {
      base::info("{}: has no checkpoint yet; the run begins", config_.out);
      return 0;
    }
  } else if (checkpoint::is_checkpoint(config_.resume)) {
    load(config_.resume, state_);
  } else {
    check<FileError>(load_newest(config_.resume, state_).has_value(),
                     "resume = \"{}\": is no checkpoint, and has none; name a folder that is or has one", config_.resume);
  }
  const std::string origin = automatic ? config_.out : config_.resume;
  check_same_run(origin);
  for (torch::optim::OptimizerParamGroup& group : session_.optimizer().param_groups()) {
    group.options().set_lr(config_.optimizer.lr);
  }
  base::info("{}: goes on after step {}", origin, step_);
  return step_;
}

void RunState::check_same_run(const std::string& origin) const {
  const std::string now = decided_by(config_);
  check<CheckpointMismatch>(now == decided_, "resume {}: the checkpoint is of another run: {} in it, {} now", origin,
                            fmt::join(missing(decided_, now), ", "), fmt::join(missing(now, decided_), ", "));
}

std::string RunState::after_step(std::int64_t done, bool stops) {
  if (config_.checkpoint_every == 0 || (!stops && done % config_.checkpoint_every != 0)) return {};
  step_ = done;
  samples_ = done * config_.batch;
  checkpoints_->save(done);
  return (std::filesystem::path(config_.out) / step_folder(done)).string();
}

}  // namespace tessera::train
