// SPDX-License-Identifier: Apache-2.0
// The few statistics that reports need.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <string>

#include "tessera/base/error.h"
#include "tessera/train/metrics.h"

namespace tessera::train {

double percentile(std::vector<double> samples, double percent) {
  check<ConfigError>(percent >= 0.0 && percent <= 100.0, "percentile: {} lies outside 0 to 100", percent);
  if (samples.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::sort(samples.begin(), samples.end());
  const auto position = percent / 100.0 * static_cast<double>(samples.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const auto above = std::min(below + 1, samples.size() - 1);
  return std::lerp(samples[below], samples[above], position - std::floor(position));
}

std::int64_t count_correct(const torch::Tensor& logits, const torch::Tensor& target) {
  return logits.argmax(-1).eq(target).sum().item<std::int64_t>();
}

double perplexity(double loss) { return std::exp(loss); }

std::uint64_t peak_rss_bytes() {
  constexpr std::uint64_t kBytesPerKib = 1024;
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    std::uint64_t kib = 0;
    if (word == "VmHWM:" && status >> kib) return kib * kBytesPerKib;
  }
  return 0;
}

}  // namespace tessera::train
