// SPDX-License-Identifier: Apache-2.0
// Samples of categories: multinomial.
#include <ATen/ops/empty.h>
#include <ATen/ops/searchsorted.h>

#include "rules/families.h"
#include "rules/random_call.h"
#include "tensor/decision_cache.h"
#include "tensor/distributions.h"

namespace tessera::rules {
namespace {

using tensor::Box;
using tensor::PhiloxStream;

/// multinomial(self [C] or [N, C], num_samples, replacement): rows stand alone.
void multinomial_rows(const OpCall& call, int axis, Rows& rows) {
  if (call.tensor(0).dim() == 2 && sharded_dim(call, 0, axis) == 0) add_row(call, rows, {S(0)}, {S(0)});
}

/// With replacement: where a uniform number falls among the summed probabilities. Without: the largest of p / e, where
/// e is drawn from the exponential distribution, as LibTorch does.
at::Tensor sample_rows(const at::Tensor& weights, std::int64_t num_samples, bool replacement, const Box& drawn,
                       const PhiloxStream& stream) {
  Sizes sizes;
  for (const Extent& extent : drawn.extents) sizes.push_back(extent.length);
  const at::Tensor numbers = at::empty(sizes, weights.options());
  if (!replacement) {
    tensor::fill_exponential(numbers, drawn, stream, 1);
    return std::get<1>(weights.div(numbers).topk(num_samples, -1));
  }
  tensor::fill_uniform(numbers, drawn, stream, 0, 1);
  const at::Tensor sums = weights.cumsum(-1);
  // Divided by its own last element, the last is 1 and above every number that is drawn.
  return at::searchsorted(sums.div(sums.narrow(-1, sums.size(-1) - 1, 1)), numbers, /*out_int32=*/false,
                          /*right=*/true);
}

void compute_multinomial(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                         torch::jit::Stack& stack) {
  const auto values = pop_arguments(op, stack);
  const Arguments call{op.schema(), values};
  const std::int64_t num_samples = call.find("num_samples")->toInt();
  const bool replacement = call.find("replacement")->toBool();
  const at::Tensor weights = call.first_tensor().to(at::kDouble);
  refuse_what_cannot_be_drawn(call, call.first_tensor());
  call.require(num_samples > 0 && (replacement || num_samples <= weights.size(-1)),
               "num_samples is {} of {} categories; allowed: 1 and above, without replacement at most as many",
               num_samples, weights.size(-1));
  const bool legal =
      weights.ge(0).logical_and(weights.isfinite()).all().item<bool>() && weights.sum(-1).gt(0).all().item<bool>();
  call.require(legal, "a probability is negative or not finite, or all of a row are zero");
  Sizes drawn(decision.notes.begin(), decision.notes.end());
  if (replacement) drawn.back() = num_samples;
  stack.emplace_back(sample_rows(weights, num_samples, replacement, Box::of(drawn, decision.outputs[0], mesh),
                                 tensor::MeshRuntime::of(mesh).next_stream()));
}

void localise_multinomial(const OpCall& call, Decision& decision) {
  decision.notes.assign(call.tensor(0).sizes.begin(), call.tensor(0).sizes.end());
  decision.compute = compute_multinomial;
}

}  // namespace

void add_sampling_rules(RuleTable& table) {
  table["aten::multinomial"] = {.rows = multinomial_rows, .localise = localise_multinomial, .cuts = Cuts::kAny};
}

}  // namespace tessera::rules
