// SPDX-License-Identifier: Apache-2.0
// A training step in micro-batches.
#include "tessera/pipeline/step.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <set>
#include <utility>

#include "comm/epoch.h"
#include "module/gradient_reducer.h"
#include "pipeline/executor.h"
#include "pipeline/plain_random.h"
#include "tensor/backward_order.h"
#include "tensor/journal.h"
#include "tensor/mesh_storage.h"
#include "tessera/base/error.h"
#include "tessera/base/log.h"
#include "tessera/module/distribute.h"
#include "tessera/tensor/stages.h"

namespace tessera {
namespace {

using Parts = std::vector<at::Tensor>;

/// What steps of one module leave for later steps.
struct Memory {
  /// By name and number of micro-batches.
  std::map<std::pair<std::string, int>, pipeline::Schedule> schedules;
  /// Kinds of steps whose shapes all ranks know.
  std::set<std::vector<std::int64_t>> known_steps;
  bool said_that_it_runs_again = false;
};

Memory& memory_of(module::GradientReducer& reducer) {
  std::shared_ptr<void>& slot = reducer.attachment();
  if (slot == nullptr) slot = std::make_shared<Memory>();
  return *static_cast<Memory*>(slot.get());
}

const Mesh* mesh_of(const torch::nn::Module& module, const std::vector<at::Tensor>& batch) {
  for (const auto& tensors : {module.parameters(), module.buffers(), batch}) {
    for (const at::Tensor& tensor : tensors) {
      if (tensor::is_mesh(tensor)) return &tensor::storage_of(tensor).mesh();
    }
  }
  return nullptr;
}

std::int64_t samples_of(const std::vector<at::Tensor>& batch) {
  check<ShapeError>(!batch.empty() && batch[0].defined() && batch[0].dim() > 0,
                    "step: the batch's first tensor has no dim 0 to split along; put the samples along dim 0");
  const std::int64_t samples = batch[0].size(0);
  for (std::size_t i = 1; i < batch.size(); ++i) {
    const bool fits = !batch[i].defined() || (batch[i].dim() > 0 && batch[i].size(0) == samples);
    check<ShapeError>(fits, "step: tensor {} of the batch has sizes [{}], tensor 0 has {} samples along dim 0; allowed: "
                      "tensors of as many samples, and undefined ones", i, fmt::join(batch[i].sizes(), ", "), samples);
  }
  return samples;
}

/// The batch in `count` parts, each on the mesh.
std::vector<Parts> split(const std::vector<at::Tensor>& batch, int count, const Mesh* mesh) {
  const std::int64_t samples = samples_of(batch);
  check<ConfigError>(count >= 1 && static_cast<std::uint32_t>(count) <= tensor::kMaxMicrobatches && count <= samples,
                     "step: microbatches = {} for a batch of {} samples; allowed: 1 to {}", count, samples,
                     std::min<std::int64_t>(samples, tensor::kMaxMicrobatches));
  std::vector<Parts> all;
  std::int64_t begin = 0;
  for (int index = 0; index < count; ++index) {
    const std::int64_t size = samples / count + (index < samples % count ? 1 : 0);
    Parts& parts = all.emplace_back();
    for (const at::Tensor& whole : batch) {
      at::Tensor part = !whole.defined() || count == 1 ? whole : whole.narrow(0, begin, size);
      const bool goes_to_mesh = mesh != nullptr && part.defined() && !tensor::is_mesh(part);
      parts.push_back(goes_to_mesh ? shard_batch(*mesh, part) : part);
    }
    begin += size;
  }
  return all;
}

std::vector<double> samples_in(const std::vector<Parts>& parts) {
  std::vector<double> samples;
  for (const Parts& part : parts) samples.push_back(static_cast<double>(part[0].size(0)));
  return samples;
}

std::vector<double> weights_of(const std::vector<Parts>& parts, const StepOptions& options) {
  if (!options.weight) return samples_in(parts);
  std::vector<double> weights;
  for (const Parts& part : parts) {
    const double weight = weights.emplace_back(options.weight(part));
    check<ConfigError>(std::isfinite(weight) && weight >= 0,
                       "step: micro-batch {} has weight {}; allowed: 0 or more, and finite", weights.size() - 1, weight);
  }
  // Of nothing but what does not count, the mean is what the loss says it is.
  return std::ranges::all_of(weights, [](double weight) { return weight == 0; }) ? samples_in(parts) : weights;
}

/// How much of the batch's loss each micro-batch is; 0: its loss, which may be NaN, does not count.
std::vector<double> shares_of(const std::vector<Parts>& parts, const StepOptions& options) {
  if (parts.size() == 1 || options.reduction == LossReduction::kSum) return std::vector<double>(parts.size(), 1.0);
  std::vector<double> shares = weights_of(parts, options);
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  for (double& share : shares) share /= sum;
  return shares;
}

/// Whole on every rank, so that a rank may read it alone: waiting for it later would take part in what others do not wait for.
at::Tensor on_every_rank(const at::Tensor& loss) {
  return tensor::is_mesh(loss) ? redistribute(loss, Placements::replicated(placements(loss).size())) : loss;
}

/// What a step in schedule order changes, as it was before.
class Undo {
 public:
  [[nodiscard]] tensor::Journal& journal() noexcept { return journal_; }
  /// Called before each backward that adds to the leaf's gradient.
  void keep_gradient(const at::Tensor& leaf) {
    if (!kept_.insert(leaf.unsafeGetTensorImpl()).second) return;
    const at::Tensor gradient = leaf.grad();
    const bool is_plain = gradient.defined() && !tensor::is_mesh(gradient);
    gradients_.emplace_back(leaf, is_plain ? gradient.clone() : gradient);
  }
  void restore() {
    journal_.restore();
    for (auto& [leaf, gradient] : gradients_) leaf.mutable_grad() = gradient;
  }

 private:
  tensor::Journal journal_;
  std::vector<std::pair<at::Tensor, at::Tensor>> gradients_;
  std::set<const at::TensorImpl*> kept_;
};

class Step {
 public:
  Step(torch::nn::Module& module, const std::vector<at::Tensor>& batch, const MicrobatchLoss& loss,
       const StepOptions& options)
      : module_(module),
        batch_(batch),
        loss_(loss),
        options_(options),
        mesh_(mesh_of(module, batch)),
        reducer_(module::reducer_of(module)),
        trains_(at::GradMode::is_enabled()),
        parts_(split(batch, options.microbatches, mesh_)),
        shares_(shares_of(parts_, options)),
        losses_(parts_.size()),
        roots_(parts_.size()) {}

  at::Tensor run() {
    if (mesh_ == nullptr) {
      run_on_one_device();
    } else if (num_stages() > 1 && parts_.size() > 1) {
      run_on_stages();
    } else {
      run_one_by_one();
    }
    return on_every_rank(loss_of_batch());
  }

 private:
  [[nodiscard]] std::size_t num_stages() const { return rank_of_stage(*mesh_).size(); }
  [[nodiscard]] bool counts(int microbatch) const { return shares_[static_cast<std::size_t>(microbatch)] != 0; }
  [[nodiscard]] bool reduces() const { return trains_ && reducer_ != nullptr && reducer_->synchronising(); }

  void forward(int microbatch) {
    const auto index = static_cast<std::size_t>(microbatch);
    at::Tensor value = loss_(parts_[index]);
    check<ShapeError>(value.defined() && value.numel() == 1, "step: the loss of micro-batch {} has sizes [{}]; allowed: "
                      "one element", microbatch, value.defined() ? fmt::format("{}", fmt::join(value.sizes(), ", ")) : "");
    if (!counts(microbatch)) return;
    if (parts_.size() > 1) value = value * shares_[index];
    losses_[index] = value.detach();
    if (trains_) roots_[index] = options_.scaler == nullptr ? value : options_.scaler->scale(value);
  }

  /// `undo`, if given, gets what changes.
  void backward(int microbatch, Undo* undo) {
    const auto index = static_cast<std::size_t>(microbatch);
    parts_[index].clear();
    if (!counts(microbatch)) return;
    const at::Tensor root = std::exchange(roots_[index], at::Tensor());
    if (mesh_ != nullptr && num_stages() > 1 && parts_.size() > 1) {
      const auto leaves = tensor::go_back_stage_by_stage(root, tensor::MeshRuntime::of(*mesh_).stages.forward());
      for (const at::Tensor& leaf : leaves) {
        if (undo != nullptr) undo->keep_gradient(leaf);
      }
    }
    root.backward();
  }

  [[nodiscard]] pipeline::Work work(Undo* undo = nullptr) {
    pipeline::Work work{.forward = [this](int microbatch) { forward(microbatch); }, .backward = nullptr};
    if (trains_) work.backward = [this, undo](int microbatch) { backward(microbatch, undo); };
    return work;
  }

  void run_on_one_device() {
    pipeline::PlainRandom random(options_.microbatches, /*is_shared=*/false);
    for (int microbatch = 0; microbatch < options_.microbatches; ++microbatch) {
      const pipeline::PlainRandom::Drawing drawing(random, microbatch);
      forward(microbatch);
      if (trains_) backward(microbatch, nullptr);
    }
    random.finish();
  }

  /// The last backward reduces what all of them added up, while it goes on.
  void run_one_by_one() {
    pipeline::Work all = work();
    if (trains_) {
      int last = options_.microbatches - 1;
      while (!counts(last)) --last;
      all.backward = [this, last](int microbatch) {
        const bool waits = microbatch < last && reducer_ != nullptr;
        const std::optional<NoSync> no_sync = waits ? std::make_optional<NoSync>(module_) : std::nullopt;
        backward(microbatch, nullptr);
      };
    }
    pipeline::Executor(*mesh_, options_.microbatches, all).run_one_by_one();
  }

  void run_on_stages() {
    const bool reduce = reduces();
    {
      std::optional<NoSync> no_sync;
      if (reduce) no_sync.emplace(module_);
      run_schedule();
    }
    if (reduce) reduce_gradients(module_);
  }

  void run_schedule() {
    std::optional<Memory> own;
    Memory& memory = reducer_ != nullptr ? memory_of(*reducer_) : own.emplace();
    const pipeline::Schedule& schedule = schedule_for(memory);
    const std::vector<std::int64_t> kind = kind_of_step();
    const bool is_known = memory.known_steps.count(kind) != 0;
    if (is_known && run_in_order(schedule)) return;
    if (is_known && !std::exchange(memory.said_that_it_runs_again, true)) {
      base::info("step: pipeline stages met something that the steps before did not do; it was taken back and runs again, "
                 "micro-batch after micro-batch, to learn it (said once)");
    }
    learn(schedule, /*again=*/is_known);
    memory.known_steps.insert(kind);
  }

  /// One micro-batch after the other. In schedule order, ranks that wait for shapes would wait for each other.
  void learn(const pipeline::Schedule& schedule, bool again) {
    tensor::StageRuntime& stages = tensor::MeshRuntime::of(*mesh_).stages;
    pipeline::Executor executor(*mesh_, options_.microbatches, work(), again);
    stages.hindrances() = {};
    executor.run_one_by_one();
    check_fits(schedule, stages.hindrances());
    if (executor.saw_shared_draws() && mesh_->rank() == 0) {
      base::warn("step: LibTorch's default generator was drawn from while micro-batches ran (torch::randn(sizes), say), and "
                 "ranks that are threads share it: each may have other numbers. Draw on mesh tensors (randn_like, dropout), "
                 "or run ranks as processes");
    }
  }

  /// False: there is something to learn first. All is as it was before, on all ranks.
  bool run_in_order(const pipeline::Schedule& schedule) {
    const tensor::StageRuntime& stages = tensor::MeshRuntime::of(*mesh_).stages;
    std::vector<pipeline::Action> row = schedule.actions[static_cast<std::size_t>(mesh_->coordinate(axis()))];
    if (!trains_) std::erase_if(row, [](const auto& action) { return action.kind != pipeline::ActionKind::kForward; });
    const std::size_t traced = options_.trace != nullptr ? options_.trace->size() : 0;
    Undo undo;
    try {
      pipeline::Executor executor(*mesh_, options_.microbatches, work(&undo));
      executor.run(schedule, row, options_.trace, undo.journal());
      return true;
    } catch (const tensor::NewInSchedule&) {
      if (!stages.can_run_again()) throw;
    } catch (const comm::detail::EpochOver& peer) {
      if (!stages.runs_again(peer.epoch())) throw;
    }
    undo.restore();
    parts_ = split(batch_, options_.microbatches, mesh_);
    for (std::vector<at::Tensor>* values : {&losses_, &roots_}) values->assign(parts_.size(), at::Tensor());
    if (options_.trace != nullptr) options_.trace->resize(traced);
    if (options_.before_second_run) options_.before_second_run();
    return false;
  }

  [[nodiscard]] int axis() const { return tensor::MeshRuntime::of(*mesh_).stages.axis(); }

  const pipeline::Schedule& schedule_for(Memory& memory) const {
    const auto key = std::make_pair(options_.schedule, options_.microbatches);
    const auto found = memory.schedules.find(key);
    if (found != memory.schedules.end()) return found->second;
    const int ranks = mesh_->axis_size(axis());
    pipeline::Schedule schedule = pipeline::make_schedule(
        options_.schedule, {.ranks = ranks,
                            .chunks = static_cast<int>(num_stages()) / ranks,
                            .microbatches = options_.microbatches});
    const std::vector<int>& here = rank_of_stage(*mesh_);
    check<ConfigError>(schedule.rank_of_stage == here,
                       "step: schedule {} runs stages 0, 1, .. on ranks [{}], the mesh's stages lie on ranks [{}]; give "
                       "Plan::stages the order of the schedule (StageOrder::kV for schedules in V shape)",
                       options_.schedule, fmt::join(schedule.rank_of_stage, ", "), fmt::join(here, ", "));
    return memory.schedules.emplace(key, std::move(schedule)).first->second;
  }

  /// What decides which operators run on which shapes.
  [[nodiscard]] std::vector<std::int64_t> kind_of_step() const {
    std::vector<std::int64_t> words{options_.microbatches, trains_ ? 1 : 0, module_.is_training() ? 1 : 0,
                                    has_gradients() ? 1 : 0, static_cast<std::int64_t>(loss_.target_type().hash_code())};
    for (const Parts& parts : parts_) {
      for (const at::Tensor& part : parts) {
        words.push_back(part.defined() ? static_cast<std::int64_t>(part.scalar_type()) : -1);
        if (part.defined()) words.insert(words.end(), part.sizes().begin(), part.sizes().end());
      }
    }
    return words;
  }

  [[nodiscard]] bool has_gradients() const {
    for (const at::Tensor& parameter : module_.parameters()) {
      if (parameter.grad().defined()) return true;
    }
    return false;
  }

  /// Refuses what would make ranks wait for each other in the order of the schedule.
  static void check_fits(const pipeline::Schedule& schedule, const tensor::StageRuntime::Hindrances& seen) {
    check<ConfigError>(seen.goes_back.empty(),
                       "step: forward comes back to an earlier pipeline stage at {}, so micro-batches cannot follow each "
                       "other through the stages; give the stages in the order in which forward uses their parameters, "
                       "say which later stage has a tied parameter too (\"+name\"), put the operands of {} on one stage, "
                       "or use microbatches = 1",
                       seen.goes_back, seen.goes_back);
    check<ConfigError>(seen.tells_in_backward.empty(),
                       "step: {} in backward gives numbers or sizes that all pipeline stages have to wait for; use "
                       "microbatches = 1",
                       seen.tells_in_backward);
    check<ConfigError>(seen.tells_in_forward.empty() || schedule.num_chunks == 1,
                       "step: {} in forward gives numbers or sizes that all pipeline stages have to wait for, which "
                       "schedule {} with {} stages per rank cannot; use one stage per rank, or microbatches = 1",
                       seen.tells_in_forward, schedule.name, schedule.num_chunks);
  }

  [[nodiscard]] at::Tensor loss_of_batch() const {
    at::Tensor sum;
    for (const at::Tensor& loss : losses_) {
      if (loss.defined()) sum = sum.defined() ? sum + loss : loss;
    }
    return sum;
  }

  torch::nn::Module& module_;
  const std::vector<at::Tensor>& batch_;
  const MicrobatchLoss& loss_;
  const StepOptions& options_;
  const Mesh* mesh_;
  std::shared_ptr<module::GradientReducer> reducer_;
  bool trains_;
  std::vector<Parts> parts_;
  std::vector<double> shares_;
  std::vector<at::Tensor> losses_;
  std::vector<at::Tensor> roots_;
};

}  // namespace

at::Tensor step(torch::nn::Module& module, const std::vector<at::Tensor>& batch, const MicrobatchLoss& loss,
                const StepOptions& options) {
  return Step(module, batch, loss, options).run();
}

}  // namespace tessera
