// SPDX-License-Identifier: Apache-2.0
// A rank's row for messages, with an arrow under one action.
#pragma once

#include <string>

#include "tessera/pipeline/schedule.h"

namespace tessera::pipeline {

/// Two lines: the actions around `position` ("..." where the row goes on), and an arrow under that one; a position at
/// the end of the row points behind it.
[[nodiscard]] std::string row_with_arrow(const Schedule& schedule, int rank, std::size_t position);

}  // namespace tessera::pipeline
