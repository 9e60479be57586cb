// SPDX-License-Identifier: Apache-2.0
// What libtessera and libtessera_cuda.so must agree on: one C symbol, and versions that are compared before it is used.
#pragma once

#include <map>
#include <string>

#include "tessera/comm/worlds.h"

namespace tessera::comm::detail {

/// The makers are C++ objects: they may cross only between libraries of one version.
struct CudaPluginEntry {
  /// "Tessera 0.1.0 on LibTorch 2.11".
  const char* versions = "";
  void (*add_makers)(std::map<std::string, BackendMaker>& makers) = nullptr;
};

/// Name and type of the symbol. The entry lives as long as the library.
inline constexpr const char* kCudaPluginSymbol = "tessera_cuda_plugin";
using CudaPluginFunction = const CudaPluginEntry* (*)();

/// What the entry of a plug-in of this build says.
[[nodiscard]] std::string expected_plugin_versions();

/// libtessera_cuda.so beside this library if it is there, else the bare name, for the loader to find.
[[nodiscard]] std::string cuda_plugin_path();

/// GPUs that the driver offers to this process; 0 without a driver.
[[nodiscard]] int count_gpus();

/// load_cuda_makers() for one file and a known number of GPUs.
[[nodiscard]] std::map<std::string, BackendMaker> load_cuda_plugin(const std::string& path, int num_gpus);

}  // namespace tessera::comm::detail
