// SPDX-License-Identifier: Apache-2.0
// The spelling of dtypes in weights files.
#pragma once

#include <c10/core/ScalarType.h>

#include <optional>
#include <string>
#include <string_view>

namespace tessera::checkpoint {

[[nodiscard]] std::optional<c10::ScalarType> parse_dtype(std::string_view name);
/// Empty for a dtype that weights files do not have.
[[nodiscard]] std::string_view dtype_name(c10::ScalarType dtype);
/// "F64, F32, ...", for messages.
[[nodiscard]] std::string all_dtype_names();

/// Text from a file, fit to stand in a one-line message: control characters escaped, at most 100 bytes.
[[nodiscard]] std::string printable(std::string_view text);

}  // namespace tessera::checkpoint
