// SPDX-License-Identifier: Apache-2.0
// Dropping activations and making them again.
#include "tensor/recompute.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <array>

#include "tensor/activation_budget.h"
#include "tensor/decision_cache.h"
#include "tensor/redistribute.h"
#include "tessera/base/error.h"
#include "tessera/base/text.h"

namespace tessera {
namespace tensor {
namespace {

bool in_forward() { return at::GradMode::is_enabled() && torch::autograd::get_current_graph_task_id() == -1; }

/// A partial sum was reduced inside its storage.
class Reduction final : public Producer {
 public:
  Reduction(std::shared_ptr<Value> from, const Placements& to) : to_(from->placements()) {
    for (int axis = 0; axis < to_.size(); ++axis) {
      if (to_[axis].is_partial()) to_[axis] = to[axis];
    }
    inputs.push_back({std::move(from), nullptr, 0});
    is_expensive = true;
    name = "a reduction";
  }
  std::vector<at::Tensor> run() override { return {read_as(inputs[0].value->tensor(), to_)}; }

 private:
  Placements to_;
};

std::int64_t largest_shard_bytes(const at::Tensor& tensor) {
  const MeshStorage& storage = storage_of(tensor);
  auto bytes = static_cast<std::int64_t>(tensor.itemsize());
  for (int dim = 0; dim < tensor.dim(); ++dim) {
    const std::int64_t parts = num_shards(dim, storage.placements(), storage.mesh());
    bytes *= (tensor.size(dim) + parts - 1) / parts;
  }
  return bytes;
}

/// While it lives, calls belong to no block: they are made again.
class RunningAgain {
 public:
  explicit RunningAgain(bool& flag) : flag_(flag) { flag_ = true; }
  ~RunningAgain() { flag_ = false; }
  RunningAgain(const RunningAgain&) = delete;
  RunningAgain& operator=(const RunningAgain&) = delete;

 private:
  bool& flag_;
};

}  // namespace

bool Producer::reads_what_it_read() const {
  return std::all_of(inputs.begin(), inputs.end(), [](const Input& input) {
    return input.memory == nullptr || input.memory->num_writes == input.num_writes;
  });
}

bool Producer::is_repeatable() {
  repeatable_ = reads_what_it_read() && std::all_of(inputs.begin(), inputs.end(), [](const Input& input) {
                  return input.value == nullptr || input.value->has_data() || input.value->producer_->repeatable_;
                });
  return repeatable_;
}

std::vector<std::shared_ptr<Producer>> producers_of(const Value& value) {
  std::vector<std::shared_ptr<Producer>> needed;
  std::set<const Producer*> seen;
  std::vector<std::shared_ptr<Producer>> open{value.producer_};
  while (!open.empty()) {
    const std::shared_ptr<Producer> producer = std::move(open.back());
    open.pop_back();
    if (!seen.insert(producer.get()).second) continue;
    for (const Producer::Input& input : producer->inputs) {
      if (input.value != nullptr && !input.value->has_data()) open.push_back(input.value->producer_);
    }
    needed.push_back(producer);
  }
  std::sort(needed.begin(), needed.end(), [](const auto& a, const auto& b) { return a->order < b->order; });
  return needed;
}

Value::Value(const at::Tensor& tensor, std::shared_ptr<Producer> producer)
    : storage_(&storage_of(tensor)),
      producer_(std::move(producer)),
      placements_(storage_->placements()),
      mesh_(storage_->mesh()),
      sizes_(tensor.sizes().begin(), tensor.sizes().end()),
      strides_(tensor.strides().begin(), tensor.strides().end()) {}

bool Value::has_data() const noexcept { return data().defined(); }

const at::Tensor& Value::data() const noexcept {
  return held_.defined() || storage_ == nullptr ? held_ : storage_->local_unfinished();
}

at::Tensor Value::tensor() const { return wrap_as(data(), placements_, mesh_, sizes_, strides_); }

void Value::keep() {
  if (producer_ == nullptr || !has_data()) return;
  held_ = data();
  const auto producer = std::exchange(producer_, nullptr);
  if (producer->is_view && producer->inputs[0].value != nullptr) producer->inputs[0].value->keep();
}

bool Value::drop() {
  if (producer_ == nullptr) return false;
  if (!producer_->is_repeatable()) {
    keep();
    return false;
  }
  held_.reset();
  const bool frees = storage_ != nullptr;
  if (frees) storage_->drop([self = shared_from_this()] { MeshRuntime::of(self->mesh_).recompute.make_again(*self); });
  return frees;
}

void Value::leave_storage(const at::Tensor& data) {
  storage_ = nullptr;
  if (producer_ == nullptr) held_ = data;
}

void Value::fill(at::Tensor data) {
  producer_.reset();
  if (storage_ != nullptr) {
    storage_->refill(std::move(data));
  } else {
    held_ = std::move(data);
  }
}

bool RecomputeRuntime::watches() const { return enabled_ && !is_running_again_ && in_forward(); }

void RecomputeRuntime::begin(std::shared_ptr<const Block> block, int parameter) {
  const std::vector<std::weak_ptr<Value>> made = std::exchange(made_, {});
  if (block_ != nullptr && block_->budget != nullptr) {
    counts_.dropped += block_->budget->admit(made);
  } else {
    for (const std::weak_ptr<Value>& weak : made) {
      const std::shared_ptr<Value> value = weak.lock();
      if (value != nullptr && value->drop()) ++counts_.dropped;
    }
  }
  block_ = std::move(block);
  first_parameter_ = parameter;
}

void RecomputeRuntime::add(const at::Tensor& output, const std::shared_ptr<Producer>& producer) {
  const Place place{block_, made_.size()};
  std::weak_ptr<Value>& made = made_.emplace_back();
  std::weak_ptr<Value>& known = producer->outputs.emplace_back();
  // Single numbers: a loss that somebody keeps would keep all that it was made from.
  if (output.numel() <= 1 || read_later_.contains(place)) return;
  const auto value = std::make_shared<Value>(output, producer);
  value->place_ = place;
  made = known = value;
  MeshStorage& storage = storage_of(output);
  storage.value = value;
  if (!storage.is_view) {
    const std::int64_t bytes = block_->budget != nullptr ? largest_shard_bytes(output) : 0;
    storage.memory = std::make_shared<SharedMemory>(SharedMemory{.owner = value, .bytes = bytes});
  }
  value->memory_ = storage.memory;
}

void RecomputeRuntime::add_reduction(const at::Tensor& reduced, const std::shared_ptr<Value>& from) {
  if (!watches() || !records() || keeps_expensive()) return;
  const auto reduction = std::make_shared<Reduction>(from, storage_of(reduced).placements());
  reduction->order = next_order();
  add(reduced, reduction);
}

void RecomputeRuntime::make_again(Value& value) {
  if (value.has_data()) return;
  if (in_forward()) read_later_.insert(value.place_);
  std::vector<std::shared_ptr<Producer>> needed = producers_of(value);
  const RunningAgain running(is_running_again_);
  for (std::shared_ptr<Producer>& producer : needed) {
    check<Error>(producer->reads_what_it_read(),
                 "recompute: an activation that {} made was dropped after forward, and what it was made from has been "
                 "written since; read it before that, or train with recompute = \"none\"",
                 producer->name);
    std::vector<at::Tensor> shards = producer->run();
    ++counts_.operators;
    for (std::size_t i = 0; i < shards.size(); ++i) {
      const std::shared_ptr<Value> output = producer->outputs[i].lock();
      if (output != nullptr && !output->has_data()) output->fill(std::move(shards[i]));
    }
    producer.reset();  // what only later operators of `needed` read is freed after the last of them
  }
}

}  // namespace tensor

namespace {
constexpr std::array<std::pair<std::string_view, Recompute::Mode>, 3> kModes{
    {{"none", Recompute::kNone}, {"selective", Recompute::kSelective}, {"full", Recompute::kFull}}};
}  // namespace

Recompute Recompute::within(std::int64_t bytes) {
  check<ConfigError>(bytes > 0, "recompute: a budget of {} bytes; allowed: more than 0, or Recompute::kFull", bytes);
  Recompute recompute(kWithin);
  recompute.budget_bytes = bytes;
  return recompute;
}

std::string to_string(Recompute recompute) {
  if (recompute.mode == Recompute::kWithin) return base::exact_bytes(recompute.budget_bytes);
  const auto* found =
      std::find_if(kModes.begin(), kModes.end(), [&](const auto& row) { return row.second == recompute.mode; });
  return std::string(found->first);
}

Recompute parse_recompute(std::string_view word) {
  for (const auto& [known, mode] : kModes) {
    if (word == known) return mode;
  }
  const std::optional<std::int64_t> bytes = base::parse_bytes(word);
  check<ConfigError>(bytes.value_or(0) > 0,
                     "recompute = \"{}\" is not known; allowed: \"none\", \"selective\", \"full\", or more than 0 "
                     "bytes, as in \"8GiB\" (B, KiB, MiB, GiB, TiB)",
                     word);
  return Recompute::within(*bytes);
}

RecomputeCounts recompute_counts(const Mesh& mesh) { return tensor::MeshRuntime::of(mesh).recompute.counts(); }

}  // namespace tessera
