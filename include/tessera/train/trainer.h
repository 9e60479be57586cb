// SPDX-License-Identifier: Apache-2.0
// The training loop: steps, evaluations and what is reported of them.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "tessera/checkpoint/safetensors.h"
#include "tessera/train/session.h"

namespace tessera::train {

/// Where a run reports to; empty functions drop. Called on every rank: callers pass sinks to rank 0 only.
struct Sinks {
  std::function<void(const StepRecord&)> step;
  std::function<void(const EvalRecord&)> evaluation;
};

struct TrainOptions {
  /// First steps left out of the times.
  std::int64_t warmup_steps = 1;
  /// Computing the gradient's norm costs a pass over it; without, the record's norm is NaN.
  bool report_gradient_norm = true;
  /// Steps that are done: the first one is that many'th.
  std::int64_t first_step = 0;
  /// Called on every rank when a step is done, with the number of those that are; false: that was the last one.
  std::function<bool(std::int64_t done)> after_step{};
};

/// Trains `session` to its end and returns the summary. Evaluates every eval_every steps and after the last one, if
/// samples are held out. Collective with a mesh.
[[nodiscard]] SummaryRecord train(Session& session, const TrainConfig& config, const Sinks& sinks,
                                  const TrainOptions& options = {});

/// The parameters in full, on every rank. Collective with a mesh.
[[nodiscard]] std::vector<checkpoint::NamedTensor> full_parameters(const Session& session);

}  // namespace tessera::train
