// SPDX-License-Identifier: Apache-2.0
// Moving tensors, shapes and numbers between pipeline stages.
#include "tensor/stage_runtime.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <exception>
#include <span>
#include <string>

#include "comm/epoch.h"
#include "tensor/mesh_storage.h"
#include "tessera/base/error.h"
#include "tessera/base/log.h"

namespace tessera::tensor {
namespace {

/// Shapes and numbers travel under one tag and in order; what they are about stands in them.
constexpr int kMessageTag = 1 << 30;
/// Words of a message's first part: most shapes fit.
constexpr std::int64_t kFirstWords = 48;
/// Epoch, id, the number of words that follow, and what they are.
constexpr std::int64_t kHeadWords = 4;
constexpr std::int64_t kIsShape = 0;
constexpr std::int64_t kIsTorchError = 1;
constexpr std::int64_t kIsError = 2;

/// Memory for a shard whose dims lie in the order of the global strides, so that kernels see what they see elsewhere.
at::Tensor memory_for(at::IntArrayRef local_sizes, const DimOrder& order, at::TensorOptions options) {
  std::vector<std::int64_t> sizes;
  for (const std::int64_t dim : order) sizes.push_back(local_sizes[static_cast<std::size_t>(dim)]);
  return at::empty(sizes, options);
}

at::Tensor of_words(std::int64_t count, at::Device device = at::kCPU) {
  return at::empty({count}, at::TensorOptions(at::kLong).device(device));
}

/// What kind of error it is, and its first line: LibTorch's have a stack trace from the second line on.
std::pair<std::int64_t, std::string> describe(const std::exception_ptr& failure) {
  std::pair<std::int64_t, std::string> result{kIsError, "unknown error"};
  try {
    std::rethrow_exception(failure);
  } catch (const c10::Error& error) {
    result = {kIsTorchError, error.what_without_backtrace()};
  } catch (const std::exception& error) {
    result.second = error.what();
  } catch (...) {  // NOLINT(bugprone-empty-catch): it stays unknown
  }
  return result;
}

void throw_if_failure(std::int64_t kind, std::span<const std::int64_t> words) {
  if (kind == kIsShape) return;
  std::string text;
  for (const std::int64_t word : words) text.push_back(static_cast<char>(word));
  TORCH_CHECK(kind != kIsTorchError, text);
  throw Error(text);
}

}  // namespace

StageRuntime::~StageRuntime() {
  // A rank that fails must not wait for others, which may never come.
  if (std::uncaught_exceptions() > 0) return;
  try {
    std::erase_if(outgoing_, [](const Outgoing& outgoing) { return outgoing.abandoned; });
    finish_sends();
  } catch (const std::exception& error) {
    base::warn("stages: what this rank sent did not arrive: {}", error.what());
  }
}

/// Tags of tensors stay below kMessageTag. Messages of one tag arrive in order, so names may come again.
int StageRuntime::next_tag() noexcept {
  constexpr std::uint32_t kEventBits = 16;
  static_assert((kMaxMicrobatches << kEventBits) < kMessageTag);
  const std::uint32_t event = microbatch_->num_events++ % (1U << kEventBits);
  return static_cast<int>(microbatch_->number << kEventBits | event);
}

void StageRuntime::set_map(const Mesh& mesh, const std::vector<int>& rank_of_stage) {
  if (map_.axis() >= 0 && rank_of_stage == map_.rank_of_stage()) return;
  const bool fresh = map_.rank_of_stage() == StageMap(mesh).rank_of_stage() && shapes_.empty();
  check<ConfigError>(fresh,
                     "stages: mesh {} already computes {} stages in another arrangement; make a mesh for each "
                     "arrangement",
                     mesh.to_string(), map_.rank_of_stage().size());
  map_ = StageMap(mesh, rank_of_stage);
}

/// Ranks that disagree on which step failed last never name the same.
std::uint64_t StageRuntime::epoch() const noexcept { return std::uint64_t{last_failure_} << 32U | steps_; }

void StageRuntime::start_epoch(const Mesh& mesh, bool tell_peers) {
  outside_.num_events = 0;
  std::erase_if(mailbox_, [this](const auto& entry) {
    const Subject& subject = entry.first.second;
    return subject.epoch != 0 && subject.epoch < epoch();
  });
  knows_epochs_ = comm::detail::start_epoch(mesh.along(map_.axis()), epoch(), tell_peers);
}

void StageRuntime::begin_step(const Mesh& mesh, bool again) {
  if (map_.axis() < 0) return;
  refuse_old_messages();
  steps_ = again ? steps_ + 1 : (steps_ | 1U) + 1;
  if (again) last_failure_ = steps_;
  // Not told when it fails: a rank that ends the job wakes the others with its reason.
  start_epoch(mesh, /*tell_peers=*/std::exchange(failed_, false));
}

void StageRuntime::fail_step(const Mesh& mesh) {
  if (map_.axis() < 0) return;
  last_failure_ = steps_;
  failed_ = true;
  for (Outgoing& outgoing : outgoing_) outgoing.abandoned = true;
  start_epoch(mesh, /*tell_peers=*/false);
}

void StageRuntime::refuse_old_messages() const {
  check<CommunicationError>(last_failure_ == 0 || knows_epochs_,
                            "step: a step before ended by an exception, and what it left on its way between pipeline "
                            "stages would be taken for what is sent now; the transports thread and shm on CPUs go on "
                            "after that, with this one make mesh and model anew");
}

void StageRuntime::send(const at::Tensor& memory, int to, int tag, std::uint64_t epoch, const Mesh& mesh) {
  refuse_old_messages();
  progress();
  const comm::Communicator& group = mesh.along(map_.axis());
  const comm::detail::InEpoch in_epoch(group, epoch);
  outgoing_.push_back({memory, group.post_send(memory, to, tag)});
}

void StageRuntime::receive(at::Tensor& memory, int from, int tag, std::uint64_t epoch, const Mesh& mesh) const {
  refuse_old_messages();
  const comm::Communicator& group = mesh.along(map_.axis());
  const auto post = [&] {
    const comm::detail::InEpoch in_epoch(group, epoch);
    return group.post_receive(memory, from, tag);
  };
  post().wait();
}

at::Tensor StageRuntime::moved(const at::Tensor& local, at::IntArrayRef local_sizes, const DimOrder& order,
                               StageSet from, StageSet to, const Mesh& mesh) {
  at::Tensor result = local;
  const int me = mesh.coordinate(map_.axis());
  for (int rank = 0; rank < map_.ranks(); ++rank) {
    if ((map_.stages_of(rank) & to) == 0 || (map_.stages_of(rank) & from) != 0) continue;
    const int source = map_.source_for(rank, from);
    const int tag = next_tag();
    if (me != source && me != rank) continue;
    if (me == source) {
      const at::Tensor memory = local.permute(order).contiguous();
      send(memory, rank, tag, epoch(), mesh);
      ++traffic_.sent;
      traffic_.sent_bytes += static_cast<std::int64_t>(memory.nbytes());
    } else {
      at::Tensor memory = memory_for(local_sizes, order, local.options().device(mesh.device()));
      receive(memory, source, tag, epoch(), mesh);
      result = memory.permute(inverse(order));
    }
  }
  return result;
}

void StageRuntime::bring(const at::Tensor& tensor, StageSet stages) {
  MeshStorage& storage = storage_of(tensor);
  Placements placements = storage.placements();
  const StageSet now = map_.set_of(placements);
  if ((stages & ~now) == 0) return;
  const Mesh& mesh = storage.mesh();
  const Sizes sizes = local_sizes(tensor.sizes(), placements, mesh);
  at::Tensor local = moved(storage.local(), sizes, memory_order(tensor.sizes(), tensor.strides()), now, stages, mesh);
  if (storage.stage.home == 0) storage.stage.home = now;
  // Inference tensors cannot be written and have no version.
  storage.stage.copied_version =
      tensor.is_inference() ? 0 : tensor.unsafeGetTensorImpl()->version_counter().current_version();
  storage.stage.copied_after_failure = last_failure_;
  placements[map_.axis()] = map_.placement_of(now | stages);
  storage.replace(std::move(local), placements);
}

void StageRuntime::forget_copies(const at::Tensor& tensor) const {
  MeshStorage& storage = storage_of(tensor);
  if (storage.stage.home == 0) return;
  Placements placements = storage.placements();
  placements[map_.axis()] = map_.placement_of(storage.stage.home);
  const bool keeps_data = (storage.stage.home & map_.stages_here()) != 0;
  const at::Tensor local = keeps_data ? storage.local() : storage.local_unfinished();
  storage.replace(keeps_data ? local : at::empty_like(local, at::TensorOptions(at::kMeta)), placements);
  storage.stage.home = 0;
}

std::shared_ptr<const CallShape> StageRuntime::known_shape(std::uint64_t key) const {
  const auto found = shapes_.find(key);
  return found == shapes_.end() ? nullptr : found->second;
}

void StageRuntime::tell_shape(std::uint64_t key, std::shared_ptr<const CallShape> shape, const Mesh& mesh) {
  tell({.epoch = 0, .id = key}, *shape, mesh);
  traffic_.shapes_sent += map_.ranks() - 1;
  shapes_.emplace(key, std::move(shape));
}

std::shared_ptr<const CallShape> StageRuntime::learn_shape(std::uint64_t key, StageSet stages, const Mesh& mesh) {
  auto shape = std::make_shared<const CallShape>(learn({.epoch = 0, .id = key}, map_.first_rank(stages), mesh));
  shapes_.emplace(key, shape);
  return shape;
}

void StageRuntime::tell_values(const CallShape& shape, const Mesh& mesh) {
  tell(next_values(), shape, mesh);
  traffic_.scalars_sent += map_.ranks() - 1;
}

CallShape StageRuntime::learn_values(StageSet stages, const Mesh& mesh) {
  return learn(next_values(), map_.first_rank(stages), mesh);
}

/// Everybody learns from the first rank that computes, those who compute too: shapes must agree to the last stride.
void StageRuntime::tell(const Subject& subject, const CallShape& shape, const Mesh& mesh) {
  const Message body = to_words(shape);
  Message words{static_cast<std::int64_t>(subject.epoch), static_cast<std::int64_t>(subject.id),
                static_cast<std::int64_t>(body.size()), kIsShape};
  words.insert(words.end(), body.begin(), body.end());
  post(words, subject.epoch, mesh);
}

void StageRuntime::tell_failure(std::uint64_t key, const std::exception_ptr& failure, const Mesh& mesh) {
  const auto [kind, text] = describe(failure);
  Message words{0, static_cast<std::int64_t>(key), static_cast<std::int64_t>(text.size()), kind};
  words.insert(words.end(), text.begin(), text.end());
  post(words, 0, mesh);
}

/// In two parts, the first of which all have.
void StageRuntime::post(const Message& message, std::uint64_t epoch, const Mesh& mesh) {
  Message words = message;
  words.resize(std::max(words.size(), static_cast<std::size_t>(kFirstWords)), 0);
  at::Tensor all = of_words(static_cast<std::int64_t>(words.size()));
  std::copy(words.begin(), words.end(), all.data_ptr<std::int64_t>());
  // Groups move what lies on their ranks' device.
  all = all.to(mesh.device());
  const int me = mesh.coordinate(map_.axis());
  for (int rank = 0; rank < map_.ranks(); ++rank) {
    if (rank == me) continue;
    send(all.narrow(0, 0, kFirstWords), rank, kMessageTag, epoch, mesh);
    if (all.size(0) > kFirstWords) {
      send(all.narrow(0, kFirstWords, all.size(0) - kFirstWords), rank, kMessageTag, epoch, mesh);
    }
  }
}

StageRuntime::Message StageRuntime::receive_message(int from, std::uint64_t epoch, const Mesh& mesh) const {
  Message message;
  const auto receive_words = [&](std::int64_t count) {
    at::Tensor part = of_words(count, mesh.device());
    receive(part, from, kMessageTag, epoch, mesh);
    part = part.cpu();
    message.insert(message.end(), part.data_ptr<std::int64_t>(), part.data_ptr<std::int64_t>() + count);
  };
  receive_words(kFirstWords);
  const std::int64_t total = message[2] + kHeadWords;
  if (total > kFirstWords) receive_words(total - kFirstWords);
  return message;
}

CallShape StageRuntime::learn(const Subject& subject, int from, const Mesh& mesh) {
  const auto wanted = std::make_pair(from, subject);
  while (mailbox_[wanted].empty()) {
    Message message = receive_message(from, subject.epoch, mesh);
    const Subject about{static_cast<std::uint64_t>(message[0]), static_cast<std::uint64_t>(message[1])};
    mailbox_[{from, about}].push_back(std::move(message));
  }
  const auto found = mailbox_.find(wanted);
  const Message message = std::move(found->second.front());
  found->second.pop_front();
  if (found->second.empty()) mailbox_.erase(found);
  const auto body = std::span(message).subspan(kHeadWords);
  throw_if_failure(message[3], body.first(static_cast<std::size_t>(message[2])));
  return from_words(body);
}

void StageRuntime::finish_sends_of(const at::Tensor& memory) {
  for (Outgoing& outgoing : outgoing_) {
    if (outgoing.memory.storage().is_alias_of(memory.storage())) outgoing.pending.wait();
  }
}

void StageRuntime::finish_sends() {
  for (Outgoing& outgoing : outgoing_) outgoing.pending.wait();
  outgoing_.clear();
}

void StageRuntime::progress() {
  std::erase_if(outgoing_, [](Outgoing& outgoing) { return outgoing.pending.finished(); });
}

}  // namespace tessera::tensor
