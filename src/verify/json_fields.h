// SPDX-License-Identifier: Apache-2.0
// Fields that several commands write as JSON.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "tessera/tensor/mesh_tensor.h"

namespace tessera::verify {

/// {"aten::sort": {"times": 2, "bytes": 192}}
[[nodiscard]] inline nlohmann::ordered_json json_of(const std::map<std::string, GatherCount>& gathers) {
  auto fields = nlohmann::ordered_json::object();
  for (const auto& [name, count] : gathers) fields[name] = {{"times", count.times}, {"bytes", count.bytes}};
  return fields;
}

}  // namespace tessera::verify
