// SPDX-License-Identifier: Apache-2.0
// Where a call runs whose tensors lie on pipeline stages.
#pragma once

#include "tensor/rule.h"

namespace tessera::tensor {

/// Chooses the stages and fills in the placements on axis pp. See tessera/tensor/stages.h for the rules.
void choose_stages(const OpCall& call, Decision& decision);

}  // namespace tessera::tensor
