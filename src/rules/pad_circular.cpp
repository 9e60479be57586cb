// SPDX-License-Identifier: Apache-2.0
// Circular padding: LibTorch writes it into slices of a plain tensor, which would gather the whole.
#include <ATen/ops/cat.h>

#include <algorithm>

#include "rules/composites.h"

namespace tessera::rules {
namespace {

/// `self` with `before` and `after` elements of its other end beside it along `dim`; negative ones are cut off.
at::Tensor wrap_around(const at::Tensor& self, std::int64_t dim, std::int64_t before, std::int64_t after) {
  if (before == 0 && after == 0) return self;
  const at::Tensor inner =
      self.slice(dim, std::max<std::int64_t>(-before, 0), self.size(dim) - std::max<std::int64_t>(-after, 0));
  const std::int64_t size = inner.size(dim);
  TORCH_CHECK_VALUE(before <= size && after <= size, "circular padding of ", before, " and ", after, " along dim ", dim,
                    ", which has ", size, " elements; allowed: at most as many");
  // Empty where nothing is added.
  return at::cat({inner.slice(dim, size - std::max<std::int64_t>(before, 0), size), inner,
                  inner.slice(dim, 0, std::max<std::int64_t>(after, 0))},
                 dim);
}

// _pad_circular(self, pad): pairs, the last dim's first
at::Tensor pad_circular(const at::Tensor& self, c10::SymIntArrayRef pad) {
  const at::IntArrayRef amounts = C10_AS_INTARRAYREF_SLOW(pad);
  at::Tensor result = self;
  for (std::size_t pair = 0; 2 * pair + 1 < amounts.size(); ++pair) {
    result =
        wrap_around(result, self.dim() - 1 - static_cast<std::int64_t>(pair), amounts[2 * pair], amounts[2 * pair + 1]);
  }
  return result;
}

}  // namespace

void add_padding_composites(torch::Library& library) { library.impl("_pad_circular", pad_circular); }

}  // namespace tessera::rules
