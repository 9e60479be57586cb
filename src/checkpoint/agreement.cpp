// SPDX-License-Identifier: Apache-2.0
// Texts between ranks, and exceptions as texts.
#include "checkpoint/agreement.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>

#include "tessera/checkpoint/errors.h"
#include "tessera/launch/failure.h"

namespace tessera::checkpoint {
namespace {

/// Throws `E` if a failure is of its kind.
template <class E>
void throw_as(const std::string& kind, const std::string& message) {
  if (kind == E("").kind()) throw E(message);
}

}  // namespace

Group::Group(const std::optional<Mesh>& mesh)
    : ranks_(mesh ? mesh->everyone() : comm::Communicator()), device_(mesh ? mesh->device() : c10::Device(c10::kCPU)) {}

std::vector<std::string> Group::exchange(const std::string& text) const {
  if (size() == 1) return {text};
  const auto count = static_cast<std::int64_t>(text.size());
  const at::Tensor counts = ranks_.all_gather(at::full({1}, count, at::TensorOptions(device_).dtype(at::kLong))).cpu();
  const std::int64_t longest = counts.max().item<std::int64_t>();
  std::vector<std::string> texts(static_cast<std::size_t>(size()));
  if (longest == 0) return texts;
  at::Tensor mine = at::zeros({longest}, at::kByte);
  std::memcpy(mine.mutable_data_ptr(), text.data(), text.size());
  const at::Tensor all = ranks_.all_gather(mine.to(device_)).cpu();
  const auto* bytes = static_cast<const char*>(all.const_data_ptr());
  for (int rank = 0; rank < size(); ++rank) {
    const auto length = static_cast<std::size_t>(counts[rank].item<std::int64_t>());
    texts[static_cast<std::size_t>(rank)].assign(bytes + rank * longest, length);
  }
  return texts;
}

void Group::agree(const std::exception_ptr& failure) const {
  if (size() == 1) {
    if (failure) std::rethrow_exception(failure);
    return;
  }
  std::string mine;
  if (failure) {
    const launcher::FailureReport report = launcher::describe_failure(failure);
    if (report.kind == CommunicationError("").kind()) std::rethrow_exception(failure);
    mine = report.kind + '\n' + report.message;
  }
  const std::vector<std::string> failures = exchange(mine);
  const auto first = std::find_if(failures.begin(), failures.end(), [](const auto& text) { return !text.empty(); });
  if (first == failures.end()) return;
  if (*first == mine) std::rethrow_exception(failure);
  const std::size_t end = first->find('\n');
  const std::string kind = first->substr(0, end);
  const std::string message = first->substr(end + 1);
  throw_as<CheckpointCorrupt>(kind, message);
  throw_as<CheckpointMismatch>(kind, message);
  throw_as<CheckpointBusy>(kind, message);
  throw_as<ConfigError>(kind, message);
  throw_as<ShapeError>(kind, message);
  throw_as<FileError>(kind, message);
  throw Error(message);
}

}  // namespace tessera::checkpoint
