// SPDX-License-Identifier: Apache-2.0
// The one translation unit that sees NCCL's header.
#include "cuda/nccl_backend.h"

#include <c10/cuda/CUDAFunctions.h>
#include <fmt/format.h>

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <atomic>
#include <exception>
#include <utility>

#include "tessera/base/error.h"
#include "tessera/base/log.h"

namespace tessera::cuda {

namespace {

// Leaves the group in order, unless the rank is failing: then peers may be gone and the engine's destructor aborts.
class NcclBackend final : public c10d::ProcessGroupNCCL {
 public:
  using ProcessGroupNCCL::ProcessGroupNCCL;
  ~NcclBackend() override {
    if (aborted_ || std::uncaught_exceptions() > 0) return;
    try {
      ProcessGroupNCCL::shutdown();
    } catch (const std::exception& error) {
      base::warn("nccl: a group could not be closed: {}", error.what());
    }
  }
  void abort() override {
    aborted_ = true;
    ProcessGroupNCCL::abort();
  }

 private:
  std::atomic<bool> aborted_ = false;
};

}  // namespace

c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const comm::GroupRequest& request) {
  try {
    c10::cuda::set_device(request.device.index());
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = request.timeout;
    options->group_name = request.name;
    options->global_ranks_in_group.assign(request.members.begin(), request.members.end());
    auto backend = c10::make_intrusive<NcclBackend>(request.store, request.rank,
                                                    static_cast<int>(request.members.size()), std::move(options));
    backend->setBoundDeviceId(request.device);
    backend->eagerConnectSingleDevice(request.device);
    return backend;
  } catch (const std::exception& error) {
    const std::string reason = error.what();
    throw CommunicationError(fmt::format("group {} (nccl): rank {} of {} cannot connect on {}: {}", request.name,
                                         request.rank, request.members.size(), request.device.str(),
                                         reason.substr(0, reason.find('\n'))));
  }
}

}  // namespace tessera::cuda
