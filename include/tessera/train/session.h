// SPDX-License-Identifier: Apache-2.0
// One rank's training run, step by step: an ordinary module, loss and torch::optim, on one device or on a mesh.
#pragma once

#include <torch/torch.h>

#include <memory>
#include <optional>

#include "tessera/checkpoint/state.h"
#include "tessera/mesh/mesh.h"
#include "tessera/module/grad_scaler.h"
#include "tessera/module/plan.h"
#include "tessera/pipeline/trace.h"
#include "tessera/tensor/random.h"
#include "tessera/train/config.h"
#include "tessera/train/dataset.h"
#include "tessera/train/memory_meter.h"
#include "tessera/train/metrics.h"
#include "tessera/train/part_costs.h"
#include "tessera/train/workload.h"
#include "tessera/verify/equivalence.h"

namespace tessera::train {

/// The dtype in which a precision computes where autocast deems it safe; none for fp32 and fp64.
[[nodiscard]] std::optional<at::ScalarType> autocast_dtype(const std::string& precision);

/// Throws ConfigError, all problems in one, if the model or batch cannot be spread over `axes`: heads that tp does not
/// divide, a batch that the data-parallel degree does not divide (unless `uneven_batches`). Reads the plan file, if there
/// is one, for its mistakes, a number of stages that pp does not divide among them: FileError, ConfigError.
void check_fits(const TrainConfig& config, const std::vector<Axis>& axes, bool uneven_batches = false);

/// The plan file that `config` names, else the ready plan of its model; on a mesh with an axis pp, cut into stages of
/// about equal weight if the file names none: equally many parameters, or, with `costs` of all parts, what
/// config.plan.balance says. Throws ConfigError if the model has fewer parts than stages.
[[nodiscard]] Plan plan_of(const TrainConfig& config, const Workload& workload, const std::vector<Axis>& axes,
                           const std::vector<PartCost>& costs = {});

struct SessionOptions {
  /// Counts the tensor memory of this thread from before the model is made.
  bool count_memory = false;
};

/// A run in progress. With a mesh, `distribute`, `shard_batch` and `step` are all that differs from one device.
/// Threads   used by its rank's thread
class Session {
 public:
  /// `mesh` empty: plain tensors on one device, the reference of everything else.
  /// Order   collective with a mesh
  Session(const TrainConfig& config, std::shared_ptr<const Dataset> data, std::optional<Mesh> mesh,
          const SessionOptions& options = {});

  /// Forward and backward of the batch of `step`, in micro-batches (tessera::step); the loss stays on the device.
  /// Throws Error naming parameter and rank if check_finite is set and something is not finite.
  at::Tensor forward_backward(std::int64_t step);
  /// Gradient clipping (if configured) and the optimizer's step, which fp16 leaves out if some gradient overflowed.
  /// Gradients are kept until the next forward_backward.
  void update();
  /// Global L2 norm of the gradient. Collective with a mesh.
  [[nodiscard]] double gradient_norm();

  /// Loss and quality over the held-out samples. Collective with a mesh.
  [[nodiscard]] EvalRecord evaluate(std::int64_t step);

  /// What pipeline stages did in the last step, if `trace` is set: a row per rank along pp.
  /// Order   collective with a mesh
  [[nodiscard]] std::vector<std::vector<pipeline::TracedAction>> trace() const;

  /// Adds all that this run changes: model, optimizer, loss scale, random numbers. Batches depend on the step alone.
  /// Lifetime  the session stays where it is as long as the state
  void add_to(State& state);

  /// This run as `tessera verify` sees it.
  [[nodiscard]] verify::Subject subject();

  [[nodiscard]] Workload& workload() noexcept { return workload_; }
  [[nodiscard]] const Workload& workload() const noexcept { return workload_; }
  [[nodiscard]] const std::optional<Mesh>& mesh() const noexcept { return mesh_; }
  [[nodiscard]] torch::optim::Optimizer& optimizer() noexcept { return *optimizer_; }
  /// Null unless the options asked for it.
  [[nodiscard]] MemoryMeter* memory() noexcept { return memory_.get(); }
  [[nodiscard]] std::int64_t num_steps() const noexcept;
  [[nodiscard]] std::int64_t num_held_out() const noexcept { return data_->held_out.size(); }

 private:
  /// In the configured precision, on the device; place() spreads it over the mesh as well.
  [[nodiscard]] Batch typed(Batch batch) const;
  [[nodiscard]] Batch place(Batch batch) const;
  /// Logits, and the loss, in the configured precision.
  at::Tensor forward(const at::Tensor& input, const at::Tensor& target, at::Tensor& loss);

  TrainConfig config_;
  std::shared_ptr<const Dataset> data_;
  std::optional<Mesh> mesh_;
  std::unique_ptr<MemoryMeter> memory_;
  Workload workload_;
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
  GradScaler scaler_;
  BatchStream batches_;
  std::vector<pipeline::TracedAction> trace_;
  RandomState plain_random_;  ///< what a mesh would go on with from a run without one
};

}  // namespace tessera::train
