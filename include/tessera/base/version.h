// SPDX-License-Identifier: Apache-2.0
// Versions: Tessera's own, the LibTorch it was compiled against and the one that the loader found.
#pragma once

#include <compare>
#include <string>

namespace tessera::base {

struct TorchVersion {
  int major = 0;
  int minor = 0;
  int patch = 0;
  friend auto operator<=>(const TorchVersion&, const TorchVersion&) = default;
};

/// Tessera's version, for instance "0.1.0".
[[nodiscard]] std::string version();

/// The LibTorch whose headers this library was compiled with.
[[nodiscard]] TorchVersion compiled_torch_version();

/// The LibTorch that this process has loaded.
[[nodiscard]] TorchVersion loaded_torch_version();

/// "2.11.0".
[[nodiscard]] std::string format_version(const TorchVersion& version);

/// LibTorch promises no binary compatibility between minor versions: a mismatch would crash later, somewhere else.
///
/// Order     once at start-up, before the first tensor
/// Throws    ConfigError with both versions, if major or minor differ; patch releases may differ
void check_torch_version(const TorchVersion& compiled = compiled_torch_version(),
                         const TorchVersion& loaded = loaded_torch_version());

}  // namespace tessera::base
