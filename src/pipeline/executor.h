// SPDX-License-Identifier: Apache-2.0
// Runs one rank's row of a schedule.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "pipeline/pausable.h"
#include "pipeline/plain_random.h"
#include "tensor/decision_cache.h"
#include "tessera/module/autocast.h"
#include "tessera/pipeline/schedule.h"
#include "tessera/pipeline/trace.h"

namespace tessera::pipeline {

/// What a micro-batch's forward and backward are: of the whole model, as every rank runs them.
struct Work {
  std::function<void(int microbatch)> forward;
  std::function<void(int microbatch)> backward;  ///< null: forward only
};

/// Runs micro-batches of one step: which messages and random numbers are whose, and in which order a rank computes.
class Executor {
 public:
  /// `again`: the step that failed last runs a second time.
  Executor(const Mesh& mesh, int num_microbatches, Work work, bool again = false);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  /// One micro-batch after the other, each forward and backward.
  void run_one_by_one();
  /// The actions of `row`, the rank's of `schedule`. Forward and backward of a micro-batch stop where a stage of this
  /// rank begins whose action has not come yet. `journal` gets what changes.
  /// Throws  NewInSchedule if a micro-batch does what has to be learned one by one
  void run(const Schedule& schedule, const std::vector<Action>& row, std::vector<TracedAction>* trace,
           tensor::Journal& journal);
  /// Ranks are threads, and one of them drew from the generator of LibTorch that they share.
  [[nodiscard]] bool saw_shared_draws() const { return plain_random_.is_shared() && plain_random_.has_moved(); }

 private:
  struct Microbatch;

  void run(const Action& action);
  void advance(const Action& action);
  void forward(Microbatch& microbatch, int index);
  void backward(Microbatch& microbatch, int index);
  void await_turn(StageSet stages);

  NoCastCache no_cast_cache_;
  tensor::MeshRuntime& runtime_;
  Mesh mesh_;
  int exceptions_before_;
  Work work_;
  PlainRandom plain_random_;
  std::vector<std::unique_ptr<Microbatch>> microbatches_;
  int num_chunks_ = 1;
  Action current_;  ///< in progress
};

}  // namespace tessera::pipeline
