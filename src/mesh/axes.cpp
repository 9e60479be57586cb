// SPDX-License-Identifier: Apache-2.0
// Axis names, mesh strings and rank arithmetic: what needs no ranks to be running.
#include <algorithm>
#include <charconv>
#include <numeric>

#include "tessera/base/error.h"
#include "tessera/base/text.h"
#include "tessera/mesh/mesh.h"

namespace tessera {
namespace {

constexpr int kMaxAxisSize = 1 << 20;

std::string canonical_name(std::string_view name) {
  if (name == "dp") return "dp_replicate";
  const auto& known = canonical_axes();
  if (std::find(known.begin(), known.end(), name) == known.end()) {
    throw ConfigError(fmt::format("mesh axis \"{}\" is not known; allowed: {}; did you mean \"{}\"?", name,
                                  fmt::join(known, ", "), base::nearest_word(name, known)));
  }
  return std::string(name);
}

Axis parse_axis(std::string_view part, std::string_view text) {
  const auto equals = part.find('=');
  const std::string_view digits = equals == std::string_view::npos ? "" : part.substr(equals + 1);
  int size = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), size);
  const bool number = error == std::errc{} && end == digits.data() + digits.size() && !digits.empty();
  check<ConfigError>(number, "mesh \"{}\": \"{}\" is not AXIS=SIZE, for instance dp=2,tp=2", text, part);
  return {canonical_name(part.substr(0, equals)), size};
}

std::size_t canonical_position(const std::string& name) {
  const auto& known = canonical_axes();
  return static_cast<std::size_t>(std::find(known.begin(), known.end(), name) - known.begin());
}

}  // namespace

const std::vector<std::string>& canonical_axes() {
  static const std::vector<std::string> kAxes{"pp", "dp_replicate", "dp_shard", "tp"};
  return kAxes;
}

std::vector<Axis> parse_axes(std::string_view text) {
  std::vector<Axis> axes;
  std::string_view rest = text;
  while (!rest.empty()) {
    const auto comma = rest.find(',');
    axes.push_back(parse_axis(rest.substr(0, comma), text));
    if (comma == std::string_view::npos) break;
    rest = rest.substr(comma + 1);
    check<ConfigError>(!rest.empty(), "mesh \"{}\" ends with a comma", text);
  }
  return axes;
}

std::string format_axes(const std::vector<Axis>& axes) {
  if (axes.empty()) return "1 rank";
  std::vector<std::string> parts;
  for (const Axis& axis : axes) parts.push_back(fmt::format("{}={}", axis.name, axis.size));
  return fmt::format("{}", fmt::join(parts, ","));
}

std::vector<Axis> resolve_axes(std::vector<Axis> axes, int world_size) {
  for (Axis& axis : axes) axis.name = canonical_name(axis.name);
  std::stable_sort(axes.begin(), axes.end(), [](const Axis& a, const Axis& b) {
    return canonical_position(a.name) < canonical_position(b.name);
  });
  std::int64_t product = 1;
  Axis* rest = nullptr;
  for (std::size_t i = 0; i < axes.size(); ++i) {
    Axis& axis = axes[i];
    check<ConfigError>(i == 0 || axes[i - 1].name != axis.name, "mesh axis {} is given twice", axis.name);
    check<ConfigError>(axis.size == -1 || (axis.size >= 1 && axis.size <= kMaxAxisSize),
                       "mesh axis {}={}: a size is at least 1 (or -1 once, for the rest of the ranks)", axis.name,
                       axis.size);
    if (axis.size == -1) {
      check<ConfigError>(rest == nullptr, "mesh axes {} and {} are both -1; only one axis can take the rest",
                         rest == nullptr ? "" : rest->name, axis.name);
      rest = &axis;
    } else {
      product *= axis.size;
    }
  }
  if (rest != nullptr && product > 0 && world_size % product == 0) {
    rest->size = static_cast<int>(world_size / product);
    product *= rest->size;
  }
  check<ConfigError>(product == world_size,
                     "mesh {} has {} ranks, but the job has {}; make the product of the axes {} or start {} ranks",
                     format_axes(axes), product, world_size, world_size, product);
  return axes;
}

std::vector<int> coordinates_of(int rank, const std::vector<Axis>& axes) {
  std::vector<int> coordinates(axes.size());
  for (std::size_t i = axes.size(); i-- > 0;) {
    coordinates[i] = rank % axes[i].size;
    rank /= axes[i].size;
  }
  return coordinates;
}

int rank_of(const std::vector<int>& coordinates, const std::vector<Axis>& axes) {
  int rank = 0;
  for (std::size_t i = 0; i < axes.size(); ++i) rank = rank * axes[i].size + coordinates[i];
  return rank;
}

}  // namespace tessera
