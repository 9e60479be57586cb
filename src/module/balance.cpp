// SPDX-License-Identifier: Apache-2.0
// Cutting a chain of module parts into stages of about equal weight.
#include <torch/nn/module.h>

#include <algorithm>
#include <limits>
#include <unordered_set>

#include "module/parts.h"
#include "tessera/base/error.h"
#include "tessera/module/plan.h"

namespace tessera {
namespace {

struct Part {
  std::string path;
  double weight;
};

double count_elements(const torch::nn::Module& module) {
  std::unordered_set<const void*> seen;
  double total = 0;
  for (const at::Tensor& parameter : module.parameters()) {
    if (seen.insert(parameter.unsafeGetTensorImpl()).second) total += static_cast<double>(parameter.numel());
  }
  return total;
}

using Weight = std::function<double(const std::string&, const torch::nn::Module&)>;

std::vector<Part> weighed_parts(const torch::nn::Module& module, const Weight& weight_of) {
  std::vector<Part> parts;
  for (const module::ModulePart& part : module::parts_of(module)) {
    parts.push_back({part.path, weight_of(part.path, *part.module)});
  }
  return parts;
}

/// begins[k]: the first part of stage k, such that the heaviest stage is as light as possible; no stage is empty.
std::vector<std::size_t> cut(const std::vector<Part>& parts, int count) {
  const std::size_t n = parts.size();
  const auto stages = static_cast<std::size_t>(count);
  std::vector<double> sum(n + 1, 0);
  for (std::size_t i = 0; i < n; ++i) sum[i + 1] = sum[i] + parts[i].weight;
  constexpr double kNever = std::numeric_limits<double>::infinity();
  // heaviest[k][i]: of the best cut of the first i parts into k stages; from[k][i]: where its last stage begins.
  std::vector<std::vector<double>> heaviest(stages + 1, std::vector<double>(n + 1, kNever));
  std::vector<std::vector<std::size_t>> from(stages + 1, std::vector<std::size_t>(n + 1, 0));
  heaviest[0][0] = 0;
  for (std::size_t k = 1; k <= stages; ++k) {
    for (std::size_t i = k; i <= n; ++i) {
      for (std::size_t j = k - 1; j < i; ++j) {
        const double worst = std::max(heaviest[k - 1][j], sum[i] - sum[j]);
        if (worst >= heaviest[k][i]) continue;
        heaviest[k][i] = worst;
        from[k][i] = j;
      }
    }
  }
  std::vector<std::size_t> begins(stages);
  for (std::size_t k = stages, end = n; k > 0; --k) begins[k - 1] = end = from[k][end];
  return begins;
}

}  // namespace

std::vector<std::vector<std::string>> balanced_stages(const torch::nn::Module& module, int count,
                                                      const Weight& weight_of) {
  const Weight by_elements = [](const std::string&, const torch::nn::Module& part) { return count_elements(part); };
  const std::vector<Part> parts = weighed_parts(module, weight_of ? weight_of : by_elements);
  check<ConfigError>(
      count >= 1 && static_cast<std::size_t>(count) <= parts.size(),
      "balanced_stages: {} stages of a module with {} parts; allowed: 1 to {}; name finer parts in the plan's "
      "`stages` to have more",
      count, parts.size(), parts.size());
  const std::vector<std::size_t> begins = cut(parts, count);
  std::vector<std::vector<std::string>> stages(static_cast<std::size_t>(count));
  for (std::size_t k = 0; k < stages.size(); ++k) {
    const std::size_t end = k + 1 < stages.size() ? begins[k + 1] : parts.size();
    for (std::size_t i = begins[k]; i < end; ++i) stages[k].push_back(parts[i].path);
  }
  // What the module owns itself lies with the first of its parts.
  for (const auto& item : module.named_parameters(/*recurse=*/false)) stages.front().push_back(item.key());
  for (const auto& item : module.named_buffers(/*recurse=*/false)) stages.front().push_back(item.key());
  return stages;
}

}  // namespace tessera
