// SPDX-License-Identifier: Apache-2.0
// Gradient buckets.
#include "module/gradient_reducer.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "tensor/decision_cache.h"
#include "tensor/mesh_storage.h"
#include "tensor/redistribute.h"
#include "tessera/base/error.h"
#include "tessera/tensor/stages.h"

namespace tessera::module {
namespace {

/// Bit i set: partial on axis i.
unsigned partial_axes(const Placements& placements) {
  unsigned axes = 0;
  for (int axis = 0; axis < placements.size(); ++axis) {
    if (placements[axis] == Partial()) axes |= 1U << static_cast<unsigned>(axis);
  }
  return axes;
}

Placements without_partial(Placements placements) {
  for (int axis = 0; axis < placements.size(); ++axis) {
    if (placements[axis].is_partial()) placements[axis] = Replicate();
  }
  return placements;
}

/// Gradients that one collective can carry together.
struct Batch {
  unsigned axes = 0;
  at::ScalarType dtype = at::kFloat;
  std::vector<at::Tensor> gradients;
};

std::vector<Batch> group(const std::vector<at::Tensor>& gradients) {
  std::vector<Batch> batches;
  for (const at::Tensor& gradient : gradients) {
    tensor::MeshStorage& storage = tensor::storage_of(gradient);
    const unsigned axes = partial_axes(storage.placements());
    if (axes == 0) continue;
    if (!is_here(gradient)) {
      storage.replace(storage.local(), without_partial(storage.placements()));
      continue;
    }
    const at::ScalarType dtype = storage.local_unfinished().scalar_type();
    const auto fits = [&](const Batch& batch) { return batch.axes == axes && batch.dtype == dtype; };
    auto found = std::find_if(batches.begin(), batches.end(), fits);
    if (found == batches.end()) found = batches.insert(batches.end(), Batch{axes, dtype, {}});
    found->gradients.push_back(gradient);
  }
  return batches;
}

/// Memory that may be reduced in place: dense, and nobody else's. A view elsewhere may still count as partial.
at::Tensor reducible(const at::Tensor& local) {
  const bool exclusive = local.storage().use_count() == 1;
  return local.is_non_overlapping_and_dense() ? (exclusive ? local : local.clone()) : local.contiguous();
}

/// Once nothing is left to add up, the shard has the dtype that the gradient shows.
void restore_dtype(tensor::MeshStorage& storage, at::ScalarType dtype) {
  const at::Tensor& local = storage.local_unfinished();
  if (local.scalar_type() == dtype || partial_axes(storage.placements()) != 0) return;
  storage.replace(local.to(dtype), storage.placements());
}

void start(const Batch& batch) {
  const Mesh mesh = tensor::storage_of(batch.gradients.front()).mesh();
  std::vector<at::Tensor> memory;
  std::vector<at::Tensor> locals;
  for (const at::Tensor& gradient : batch.gradients) {
    locals.push_back(reducible(tensor::storage_of(gradient).local()));
    memory.push_back(locals.back().as_strided({locals.back().numel()}, {1}));
  }
  const auto pending =
      std::make_shared<comm::Pending>(mesh.across(batch.axes).all_reduce_coalesced(std::move(memory)));
  for (std::size_t i = 0; i < batch.gradients.size(); ++i) {
    tensor::MeshStorage& storage = tensor::storage_of(batch.gradients[i]);
    storage.replace(std::move(locals[i]), without_partial(storage.placements()));
    storage.set_completion([pending, dtype = batch.gradients[i].scalar_type(), &storage] {
      pending->wait();
      restore_dtype(storage, dtype);
    });
  }
}

/// True if an axis that cuts after `axis` cuts the dim already that `axis` has yet to cut.
bool has_smaller_chunk(const Placements& placements, int axis, std::int64_t dim) {
  return std::any_of(placements.begin(), placements.begin() + axis, [dim](const Placement& p) { return p.is_shard(dim); });
}

/// A gradient that every rank along `axis` has whole, or as sums of chunks that are not those of the target: each keeps its
/// part of it.
void keep_own_part(const at::Tensor& gradient, int axis, const Placement& target) {
  tensor::MeshStorage& storage = tensor::storage_of(gradient);
  if (storage.mesh().axis_size(axis) == 1) return;
  Placements placements = storage.placements();
  placements[axis] = target;
  const at::Tensor part = tensor::redistribute_local(storage.local(), gradient.sizes(), gradient.strides(),
                                                     storage.placements(), placements, storage.mesh());
  storage.replace(part.clone(), placements);
  restore_dtype(storage, gradient.scalar_type());
}

/// Starts the reduce-scatter of a gradient along `axis`; the storage holds this rank's share from now on.
void start_scatter(const at::Tensor& gradient, int axis, const Placement& target) {
  tensor::MeshStorage& storage = tensor::storage_of(gradient);
  const comm::Communicator& group = storage.mesh().along(axis);
  const at::Tensor& local = storage.local();
  Placements placements = storage.placements();
  placements[axis] = target;
  if (!is_here(gradient)) {
    storage.replace(tensor::redistribute_local(local, gradient.sizes(), gradient.strides(), storage.placements(), placements,
                                               storage.mesh()),
                    placements);
    return;
  }
  const tensor::DimCut cut(local.size(target.dim), target.cut, group.size());
  const at::Tensor rows = tensor::rows_to_scatter(local, target.dim, cut);
  std::vector<std::int64_t> share = rows.sizes().vec();
  share[0] /= group.size();
  at::Tensor received = at::empty(share, rows.options());
  const auto pending = std::make_shared<comm::Pending>(group.post_reduce_scatter(rows, received));
  const at::Tensor mine = tensor::from_scattered_rows(received, target.dim, cut, group.rank());
  storage.replace(mine, placements);
  const tensor::DimOrder order = tensor::memory_order(gradient.sizes(), gradient.strides());
  storage.set_completion([pending, rows, mine, order, placements, dtype = gradient.scalar_type(), &storage] {
    pending->wait();
    storage.replace(tensor::in_order(mine, order), placements);
    restore_dtype(storage, dtype);
  });
}

/// To the pipeline stages that have the parameter: of a tied one, the gradient is where backward came to last.
void bring_to_stages(const at::Tensor& gradient, const Placements& target) {
  tensor::StageRuntime& stages = tensor::MeshRuntime::of(tensor::storage_of(gradient).mesh()).stages;
  if (stages.axis() >= 0) stages.bring(gradient, stages.map().set_of(target));
}

class Hook final : public torch::autograd::PostAccumulateGradHook {
 public:
  Hook(std::shared_ptr<GradientReducer> reducer, const Placements& target)
      : reducer_(std::move(reducer)), target_(target) {}
  void operator()(const torch::autograd::Variable& parameter) override {
    reducer_->on_gradient(parameter, target_, when_complete);
  }
  void reduce(const at::Tensor& parameter) const { reducer_->reduce(parameter, target_, when_complete); }
  [[nodiscard]] const std::shared_ptr<GradientReducer>& reducer() const noexcept { return reducer_; }

  WhenComplete when_complete;

 private:
  std::shared_ptr<GradientReducer> reducer_;
  Placements target_;
};

torch::autograd::PostAccumulateGradHook* any_hook_of(const at::Tensor& parameter) {
  const auto* meta = torch::autograd::impl::get_autograd_meta(parameter);
  return meta == nullptr ? nullptr : meta->post_acc_grad_hooks_.get();
}

/// The hook that attach() gave to `parameter`; null if it has none.
Hook* hook_of(const at::Tensor& parameter) { return dynamic_cast<Hook*>(any_hook_of(parameter)); }

/// Bytes of a gradient on a rank, alike on all ranks though shards may be uneven: what is waited for when must not
/// differ.
std::int64_t bytes_per_rank(const at::Tensor& gradient) {
  const tensor::MeshStorage& storage = tensor::storage_of(gradient);
  std::int64_t bytes = gradient.numel() * static_cast<std::int64_t>(storage.local_unfinished().element_size());
  for (int axis = 0; axis < storage.placements().size(); ++axis) {
    if (storage.placements()[axis].is_shard()) bytes /= storage.mesh().axis_size(axis);
  }
  return bytes;
}

}  // namespace

void GradientReducer::Awaited::finish() const {
  (void)tensor::storage_of(gradient).local();
  if (when_complete) when_complete(parameter);
}

void GradientReducer::on_gradient(const at::Tensor& parameter, const Placements& target,
                                  const WhenComplete& when_complete) {
  if (!synchronising_) return;
  flush_when_backward_ends();
  reduce(parameter, target, when_complete);
}

void GradientReducer::reduce(const at::Tensor& parameter, const Placements& target,
                             const WhenComplete& when_complete) {
  const at::Tensor gradient = parameter.grad();
  if (!tensor::is_mesh(gradient)) {
    if (when_complete) when_complete(parameter);
    return;
  }
  tensor::storage_of(gradient).copy = nullptr;  // what is reduced is no view of another gradient
  bring_to_stages(gradient, target);
  convert(gradient);
  const bool is_scattered = scatter(parameter, gradient, target);
  if (partial_axes(tensor::storage_of(gradient).placements()) != 0) {
    collect({parameter, gradient, bytes_per_rank(gradient), when_complete});
  } else if (is_scattered) {
    scattering_.back().when_complete = when_complete;
  } else if (when_complete) {
    when_complete(parameter);
  }
  finish_scatters(options_.first_bucket_bytes);
}

void GradientReducer::convert(const at::Tensor& gradient) const {
  tensor::MeshStorage& storage = tensor::storage_of(gradient);
  const bool is_summed = partial_axes(storage.placements()) != 0 && gradient.is_floating_point() && is_here(gradient);
  if (dtype_ && is_summed) storage.replace(storage.local().to(*dtype_), storage.placements());
}

void GradientReducer::collect(Awaited awaited) {
  tensor::storage_of(awaited.gradient).set_reducer([self = weak_from_this()] {
    if (const auto reducer = self.lock()) reducer->flush();
  });
  bucket_bytes_ += awaited.bytes;
  bucket_.push_back(std::move(awaited));
  if (bucket_bytes_ >= (first_bucket_sent_ ? options_.bucket_bytes : options_.first_bucket_bytes)) flush();
}

void GradientReducer::flush() {
  std::vector<Awaited> bucket = std::exchange(bucket_, {});
  bucket_bytes_ = 0;
  first_bucket_sent_ = true;
  std::vector<at::Tensor> gradients;
  for (const Awaited& awaited : bucket) gradients.push_back(awaited.gradient);
  for (const at::Tensor& gradient : gradients) tensor::storage_of(gradient).set_reducer(nullptr);
  for (const Batch& batch : group(gradients)) start(batch);
  std::erase_if(bucket, [](const Awaited& awaited) { return !awaited.when_complete; });
  finish_bucket();
  reducing_ = std::move(bucket);
}

bool GradientReducer::scatter(const at::Tensor& parameter, const at::Tensor& gradient, const Placements& target) {
  const std::size_t before = scattering_.size();
  for (int axis = target.size() - 1; axis >= 0; --axis) {
    const Placements now = tensor::storage_of(gradient).placements();
    if (!target[axis].is_shard() || now[axis].is_shard()) continue;
    if (now[axis] != Partial() || has_smaller_chunk(now, axis, target[axis].dim)) {
      keep_own_part(gradient, axis, target[axis]);
      continue;
    }
    scattering_.push_back({parameter, gradient, bytes_per_rank(gradient), nullptr});
    scattering_bytes_ += scattering_.back().bytes;
    start_scatter(gradient, axis, target[axis]);
  }
  return scattering_.size() > before;
}

void GradientReducer::finish() {
  flush();
  finish_bucket();
  finish_scatters(0);
  first_bucket_sent_ = false;
  if (ahead_ != nullptr) ahead_->end_step();
}

void GradientReducer::finish_scatters(std::int64_t allowed_bytes) {
  while (!scattering_.empty() && scattering_bytes_ > allowed_bytes) {
    const Awaited oldest = std::move(scattering_.front());
    scattering_.pop_front();
    scattering_bytes_ -= oldest.bytes;
    oldest.finish();
  }
}

void GradientReducer::finish_bucket() {
  for (const Awaited& awaited : std::exchange(reducing_, {})) awaited.finish();
}

void GradientReducer::flush_when_backward_ends() {
  // Of this backward, or of one around it that is still running.
  if (!flush_queued_.expired()) return;
  abandon();
  const auto queued = std::make_shared<const bool>(true);
  flush_queued_ = queued;
  torch::autograd::Engine::get_default_engine().queue_callback([self = shared_from_this(), queued] {
    self->flush_queued_.reset();
    self->finish();
  });
}

void GradientReducer::abandon() {
  for (const Awaited& awaited : std::exchange(bucket_, {})) tensor::storage_of(awaited.gradient).set_reducer(nullptr);
  bucket_bytes_ = 0;
  first_bucket_sent_ = false;
  // Every rank has posted these.
  for (const Awaited& awaited : std::exchange(reducing_, {})) (void)tensor::storage_of(awaited.gradient).local();
  for (const Awaited& awaited : std::exchange(scattering_, {})) (void)tensor::storage_of(awaited.gradient).local();
  scattering_bytes_ = 0;
}

std::shared_ptr<GradientReducer> reducer_of(const at::Tensor& parameter) {
  const Hook* hook = hook_of(parameter);
  return hook == nullptr ? nullptr : hook->reducer();
}

std::shared_ptr<GradientReducer> reducer_of(const torch::nn::Module& module) {
  for (const at::Tensor& parameter : module.parameters()) {
    if (auto reducer = reducer_of(parameter)) return reducer;
  }
  return nullptr;
}

void reduce_gradient_of(const at::Tensor& parameter) { hook_of(parameter)->reduce(parameter); }

void attach(const at::Tensor& parameter, std::shared_ptr<GradientReducer> reducer, const Placements& target) {
  Hook* before = hook_of(parameter);
  check<ConfigError>(before != nullptr || any_hook_of(parameter) == nullptr,
                     "parameter [{}]: it has a hook after gradient accumulation already; allowed: none, since Tessera "
                     "reduces gradients there; use register_hook instead",
                     fmt::join(parameter.sizes(), ", "));
  auto hook = std::make_unique<Hook>(std::move(reducer), target);
  if (before != nullptr) hook->when_complete = std::move(before->when_complete);
  torch::autograd::impl::set_post_acc_grad_hooks(parameter, std::move(hook));
}

void set_when_complete(const at::Tensor& parameter, WhenComplete when_complete) {
  if (Hook* hook = hook_of(parameter)) hook->when_complete = std::move(when_complete);
}

}  // namespace tessera::module
