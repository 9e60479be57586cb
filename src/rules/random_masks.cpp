// SPDX-License-Identifier: Apache-2.0
// Activations with a random mask: dropout and the randomised leaky ReLU.
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones_like.h>

#include "rules/families.h"
#include "rules/random_call.h"
#include "tensor/decision_cache.h"
#include "tensor/distributions.h"

namespace tessera::rules {
namespace {

using tensor::PhiloxStream;

void mask_rows(const OpCall& call, int axis, Rows& rows) { pointwise_rule().rows(call, axis, rows); }

/// native_dropout: the scaled input, and which elements were kept.
void compute_dropout(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                     torch::jit::Stack& stack) {
  const auto values = pop_arguments(op, stack);
  const Arguments call{op.schema(), values};
  const double p = call.number("p");
  call.require(p >= 0 && p <= 1, "p is {}; allowed: 0 to 1", p);
  const c10::IValue* train = call.find("train");
  const at::Tensor& input = call.first_tensor();
  if (train != nullptr && !train->toBool()) {
    stack.emplace_back(input.clone());
    stack.emplace_back(at::ones_like(input, input.options().dtype(at::kBool)));
    return;
  }
  const at::Tensor kept = at::empty_like(input, input.options().dtype(at::kBool));
  const PhiloxStream stream = tensor::MeshRuntime::of(mesh).next_stream();
  tensor::fill_bernoulli(kept, box_of(decision, mesh), stream, 1 - p);
  stack.emplace_back(input.mul(kept).mul_(p == 1 ? 0 : 1 / (1 - p)));
  stack.emplace_back(kept);
}

/// rrelu_with_noise(self, noise, lower, upper, training): negative elements times a slope that is drawn and left in
/// `noise`, where others have 1.
void compute_rrelu(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                   torch::jit::Stack& stack) {
  const auto values = pop_arguments(op, stack);
  const Arguments call{op.schema(), values};
  if (!call.find("training")->toBool()) {
    stack.insert(stack.end(), values.begin(), values.end());
    op.callBoxed(stack);
    return;
  }
  const double lower = call.number("lower");
  const double upper = call.number("upper");
  const at::Tensor self = call.first_tensor();
  const at::Tensor noise = call.find("noise")->toTensor();
  refuse_what_cannot_be_drawn(call, self);
  call.require(lower <= upper, "lower = {} is above upper = {}", lower, upper);
  tensor::fill_uniform(noise, box_of(decision, mesh), tensor::MeshRuntime::of(mesh).next_stream(), lower, upper);
  noise.masked_fill_(self.gt(0), 1);
  stack.emplace_back(call.in_place() ? self.mul_(noise) : self.mul(noise));
}

template <tensor::Compute kWork>
void localise_mask(const OpCall& call, Decision& decision) {
  decision.notes.assign(call.tensor(0).sizes.begin(), call.tensor(0).sizes.end());
  decision.compute = kWork;
}

}  // namespace

void add_random_mask_rules(RuleTable& table) {
  table["aten::native_dropout"] = {.rows = mask_rows, .localise = localise_mask<compute_dropout>, .cuts = Cuts::kAny};
  table["aten::rrelu_with_noise"] = {.rows = mask_rows, .localise = localise_mask<compute_rrelu>, .cuts = Cuts::kAny};
}

}  // namespace tessera::rules
