// SPDX-License-Identifier: Apache-2.0
// Plans: patterns over names, and what they say of a parameter.
#include "tessera/module/plan.h"

#include <fnmatch.h>

#include <algorithm>

#include "module/reduce_dtypes.h"
#include "module/stage_patterns.h"
#include "tessera/base/error.h"
#include "tessera/base/text.h"

namespace tessera {
namespace {

bool matches(const std::string& pattern, const std::string& name) {
  return ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
}

std::string known_axis(const std::string& axis) {
  const std::string name = axis == "dp" ? "dp_replicate" : axis;
  const auto& known = canonical_axes();
  check<ConfigError>(std::find(known.begin(), known.end(), name) != known.end(),
                     "plan: axis \"{}\" is not known; allowed: {}; did you mean \"{}\"?", axis, fmt::join(known, ", "),
                     base::nearest_word(axis, known));
  return name;
}

/// Writes the placements of the axes that `mesh` has, and returns their bit mask.
unsigned apply(const std::map<std::string, Placement>& by_name, const Mesh& mesh, Placements& placements) {
  unsigned axes = 0;
  for (const auto& [name, placement] : by_name) {
    const int axis = mesh.axis_index(name);
    if (axis < 0) continue;
    placements[axis] = placement;
    axes |= 1U << static_cast<unsigned>(axis);
  }
  return axes;
}

}  // namespace

Plan& Plan::add(std::string match, const std::map<std::string, Placement>& placements,
                const std::map<std::string, Placement>& outputs) {
  Entry entry{std::move(match), {}};
  for (const auto& [axis, placement] : placements) entry.placements[known_axis(axis)] = placement;
  for (const auto& [axis, placement] : outputs) entry.outputs[known_axis(axis)] = placement;
  entries_.push_back(std::move(entry));
  return *this;
}

Plan& Plan::stages(std::vector<std::vector<std::string>> patterns, StageOrder order) {
  check<ConfigError>(!patterns.empty() && patterns.size() <= kMaxStages, "plan: {} stages; allowed: 1 to {}",
                     patterns.size(), kMaxStages);
  for (std::size_t k = 0; k < patterns.size(); ++k) {
    check<ConfigError>(!patterns[k].empty(), "plan: stage {} names nothing; give it a pattern, or have fewer stages",
                       k);
    for (const std::string& pattern : patterns[k]) {
      check<ConfigError>(!module::shared_pattern(pattern).value_or(pattern).empty(),
                         "plan: stage {} has the pattern \"{}\", which names all there is; name its parts", k, pattern);
    }
  }
  stages_ = std::move(patterns);
  stage_order_ = order;
  return *this;
}

std::vector<int> Plan::rank_of_stage(int ranks) const {
  const int count = static_cast<int>(stages_.size());
  const bool is_v = stage_order_ == StageOrder::kV;
  check<ConfigError>(is_v ? count == 2 * ranks : count % ranks == 0,
                     "plan: {} stages in {} order over pp={} ranks; allowed: {}", count, is_v ? "v" : "loop", ranks,
                     is_v ? fmt::format("{}", 2 * ranks) : fmt::format("a multiple of {}", ranks));
  std::vector<int> map;
  for (int stage = 0; stage < count; ++stage) map.push_back(tessera::rank_of_stage(stage_order_, stage, ranks));
  return map;
}

StageSet Plan::stage_of(const std::string& name) const {
  StageSet first = 0;
  StageSet too = 0;
  for (std::size_t k = 0; k < stages_.size(); ++k) {
    const StageSet stage = Stage(static_cast<int>(k)).stages;
    for (const std::string& pattern : stages_[k]) {
      const auto shared = module::shared_pattern(pattern);
      if (!module::names(shared.value_or(pattern), name)) continue;
      if (shared) {
        too |= stage;
      } else if (first == 0) {
        first = stage;
      }
    }
  }
  return first == 0 ? 0 : first | too;
}

const Plan::Entry* Plan::entry_of(const std::string& parameter) const {
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& entry) { return matches(entry.match, parameter); });
  return found == entries_.end() ? nullptr : &*found;
}

ParameterLayout Plan::layout_of(const std::string& parameter, std::int64_t num_dims, const Mesh& mesh) const {
  ParameterLayout layout;
  Placements value = Placements::replicated(mesh.num_axes());
  layout.output = value;
  if (const Entry* entry = entry_of(parameter)) {
    apply(entry->placements, mesh, value);
    layout.planned_outputs = apply(entry->outputs, mesh, layout.output);
  }
  layout.value = layout.gradient = layout.state = value;
  const int axis = mesh.axis_index("dp_shard");
  if (axis < 0 || mesh.axis_size(axis) == 1) return layout;
  if (zero_ > 0 && num_dims > 0 && value[axis].is_replicate()) {
    if (zero_ >= 1) layout.state[axis] = Shard(0);
    if (zero_ >= 2) layout.gradient[axis] = Shard(0);
    if (zero_ >= 3) layout.value[axis] = Shard(0);
  }
  if (layout.value[axis].is_shard()) layout.gathered_at_use = 1U << static_cast<unsigned>(axis);
  return layout;
}

Plan& Plan::zero(std::int64_t stage) {
  check<ConfigError>(stage >= 0 && stage <= 3,
                     "zero = {} is out of range; allowed: 0 nothing is sharded, 1 optimizer state, 2 gradients too, "
                     "3 parameters too",
                     stage);
  zero_ = static_cast<int>(stage);
  return *this;
}

Plan& Plan::prefetch_bytes(std::int64_t bytes) {
  check<ConfigError>(bytes >= 0, "prefetch_bytes = {} is out of range; allowed: 0 nothing is gathered ahead, and above",
                     bytes);
  prefetch_bytes_ = bytes;
  return *this;
}

Plan& Plan::reduce_dtype(c10::ScalarType dtype) {
  check<ConfigError>(!module::word_of_reduce_dtype(dtype).empty(), "reduce_dtype = {} is no dtype to reduce gradients in; allowed: {}",
                     c10::toString(dtype), module::kReduceDtypeWords);
  reduce_dtype_ = dtype;
  return *this;
}

void Plan::check_matches(const std::vector<std::string>& parameters) const {
  for (const Entry& entry : entries_) {
    const bool any = std::any_of(parameters.begin(), parameters.end(),
                                 [&](const std::string& name) { return matches(entry.match, name); });
    check<ConfigError>(any, "plan pattern \"{}\" matches no parameter; the nearest name is \"{}\"", entry.match,
                       base::nearest_word(entry.match, parameters));
  }
}

}  // namespace tessera
