// SPDX-License-Identifier: Apache-2.0
// The one symbol that libtessera looks up in this library.
#include <ATen/detail/CUDAHooksInterface.h>
#include <fmt/format.h>
#include <torch/headeronly/version.h>

#include "comm/cuda_plugin_entry.h"
#include "cuda/nccl_backend.h"
#include "cuda/thread_backend.h"
#include "tessera/base/error.h"

namespace tessera::cuda {

namespace {

void add_makers(std::map<std::string, comm::BackendMaker>& makers) {
  check<ConfigError>(at::detail::getCUDAHooks().hasCUDA(),
                     "device cuda: LibTorch was asked about CUDA before its CUDA library was loaded (torch::manual_seed "
                     "does that) and remembers that there is none; call load_cuda_makers() first in the program");
  makers["nccl"] = make_nccl_backend;
  makers["thread"] = make_thread_backend;
}

}  // namespace

}  // namespace tessera::cuda

extern "C" const tessera::comm::detail::CudaPluginEntry* tessera_cuda_plugin() {
  // Of the headers that this library was compiled with, never of the libraries that happen to be loaded.
  static const std::string kVersions =
      fmt::format("Tessera {} on LibTorch {}.{}", TESSERA_VERSION, TORCH_VERSION_MAJOR, TORCH_VERSION_MINOR);
  static const tessera::comm::detail::CudaPluginEntry kEntry{kVersions.c_str(), tessera::cuda::add_makers};
  return &kEntry;
}
