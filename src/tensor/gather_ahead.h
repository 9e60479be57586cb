// SPDX-License-Identifier: Apache-2.0
// Gathers parameters that are sharded to save memory before they are used, in the order learned in the step before.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "tensor/redistribute.h"

namespace tessera::tensor {

/// The gathers of one module. Uses are recorded from the end of one backward to the end of the next. While a step goes
/// as the one before it, the gathers of the next uses are under way, as many as fit into the window. When a use comes
/// that was not expected, nothing more is gathered ahead until backward ends, and the order of that step is the one
/// from then on; what was gathered in vain is used when its turn comes, or dropped when backward ends. A pass without
/// backward (evaluation) ends when the first use of the order comes again.
///
/// Order   uses, writes and ends of backward come in the same order on all ranks that hold the shards, which makes
/// their
///         gathers the same; ranks without data take no part
class GatherAhead {
 public:
  /// `window_bytes`: of values that are gathered, or being gathered, and not yet used.
  explicit GatherAhead(std::int64_t window_bytes) : window_bytes_(window_bytes) {}
  ~GatherAhead() = default;
  GatherAhead(const GatherAhead&) = delete;
  GatherAhead& operator=(const GatherAhead&) = delete;

  /// The whole of a dim that `axis` cuts, of which this rank has `shard`: memory of a parameter.
  [[nodiscard]] at::Tensor gather(const at::Tensor& shard, std::int64_t dim, const DimCut& cut, const Mesh& mesh,
                                  int axis);
  /// The shard's memory was written: what was gathered of it is out of date.
  void forget(const at::Tensor& shard);
  /// Backward has ended.
  void end_step();

 private:
  /// One gather of the order. Does not keep the shard alive.
  struct Use {
    Use(const at::Tensor& shard, std::int64_t dim, const DimCut& cut, const Mesh& mesh, int axis);
    [[nodiscard]] bool operator==(const Use& other) const;
    [[nodiscard]] bool is_of(const at::Tensor& tensor) const;
    /// Undefined if its memory is gone.
    [[nodiscard]] at::Tensor shard() const;
    [[nodiscard]] std::int64_t whole_bytes() const;

    c10::weak_intrusive_ptr<c10::StorageImpl> memory;
    at::TensorOptions options;
    std::vector<std::int64_t> sizes;
    std::vector<std::int64_t> strides;
    std::int64_t offset;
    std::int64_t dim;
    DimCut cut;
    int axis;
    comm::Communicator group;
  };

  /// A gather under way.
  struct Started {
    Use use;
    ShardRows rows;
    at::Tensor gathered;
    comm::Pending pending;
  };

  void follow(const Use& use);
  [[nodiscard]] at::Tensor take(const Use& use);
  void start_next();
  void drop_if(const std::function<bool(const Started&)>& unwanted);

  std::int64_t window_bytes_;
  std::vector<Use> order_;
  std::vector<Use> recording_;
  /// This step has gone as the order says, up to `next_`; gathers were started up to `start_`.
  bool follows_ = false;
  std::size_t next_ = 0;
  std::size_t start_ = 0;
  std::deque<Started> started_;
  std::int64_t started_bytes_ = 0;
};

/// `tensor` was written, not through an operator.
void forget_gathered(const at::Tensor& tensor);

}  // namespace tessera::tensor
