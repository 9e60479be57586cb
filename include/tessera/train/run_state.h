// SPDX-License-Identifier: Apache-2.0
// A training run as its checkpoints have it: what is saved, when, and how the run goes on.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "tessera/checkpoint/checkpoints.h"
#include "tessera/train/session.h"

namespace tessera::train {

/// Makes and reads the checkpoints of a session. What decides its numbers (model, data, batch, seed, the optimizer's rule) must be
/// what it was; mesh, plan, micro-batches, schedule, precision of the arithmetic and learning rate may change.
class RunState {
 public:
  /// `session` stays where it is as long as this.
  RunState(Session& session, const TrainConfig& config);

  /// Goes on from where config.resume says; returns how many steps are done. Collective.
  /// Throws  FileError if there is no whole checkpoint (but with "auto", and a run that has none: 0); CheckpointMismatch for a
  ///         checkpoint of another run
  [[nodiscard]] std::int64_t resume();

  /// Saves if a checkpoint is due after `done` steps, or, if checkpoints are configured at all, for `stops`: the run ends
  /// here. Returns the folder; empty if nothing was saved. Collective.
  std::string after_step(std::int64_t done, bool stops);

 private:
  void check_same_run(const std::string& origin) const;

  Session& session_;
  TrainConfig config_;
  std::int64_t step_ = 0;
  std::int64_t samples_ = 0;
  std::string decided_;  ///< "key=value" lines of what decides the numbers
  State state_;
  std::unique_ptr<Checkpoints> checkpoints_;  ///< null: none are made
};

}  // namespace tessera::train
