// SPDX-License-Identifier: Apache-2.0
// Versions, and the comparison that refuses a LibTorch of another minor version.
#include "tessera/base/version.h"

#include <fmt/format.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/version.h>

#include <cstdint>

#include "tessera/base/error.h"

namespace tessera::base {

std::string version() { return TESSERA_VERSION; }

TorchVersion compiled_torch_version() { return {TORCH_VERSION_MAJOR, TORCH_VERSION_MINOR, TORCH_VERSION_PATCH}; }

TorchVersion loaded_torch_version() {
  // The layout of TORCH_ABI_VERSION: one byte each for major, minor and patch from the top.
  const std::uint64_t packed = aoti_torch_abi_version();
  const auto byte = [packed](int shift) { return static_cast<int>((packed >> shift) & 0xFF); };
  return {byte(56), byte(48), byte(40)};
}

std::string format_version(const TorchVersion& version) {
  return fmt::format("{}.{}.{}", version.major, version.minor, version.patch);
}

void check_torch_version(const TorchVersion& compiled, const TorchVersion& loaded) {
  check<ConfigError>(compiled.major == loaded.major && compiled.minor == loaded.minor,
                     "start-up: Tessera was compiled against LibTorch {} but the loader found {}; the minor versions "
                     "must be equal: rebuild with -DTESSERA_TORCH=<that LibTorch>, or correct LD_LIBRARY_PATH",
                     format_version(compiled), format_version(loaded));
}

}  // namespace tessera::base
