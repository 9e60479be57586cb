// SPDX-License-Identifier: Apache-2.0
// What a read throws that would miss a write.
#pragma once

#include "tessera/base/error.h"

namespace tessera::tensor {

/// MeshStorage::local() of a tensor whose base or view was written in other memory. An operator puts its name in front.
class StaleRead : public ShapeError {
 public:
  using ShapeError::ShapeError;
};

}  // namespace tessera::tensor
