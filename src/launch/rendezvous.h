// SPDX-License-Identifier: Apache-2.0
// How ranks find each other, and the handshake that names whoever is missing or different.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <functional>
#include <map>
#include <string>

#include "tessera/base/error.h"
#include "tessera/launch/environment.h"

namespace tessera::launcher::detail {

/// Some ranks did not come to the rendezvous in time.
class RendezvousError : public CommunicationError {
 public:
  using CommunicationError::CommunicationError;
  [[nodiscard]] const char* kind() const noexcept override { return "rendezvous"; }
};

/// Ranks of one job were started with different programs or configurations.
class MismatchError : public ConfigError {
 public:
  using ConfigError::ConfigError;
  [[nodiscard]] const char* kind() const noexcept override { return "config_mismatch"; }
};

/// The store in which the ranks of this job meet: the inherited file under our own launcher, else MASTER_ADDR's.
/// Rank 0 hosts the latter, on that address only, when the launcher does not.
/// Throws  ConfigError for an unusable address or descriptor; RendezvousError when nobody answers in time.
[[nodiscard]] c10::intrusive_ptr<c10d::Store> connect_store(const RankEnvironment& ranks,
                                                            std::chrono::milliseconds timeout);

struct Handshake {
  int rank = 0;
  int world_size = 1;
  std::chrono::milliseconds timeout{60000};
  /// Must be equal on every rank: versions, transport, a digest of the configuration.
  std::map<std::string, std::string> fields{};
  /// Called when this rank has said hello and begins to wait.
  std::function<void()> on_arrival{};
};

/// Returns on every rank when all have come and agree.
/// Throws  RendezvousError naming who is missing; MismatchError naming field, values and ranks, the same on every rank.
void shake_hands(c10d::Store& store, const Handshake& handshake);

}  // namespace tessera::launcher::detail
