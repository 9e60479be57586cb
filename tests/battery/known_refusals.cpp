// SPDX-License-Identifier: Apache-2.0
// The table of what does not hold yet.
#include "battery/known_refusals.h"

namespace tessera::battery {

const std::vector<KnownRefusal>& known_refusals() {
  const std::string strided = "stft cuts frames by as_strided, which is refused along a sharded batch";
  static const std::vector<KnownRefusal> kTable{
      {"Spectrogram_stft", "dp=2", strided},
      {"Spectrogram_stft", "dp=3", strided},
      {"Spectrogram_stft", "zero 3", strided},
      {"Spectrogram_stft", "dp=2,tp=2 random", strided},
      {"Spectrogram_stft", "dp_replicate=2,dp_shard=2,tp=2 random", strided},
  };
  return kTable;
}

}  // namespace tessera::battery
