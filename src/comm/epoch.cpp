// SPDX-License-Identifier: Apache-2.0
// Finds the transport that knows epochs.
#include "comm/epoch.h"

#include "comm/operation_backend.h"

namespace tessera::comm::detail {
namespace {

OperationBackend* backend_of(const Communicator& group) {
  return dynamic_cast<OperationBackend*>(group.backend().get());
}

}  // namespace

InEpoch::InEpoch(const Communicator& group, std::uint64_t epoch) : backend_(backend_of(group)) {
  if (backend_ != nullptr) backend_->set_epoch(epoch);
}

InEpoch::~InEpoch() {
  if (backend_ != nullptr) backend_->set_epoch(0);
}

bool start_epoch(const Communicator& group, std::uint64_t epoch, bool tell_peers) {
  if (group.size() == 1) return true;
  OperationBackend* backend = backend_of(group);
  return backend != nullptr && backend->start_epoch(epoch, tell_peers);
}

}  // namespace tessera::comm::detail
