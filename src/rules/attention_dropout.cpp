// SPDX-License-Identifier: Apache-2.0
// Which kernel attention takes. Where it drops probabilities: fused kernels draw from the device's generator, so it
// runs in its plain form, whose dropout draws as every other on a mesh.
#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/_scaled_dot_product_attention_math.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scaled_dot_product_attention_native.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <limits>
#include <mutex>

#include "rules/composites.h"

namespace tessera::rules {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

/// The plain form adds its mask: false means minus infinity.
OptionalTensor additive(const OptionalTensor& mask, const at::Tensor& query) {
  if (!mask || mask->scalar_type() != at::kBool) return mask;
  return at::zeros_like(*mask, query.options())
      .masked_fill(mask->logical_not(), -std::numeric_limits<double>::infinity());
}

/// The choice of a kernel looks at no data: all ranks choose by what one device would see.
at::Tensor seen(const at::Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  const at::Tensor result = at::empty({0}, tensor.options());
  result.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides());
  return at::Tensor(result).requires_grad_(tensor.requires_grad());
}

std::int64_t choice(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const OptionalTensor& mask,
                    double dropout_p, bool is_causal, std::optional<double> scale, bool enable_gqa) {
  const OptionalTensor seen_mask = mask ? OptionalTensor(seen(*mask)) : std::nullopt;
  return at::_fused_sdp_choice(seen(query), seen(key), seen(value), seen_mask, dropout_p, is_causal, scale, enable_gqa);
}

/// LibTorch settles at its first choice of a GPU's kernel in which order it prefers them, and threads that come
/// meanwhile choose by another order: ranks would call different operators.
void settle_kernel_order(c10::Device device) {
  if (!device.is_cuda()) return;
  static std::once_flag once;
  std::call_once(once, [&] {
    const at::Tensor sample = at::zeros({1, 1, 8, 8}, at::TensorOptions(device).dtype(at::kHalf));
    (void)at::_fused_sdp_choice(sample, sample, sample);
  });
}

at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const OptionalTensor& mask, double dropout_p, bool is_causal, std::optional<double> scale,
                     bool enable_gqa) {
  if (dropout_p == 0) {
    settle_kernel_order(query.device());
    return at::native::scaled_dot_product_attention(query, key, value, mask, dropout_p, is_causal, scale, enable_gqa);
  }
  return std::get<0>(at::_scaled_dot_product_attention_math(query, key, value, additive(mask, query), dropout_p,
                                                            is_causal,
                                                            /*dropout_mask=*/std::nullopt, scale, enable_gqa));
}

}  // namespace

void add_attention_composites(torch::Library& library) {
  library.impl("scaled_dot_product_attention", attention);
  library.impl("_fused_sdp_choice", choice);
}

}  // namespace tessera::rules
