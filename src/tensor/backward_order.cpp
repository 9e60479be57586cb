// SPDX-License-Identifier: Apache-2.0
// Sequence numbers of autograd nodes, raised by stage.
#include "tensor/backward_order.h"

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <queue>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>

namespace tessera::tensor {
namespace {

using torch::autograd::Node;

/// Sums into gradients go first in any case.
bool is_sum_into_gradient(const Node& node) {
  return node.sequence_nr() == std::numeric_limits<std::uint64_t>::max();
}

/// Nodes below a root, each after all that it gets gradients from.
class Walk {
 public:
  /// `stage`: that of the node which leads here.
  void reach(Node* node, int stage) {
    if (node == nullptr) return;
    if (is_sum_into_gradient(*node)) {
      sums_.insert(node);
      return;
    }
    const auto [found, is_new] = stages_.try_emplace(node, stage);
    if (is_new) {
      waiting_.emplace(ForwardStages::without_stage(node->sequence_nr()), node);
    } else {
      found->second = std::min(found->second, stage);
    }
  }
  /// The next node and the earliest stage that leads to it; null at the end.
  std::pair<Node*, int> next() {
    if (waiting_.empty()) return {nullptr, 0};
    Node* node = waiting_.top().second;
    waiting_.pop();
    return {node, stages_.at(node)};
  }
  [[nodiscard]] std::vector<at::Tensor> leaves() const {
    std::vector<at::Tensor> leaves;
    for (Node* node : sums_) {
      if (const auto* sum = dynamic_cast<const torch::autograd::AccumulateGrad*>(node)) leaves.push_back(sum->variable);
    }
    return leaves;
  }

 private:
  std::priority_queue<std::pair<std::uint64_t, Node*>> waiting_;
  std::unordered_map<Node*, int> stages_;
  std::unordered_set<Node*> sums_;
};

}  // namespace

std::vector<at::Tensor> go_back_stage_by_stage(const at::Tensor& root, const ForwardStages& forward) {
  Walk walk;
  walk.reach(root.grad_fn().get(), std::numeric_limits<StageSet>::digits - 1);
  for (auto [node, stage] = walk.next(); node != nullptr; std::tie(node, stage) = walk.next()) {
    // What ran on several stages has its gradient on one of them; a node that is none of a mesh goes with its neighbours.
    const StageSet ran = forward.of(node->sequence_nr());
    if (ran != 0) stage = std::countr_zero(ran);
    node->set_sequence_nr(ForwardStages::on_stage(node->sequence_nr(), stage));
    for (const torch::autograd::Edge& edge : node->next_edges()) walk.reach(edge.function.get(), stage);
  }
  return walk.leaves();
}

}  // namespace tessera::tensor
