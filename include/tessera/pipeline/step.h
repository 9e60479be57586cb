// SPDX-License-Identifier: Apache-2.0
// The training step of an unmodified module: forward, loss and backward of a batch in micro-batches, on one device or on
// any mesh, in the order of a pipeline schedule where the mesh has stages.
#pragma once

#include <torch/nn/module.h>

#include <concepts>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tessera/module/grad_scaler.h"
#include "tessera/pipeline/schedule.h"
#include "tessera/pipeline/trace.h"

namespace tessera {

/// What a loss is over the samples of a batch.
enum class LossReduction : std::uint8_t { kMean, kSum };

struct StepOptions {
  /// Parts that the batch is split into, along dim 0 and in order; sizes differ by at most one, the larger first. Their
  /// gradients add up.
  int microbatches = 1;
  /// A name of pipeline::schedules(), or file:PATH: the order in which pipeline stages run the micro-batches. A mesh
  /// without an axis pp runs one after the other.
  std::string schedule = "1f1b";
  /// kMean: each loss is multiplied by its micro-batch's share of `weight`. kSum: losses add up as they are.
  LossReduction reduction = LossReduction::kMean;
  /// How much a micro-batch counts, from its tensors as `loss` gets them. Default: samples of the first tensor. For a
  /// mean that leaves out ignored targets: their number without these. The same on every rank; kSum does not ask.
  /// A micro-batch of weight 0 is left out, even if its loss is NaN, the mean over no target: its forward runs, its
  /// backward does not. If all have weight 0, each counts by its samples, so that the mean over nothing is what `loss`
  /// makes of it, as without micro-batches.
  std::function<double(const std::vector<at::Tensor>& parts)> weight = nullptr;
  /// Scales each loss before its backward; may be null. Not owned.
  const GradScaler* scaler = nullptr;
  /// Gets what this rank did when, in order; may be null. Not owned.
  std::vector<pipeline::TracedAction>* trace = nullptr;
  /// Called before a step that was taken back runs again: puts back what `loss` changed (counters, metrics, states that it
  /// carries over steps), since it will be called for all micro-batches anew.
  std::function<void()> before_second_run = nullptr;
};

/// The tensors of one micro-batch -> its loss, one element.
using MicrobatchLoss = std::function<at::Tensor(const std::vector<at::Tensor>& parts)>;

/// Forward, loss and backward of one batch. `loss` runs the module and whatever else belongs to the loss; it is called
/// once per micro-batch, on every rank. It may also add up a metric (`count = count + correct.sum()`), to be read after
/// the step, by every rank: reading it is collective. Plain tensors of `batch` are the global batch, the same on every
/// rank: each micro-batch is sharded along dim 0 over the data-parallel axes.
///
/// Returns the loss of the batch, detached and replicated: a rank may read it (`item()`) and others not. Gradients are in
/// the parameters, reductions under way. Without grad mode (torch::NoGradGuard) only forward runs.
///
/// On a mesh with an axis pp and several micro-batches, each rank runs forward and backward of its stages in the order
/// of its row of the schedule. The first call with batches of some sizes runs the micro-batches one after the other:
/// it teaches ranks the shapes of what other stages compute. A later step that meets something new (a weight unfrozen, a
/// block left out, another term of the loss) is taken back and runs again in that way: gradients, buffers and whatever else
/// lies on the mesh are as they were, random numbers are drawn again, but `loss` was called already for some micro-batches,
/// others on each rank: see before_second_run. Normalisation over the batch (BatchNorm) sees one
/// micro-batch at a time. `loss` must do the same for every micro-batch: branches on values are possible if the
/// schedule has one stage per rank; where sizes depend on values, no step runs in the order of the schedule.
///
/// Order     collective on a mesh
/// Threads   called by its rank's thread. With several stages per rank, micro-batches run on threads of their own, one
///           at a time, with this thread's LibTorch state (grad mode, autocast, number of threads)
/// Throws    ConfigError for fewer samples than micro-batches, a schedule that does not fit the mesh's stages or the
///           number of micro-batches, or a module whose forward goes back to an earlier stage; ShapeError for something
///           new in a later step where it cannot be taken back: on transports other than thread and shm on CPUs
at::Tensor step(torch::nn::Module& module, const std::vector<at::Tensor>& batch, const MicrobatchLoss& loss,
                const StepOptions& options = {});

/// The same for a module of one input and a loss of its output and a target: `loss(module.forward(input), target)`.
template <class Module, class Loss>
  requires std::derived_from<Module, torch::nn::Module>
at::Tensor step(Module& module, const at::Tensor& input, const at::Tensor& target, Loss&& loss,
                const StepOptions& options = {}) {
  const MicrobatchLoss of_parts = [&](const std::vector<at::Tensor>& parts) {
    return loss(module.forward(parts[0]), parts[1]);
  };
  return step(static_cast<torch::nn::Module&>(module), std::vector<at::Tensor>{input, target}, of_parts, options);
}

}  // namespace tessera
