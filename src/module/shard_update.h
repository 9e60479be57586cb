// SPDX-License-Identifier: Apache-2.0
// An element-wise update of a few tensors that belong together, on this rank's part of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <utility>
#include <vector>

#include "module/coalesced_gather.h"
#include "tessera/mesh/mesh.h"

namespace tessera::module {

/// Opens tensors of the same sizes (a parameter, its gradient, its optimizer state) as dense local memory whose
/// elements correspond one to one, lets a kernel run over it, and brings what was written back to where each tensor
/// lies.
///
///   ShardUpdate update(state);
///   kernel(update.write(parameter), update.read(gradient), update.write(state));
///   update.finish(gathers);
///   gathers.flush();  // of many updates
///
/// Order     open and finish are collective where tensors lie differently from `like`
class ShardUpdate {
 public:
  /// The update runs where `like` lies, in the order of its memory.
  explicit ShardUpdate(const at::Tensor& like);

  /// The local part of `tensor`, for reading.
  [[nodiscard]] at::Tensor read(const at::Tensor& tensor) const;
  /// The same for writing; reaches `tensor` in finish().
  [[nodiscard]] at::Tensor write(const at::Tensor& tensor);
  /// Brings what was written home, and tells autograd that it changed. What has to be gathered for that comes home with
  /// others, in gathers.flush() at the latest.
  void finish(CoalescedGather& gathers);

 private:
  void bring_home(const at::Tensor& tensor, const at::Tensor& opened, CoalescedGather& gathers) const;

  std::optional<Mesh> mesh_;
  Placements placements_;
  at::Tensor like_;
  std::vector<std::pair<at::Tensor, at::Tensor>> written_;
};

}  // namespace tessera::module
