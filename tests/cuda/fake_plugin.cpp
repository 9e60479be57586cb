// SPDX-License-Identifier: Apache-2.0
// A library with the plug-in's entry and without CUDA, of this version or of the one that the build defines.
#include "comm/cuda_plugin_entry.h"

#ifndef TESSERA_FAKE_VERSIONS
#define TESSERA_FAKE_VERSIONS tessera::comm::detail::expected_plugin_versions()
#endif

namespace {

void add_makers(std::map<std::string, tessera::comm::BackendMaker>& makers) { makers["fake"] = nullptr; }

}  // namespace

extern "C" const tessera::comm::detail::CudaPluginEntry* tessera_cuda_plugin() {
  static const std::string kVersions = TESSERA_FAKE_VERSIONS;
  static const tessera::comm::detail::CudaPluginEntry kEntry{kVersions.c_str(), add_makers};
  return &kEntry;
}
