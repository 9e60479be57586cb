// SPDX-License-Identifier: Apache-2.0
// Messages of a span of time, so that what nobody received in it is never taken for what comes later.
#pragma once

#include <cstdint>
#include <string>

#include "tessera/base/error.h"
#include "tessera/comm/communicator.h"

namespace tessera::comm::detail {

class OperationBackend;

/// A message that was awaited never comes: its sender is in a later epoch.
class EpochOver : public CommunicationError {
 public:
  EpochOver(const std::string& text, std::uint64_t epoch) : CommunicationError(text), epoch_(epoch) {}
  /// The sender's.
  [[nodiscard]] std::uint64_t epoch() const noexcept { return epoch_; }

 private:
  std::uint64_t epoch_;
};

/// While it lives, what this rank sends and receives in `group` is of `epoch`: messages of one epoch do not meet
/// receives of another. Everything else is of epoch 0. Transports that know no epochs go on as if there were none.
class InEpoch {
 public:
  InEpoch(const Communicator& group, std::uint64_t epoch);
  ~InEpoch();
  InEpoch(const InEpoch&) = delete;
  InEpoch& operator=(const InEpoch&) = delete;

 private:
  OperationBackend* backend_;
};

/// Drops messages of epochs 1 to `epoch` - 1 that came and were not asked for, and those that come later. With
/// `tell_peers`, peers that wait for a message of an earlier one from this rank throw EpochOver.
/// Order    a rank's epochs grow
/// Returns  false where the transport knows no epochs
bool start_epoch(const Communicator& group, std::uint64_t epoch, bool tell_peers);

}  // namespace tessera::comm::detail
