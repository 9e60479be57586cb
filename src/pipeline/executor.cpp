// SPDX-License-Identifier: Apache-2.0
// Runs one rank's row of a schedule.
#include "pipeline/executor.h"

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <algorithm>
#include <chrono>
#include <exception>
#include <map>
#include <utility>

namespace tessera::pipeline {
namespace {

double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// While it lives, calls belong to a micro-batch.
class Entered {
 public:
  Entered(tensor::MeshRuntime& runtime, tensor::Microbatch& microbatch)
      : runtime_(runtime), before_(runtime.enter(&microbatch)) {}
  ~Entered() { runtime_.enter(before_); }
  Entered(const Entered&) = delete;
  Entered& operator=(const Entered&) = delete;

 private:
  tensor::MeshRuntime& runtime_;
  tensor::Microbatch* before_;
};

/// While it lives, calls on stages ask the conductor.
class Conducted {
 public:
  Conducted(tensor::StageRuntime& stages, std::function<void(StageSet)> await_turn, tensor::Journal& journal)
      : stages_(stages) {
    stages_.set_conductor({.await_turn = std::move(await_turn), .in_schedule_order = true, .journal = &journal});
  }
  ~Conducted() { stages_.set_conductor({}); }
  Conducted(const Conducted&) = delete;
  Conducted& operator=(const Conducted&) = delete;

 private:
  tensor::StageRuntime& stages_;
};

bool are_threads(const Mesh& mesh) {
  return mesh.size() > 1 && mesh.everyone().backend()->getBackendName() == "thread";
}

void finish(tensor::DeferredQueue& queue) {
  for (const auto& work : queue) work->run();
  queue.clear();
}

}  // namespace

struct Executor::Microbatch {
  tensor::Microbatch counts;
  bool forward_done = false;
  bool backward_done = false;
  /// By stage: gradients of weights that backward left for later.
  std::map<int, tensor::DeferredQueue> deferred;
  /// Both passes, if they have to stop between chunks.
  std::unique_ptr<Pausable> passes;
};

Executor::Executor(const Mesh& mesh, int num_microbatches, Work work, bool again)
    : runtime_(tensor::MeshRuntime::of(mesh)),
      mesh_(mesh),
      exceptions_before_(std::uncaught_exceptions()),
      work_(std::move(work)),
      plain_random_(num_microbatches, are_threads(mesh)) {
  runtime_.stages.begin_step(mesh, again);
  // Draws of a micro-batch are numbered from where the mesh stands, under the micro-batch's own number.
  constexpr int kDrawBits = 40;
  for (int index = 0; index < num_microbatches; ++index) {
    auto& microbatch = *microbatches_.emplace_back(std::make_unique<Microbatch>());
    microbatch.counts.number = static_cast<std::uint32_t>(index) + 1;
    microbatch.counts.random = runtime_.random;
    microbatch.counts.random.num_draws += static_cast<std::uint64_t>(index) << kDrawBits;
  }
}

/// The mesh goes on behind the numbers of the micro-batch that drew most. Ranks that failed may have come to different
/// numbers: they all go back to where the step began.
Executor::~Executor() {
  if (std::uncaught_exceptions() > exceptions_before_) {
    runtime_.stages.fail_step(mesh_);
    return;
  }
  std::uint64_t most = 0;
  std::uint64_t index = 0;
  for (const auto& microbatch : microbatches_) {
    const std::uint64_t first = runtime_.random.num_draws + (index++ << 40U);
    most = std::max(most, microbatch->counts.random.num_draws - first);
  }
  runtime_.random.num_draws += most;
  plain_random_.finish();
}

void Executor::run_one_by_one() {
  for (std::size_t index = 0; index < microbatches_.size(); ++index) {
    const Entered entered(runtime_, microbatches_[index]->counts);
    const PlainRandom::Drawing drawing(plain_random_, static_cast<int>(index));
    work_.forward(static_cast<int>(index));
    if (work_.backward) work_.backward(static_cast<int>(index));
  }
}

void Executor::run(const Schedule& schedule, const std::vector<Action>& row, std::vector<TracedAction>* trace,
                   tensor::Journal& journal) {
  num_chunks_ = schedule.num_chunks;
  std::function<void(StageSet)> wait;
  if (num_chunks_ > 1) wait = [this](StageSet stages) { this->await_turn(stages); };
  const Conducted conducted(runtime_.stages, wait, journal);
  for (const Action& action : row) {
    const double start_ms = trace != nullptr ? now_ms() : 0;
    run(action);
    if (trace != nullptr) trace->push_back({action, start_ms, now_ms()});
  }
}

void Executor::run(const Action& action) {
  Microbatch& microbatch = *microbatches_[static_cast<std::size_t>(action.microbatch)];
  const Entered entered(runtime_, microbatch.counts);
  const PlainRandom::Drawing drawing(plain_random_, action.microbatch);
  current_ = action;
  advance(action);
}

void Executor::advance(const Action& action) {
  Microbatch& microbatch = *microbatches_[static_cast<std::size_t>(action.microbatch)];
  const int index = action.microbatch;
  const bool is_forward = action.kind == ActionKind::kForward;
  if (action.kind == ActionKind::kBackwardWeight) {
    finish(microbatch.deferred[action.stage]);
    return;
  }
  const bool splits = action.kind == ActionKind::kBackwardInput;
  runtime_.stages.set_deferred(splits ? &microbatch.deferred[action.stage] : nullptr);
  if (num_chunks_ == 1) {
    is_forward ? forward(microbatch, index) : backward(microbatch, index);
    return;
  }
  if (is_forward ? microbatch.forward_done : microbatch.backward_done) return;
  if (microbatch.passes == nullptr) {
    const auto both = [this, &microbatch, index] {
      forward(microbatch, index);
      if (!work_.backward) return;
      microbatch.passes->pause();
      backward(microbatch, index);
    };
    microbatch.passes = std::make_unique<Pausable>(both, mesh_.device());
  }
  microbatch.passes->resume();
  if (microbatch.passes->ended()) microbatch.passes.reset();
}

void Executor::forward(Microbatch& microbatch, int index) {
  work_.forward(index);
  microbatch.forward_done = true;
}

void Executor::backward(Microbatch& microbatch, int index) {
  work_.backward(index);
  microbatch.backward_done = true;
}

/// Forward may compute on the action's stage and on those before it, backward on those after it. A call of several stages
/// (a view of a tied parameter) belongs to the one that comes first.
void Executor::await_turn(StageSet stages) {
  const auto may_run = [&] {
    const StageSet stage = Stage(current_.stage).stages;
    return current_.kind == ActionKind::kForward ? tensor::lowest(stages) <= stage : tensor::highest(stages) >= stage;
  };
  while (!may_run()) microbatches_[static_cast<std::size_t>(current_.microbatch)]->passes->pause();
}

}  // namespace tessera::pipeline
