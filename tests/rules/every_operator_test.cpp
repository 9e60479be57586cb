// SPDX-License-Identifier: Apache-2.0
// Every rule against plain tensors: forward and gradients equal for every placement of every input, on even and uneven
// meshes, without a replicated fallback.
#include <gtest/gtest.h>

#include <torch/torch.h>

#include <algorithm>
#include <cctype>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "support/ranks.h"
#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

struct Case {
  std::string name;
  std::function<Tensors()> inputs;
  std::function<Tensors(const Tensors&)> run;
};

Tensor values(at::IntArrayRef sizes) {
  const Tensor ramp = at::arange(c10::multiply_integers(sizes), at::kDouble).view(sizes);
  return (ramp * 0.7 + 0.3).sin();
}
Tensor indices(at::IntArrayRef sizes, std::int64_t limit) {
  return (at::arange(c10::multiply_integers(sizes), at::kLong) * 5 + 3).remainder(limit).view(sizes);
}

const std::vector<Case>& cases() {
  static const std::vector<Case> kCases{
      {"add_broadcast", [] { return Tensors{values({4, 6}), values({6})}; }, [](const Tensors& x) { return Tensors{x[0] + x[1]}; }},
      {"sub_scalar", [] { return Tensors{values({4, 6})}; }, [](const Tensors& x) { return Tensors{x[0] - 2.0}; }},
      {"mul", [] { return Tensors{values({4, 6}), values({4, 1})}; }, [](const Tensors& x) { return Tensors{x[0] * x[1]}; }},
      {"div", [] { return Tensors{values({4, 6}), values({4, 6}) + 2}; }, [](const Tensors& x) { return Tensors{x[0] / x[1]}; }},
      {"relu_gelu", [] { return Tensors{values({5, 3})}; }, [](const Tensors& x) { return Tensors{torch::relu(x[0]), torch::gelu(x[0], "tanh"), torch::sigmoid(x[0]), torch::tanh(x[0])}; }},
      {"where", [] { return Tensors{values({4, 6}), values({6})}; }, [](const Tensors& x) { return Tensors{torch::where(x[0] > 0, x[0], x[1])}; }},
      {"in_place", [] { return Tensors{values({4, 6}), values({4, 6})}; }, [](const Tensors& x) { Tensor y = x[0].clone(); y.mul_(2).add_(x[1], 0.5).addcmul_(x[1], x[1], 0.1); return Tensors{y}; }},
      {"zeros_like", [] { return Tensors{values({4, 6})}; }, [](const Tensors& x) { return Tensors{torch::zeros_like(x[0]) + x[0], torch::ones_like(x[0]) * x[0]}; }},
      {"mm", [] { return Tensors{values({4, 6}), values({6, 5})}; }, [](const Tensors& x) { return Tensors{torch::mm(x[0], x[1])}; }},
      {"addmm", [] { return Tensors{values({5}), values({4, 6}), values({6, 5})}; }, [](const Tensors& x) { return Tensors{torch::addmm(x[0], x[1], x[2])}; }},
      {"linear", [] { return Tensors{values({2, 4, 6}), values({5, 6}), values({5})}; }, [](const Tensors& x) { return Tensors{torch::nn::functional::linear(x[0], x[1], x[2])}; }},
      {"bmm", [] { return Tensors{values({2, 4, 6}), values({2, 6, 5})}; }, [](const Tensors& x) { return Tensors{torch::bmm(x[0], x[1])}; }},
      {"baddbmm", [] { return Tensors{values({2, 4, 5}), values({2, 4, 6}), values({2, 6, 5})}; }, [](const Tensors& x) { return Tensors{torch::baddbmm(x[0], x[1], x[2])}; }},
      {"matmul_mv", [] { return Tensors{values({4, 6}), values({6})}; }, [](const Tensors& x) { return Tensors{torch::mv(x[0], x[1]), torch::dot(x[1], x[1])}; }},
      {"transpose_permute", [] { return Tensors{values({2, 4, 6})}; }, [](const Tensors& x) { return Tensors{x[0].transpose(1, 2), x[0].permute({2, 0, 1}), x[0].select(1, 2), x[0].unsqueeze(1).squeeze(1)}; }},
      {"view_merge_split", [] { return Tensors{values({4, 6, 2})}; }, [](const Tensors& x) { return Tensors{x[0].reshape({24, 2}), x[0].view({4, 12}), x[0].view({2, 2, 6, 2}), x[0].view({4, 3, 2, 2})}; }},
      {"as_strided_windows", [] { return Tensors{values({4, 10})}; }, [](const Tensors& x) { return Tensors{x[0].as_strided({4, 4, 3}, {10, 2, 1}), x[0].as_strided({4, 3, 4}, {10, 1, 2}, 1), x[0].as_strided({4, 1, 5}, {10, 7, 2}), x[0].as_strided({2, 3}, {20, 3}, 10)}; }},
      {"as_strided_patches", [] { return Tensors{values({4, 2, 5, 6})}; }, [](const Tensors& x) { return Tensors{x[0].as_strided({4, 2, 4, 3, 2, 2}, {60, 30, 6, 2, 6, 1}), x[0].transpose(2, 3).as_strided({4, 5, 6}, {60, 6, 1}, 30)}; }},
      {"stft", [] { return Tensors{values({4, 12}), values({4})}; }, [](const Tensors& x) { return Tensors{torch::view_as_real(torch::stft(x[0], 4, 2, 4, x[1], /*center=*/false, "reflect", /*normalized=*/false, /*onesided=*/true, /*return_complex=*/true))}; }},
      {"expand", [] { return Tensors{values({4, 1})}; }, [](const Tensors& x) { return Tensors{x[0].expand({4, 3}), x[0].expand({2, 4, 3})}; }},
      {"squeeze", [] { return Tensors{values({4, 1, 2})}; }, [](const Tensors& x) { return Tensors{x[0].squeeze()}; }},
      {"slice_split", [] { return Tensors{values({4, 6})}; }, [](const Tensors& x) { const auto parts = x[0].split(2, 1); const auto rows = x[0].unbind(0); return Tensors{x[0].slice(1, 1, 5), x[0].narrow(0, 1, 2), parts[0] * parts[2], rows[1] + rows[3]}; }},
      {"cat_stack", [] { return Tensors{values({4, 6}), values({4, 6}) * 2}; }, [](const Tensors& x) { return Tensors{torch::cat({x[0], x[1]}, 1), torch::cat({x[0], x[1]}, 0), torch::stack({x[0], x[1]}, 1)}; }},
      {"reductions", [] { return Tensors{values({4, 6})}; }, [](const Tensors& x) { return Tensors{x[0].sum(), x[0].sum({1}), x[0].mean(), x[0].mean({0}, true), x[0].amax({1}), x[0].logsumexp({1}), x[0].norm(), torch::linalg_vector_norm(x[0], 3.0, {1}, false, c10::nullopt)}; }},
      {"extremes", [] { return Tensors{values({5, 3})}; }, [](const Tensors& x) { return Tensors{x[0].max(), x[0].min(), x[0].amin({0})}; }},
      {"softmax", [] { return Tensors{values({4, 6})}; }, [](const Tensors& x) { return Tensors{torch::softmax(x[0], 1), torch::log_softmax(x[0], 0)}; }},
      {"layer_norm", [] { return Tensors{values({4, 3, 6}), values({6}), values({6})}; }, [](const Tensors& x) { return Tensors{torch::layer_norm(x[0], {6}, x[1], x[2])}; }},
      {"group_norm", [] { return Tensors{values({4, 8, 3, 3}), values({8}), values({8})}; }, [](const Tensors& x) { return Tensors{torch::group_norm(x[0], 4, x[1], x[2])}; }},
      {"conv2d", [] { return Tensors{values({4, 6, 5, 5}), values({8, 6, 3, 3}), values({8})}; }, [](const Tensors& x) { return Tensors{torch::conv2d(x[0], x[1], x[2], 2, 1)}; }},
      {"conv2d_groups", [] { return Tensors{values({4, 6, 5, 5}), values({8, 3, 3, 3})}; }, [](const Tensors& x) { return Tensors{torch::conv2d(x[0], x[1], {}, 1, 1, 1, 2)}; }},
      {"pooling", [] { return Tensors{values({4, 3, 6, 6})}; }, [](const Tensors& x) { return Tensors{torch::max_pool2d(x[0], 2), torch::avg_pool2d(x[0], 2)}; }},
      {"embedding", [] { return Tensors{values({7, 4}), indices({3, 5}, 7)}; }, [](const Tensors& x) { return Tensors{torch::embedding(x[0], x[1])}; }},
      {"attention", [] { return Tensors{values({2, 4, 5, 3}), values({2, 4, 5, 3}) * 2, values({2, 4, 5, 3}) + 1}; }, [](const Tensors& x) { return Tensors{torch::scaled_dot_product_attention(x[0], x[1], x[2], {}, 0.0, true)}; }},
      {"reshape_transposed", [] { return Tensors{values({3, 4, 5, 2})}; }, [](const Tensors& x) { return Tensors{x[0].transpose(2, 3).reshape({12, 2, 5}), x[0].transpose(1, 2).flatten(1, 2), x[0].select(3, 1).transpose(0, 2).flatten(0, 1), torch::matmul(x[0], x[0].transpose(2, 3))}; }},
      {"cross_entropy", [] { return Tensors{values({10, 7}), indices({10}, 7)}; }, [](const Tensors& x) { return Tensors{torch::nn::functional::cross_entropy(x[0], x[1])}; }},
      {"cross_entropy_ignore", [] { return Tensors{values({10, 7}), indices({10}, 7)}; }, [](const Tensors& x) { namespace F = torch::nn::functional; return Tensors{F::cross_entropy(x[0], x[1], F::CrossEntropyFuncOptions().ignore_index(3)), F::cross_entropy(x[0], x[1], F::CrossEntropyFuncOptions().reduction(torch::kSum)), F::cross_entropy(x[0], x[1], F::CrossEntropyFuncOptions().reduction(torch::kNone))}; }},
      {"gather_take", [] { return Tensors{values({4, 6}), indices({4, 6}, 4)}; }, [](const Tensors& x) { return Tensors{torch::gather(x[0], 0, x[1]), torch::take(x[0].detach(), x[1])}; }},
      {"scatter", [] { return Tensors{values({4, 6}), values({4, 6}) + 2}; }, [](const Tensors& x) { const Tensor index = (torch::arange(4).unsqueeze(1) + torch::arange(6)).remainder(4).to(x[0].device()); return Tensors{torch::scatter(x[0], 0, index, x[1]), torch::scatter_add(x[0], 1, index, x[1]), torch::scatter_reduce(x[0], 0, index, x[1], "amax")}; }},
      {"index", [] { return Tensors{values({4, 6, 3}), indices({2, 5}, 4)}; }, [](const Tensors& x) { return Tensors{torch::index(x[0], {x[1]}), torch::index(x[0], {c10::nullopt, x[1]}), torch::index(x[0], {x[1], c10::nullopt, x[1].remainder(3)}), torch::index_select(x[0], 1, x[1].flatten())}; }},
      {"index_writes", [] { return Tensors{values({4, 6}), values({3, 6}) + 2}; }, [](const Tensors& x) { const Tensor rows = torch::tensor({2, 0, 3}).to(x[0].device()); return Tensors{torch::index_put(x[0], {rows}, x[1]), torch::index_put(x[0], {rows}, x[1], true), torch::index_add(x[0], 0, rows, x[1], 0.5), torch::index_copy(x[0], 0, rows, x[1]), torch::index_fill(x[0], 1, rows, 2.0)}; }},
      {"slice_writes", [] { return Tensors{values({4, 6}), values({4, 2}) + 2, values({6}) + 3}; }, [](const Tensors& x) { return Tensors{torch::slice_scatter(x[0], x[1], 1, 1, 3), torch::select_scatter(x[0], x[2], 0, 2), torch::diagonal_scatter(x[0], x[2].narrow(0, 0, 4))}; }},
      {"buckets", [] { return Tensors{values({4, 6}), values({5})}; }, [](const Tensors& x) { const Tensor edges = torch::tensor({-0.5, 0.1, 0.6}, torch::kDouble).to(x[0].device()); return Tensors{torch::bucketize(x[0], edges).to(torch::kDouble) * x[0], torch::searchsorted(edges, x[1]).to(torch::kDouble) * x[1], torch::isin((x[0] * 4).round(), (x[1].detach() * 4).round()).to(torch::kDouble) * x[0]}; }},
      {"sort_topk", [] { return Tensors{values({5, 7})}; }, [](const Tensors& x) { return Tensors{std::get<0>(torch::sort(x[0], 1)), std::get<0>(torch::topk(x[0], 3, 0)), std::get<0>(torch::kthvalue(x[0], 2, 1)), std::get<0>(torch::median(x[0], 0)), std::get<0>(torch::mode(x[0], 1)), torch::renorm(x[0], 2, 0, 1.0)}; }},
      {"scans", [] { return Tensors{values({5, 7}) + 2}; }, [](const Tensors& x) { return Tensors{torch::cumsum(x[0], 1), torch::cumprod(x[0], 0), std::get<0>(torch::cummax(x[0], 1)), torch::logcumsumexp(x[0], 0)}; }},
      {"moments", [] { return Tensors{values({5, 7})}; }, [](const Tensors& x) { return Tensors{torch::var(x[0], 1), torch::std(x[0]), torch::var(x[0], at::IntArrayRef{0}, at::Scalar(0), true), std::get<0>(torch::var_mean(x[0], at::IntArrayRef{0, 1}, at::Scalar(1))), torch::logsumexp(x[0], at::IntArrayRef{0, 1}), torch::prod(x[0].detach() + 2) * x[0], torch::prod(x[0] + 2, 0), torch::nansum(x[0], at::IntArrayRef{0})}; }},
      {"truths_and_counts", [] { return Tensors{values({5, 7})}; }, [](const Tensors& x) { return Tensors{x[0] * torch::any(x[0] > 0.9), x[0] * torch::all(x[0] > -2, 1, true), x[0] * torch::count_nonzero(x[0] > 0), x[0] * torch::histc(x[0].detach(), 3, -1, 2).select(0, 1), x[0] * torch::argmax(x[0], 1, true)}; }},
      {"arrange", [] { return Tensors{values({4, 6})}; }, [](const Tensors& x) { return Tensors{torch::flip(x[0], {1}), torch::roll(x[0], 2, 0), torch::rot90(x[0]), x[0].repeat({2, 1, 1}), torch::tril(x[0]), torch::triu(x[0], 1), torch::constant_pad_nd(x[0], {1, 2}), torch::diag_embed(x[0]), torch::diagonal(x[0], 1), x[0].unfold(1, 3, 2)}; }},
      {"pad_planes", [] { return Tensors{values({4, 3, 5, 6})}; }, [](const Tensors& x) { return Tensors{torch::reflection_pad2d(x[0], {1, 2, 0, 1}), torch::replication_pad2d(x[0], {1, 2, 0, 1})}; }},
      {"resample", [] { return Tensors{values({4, 3, 6, 6})}; }, [](const Tensors& x) { return Tensors{torch::upsample_nearest2d(x[0], {12, 9}), torch::upsample_bilinear2d(x[0], {4, 9}, false), torch::upsample_bicubic2d(x[0], {7, 9}, true), torch::adaptive_avg_pool2d(x[0], {2, 3}), std::get<0>(torch::adaptive_max_pool2d(x[0], {2, 3}))}; }},
      {"grid_sample", [] { return Tensors{values({4, 3, 5, 5}), values({4, 2, 3, 2}) * 0.8}; }, [](const Tensors& x) { return Tensors{torch::grid_sampler_2d(x[0], x[1], 0, 0, false)}; }},
      {"batch_norm", [] { return Tensors{values({6, 4, 3}), values({4}) + 2, values({4})}; }, [](const Tensors& x) { return Tensors{torch::batch_norm(x[0], x[1], x[2], {}, {}, true, 0.1, 1e-5, false)}; }},
      {"batch_norm_of_nothing", [] { return Tensors{values({0, 4, 3}), values({4}) + 2, values({4}), values({0})}; }, [](const Tensors& x) { return Tensors{torch::batch_norm(x[0], x[1], x[2], {}, {}, true, 0.1, 1e-5, false), torch::batch_norm(x[3], {}, {}, {}, {}, true, 0.1, 1e-5, false)}; }},
      {"matrices", [] { return Tensors{values({3, 4, 4}) + 3 * torch::eye(4, torch::kDouble)}; }, [](const Tensors& x) { return Tensors{torch::linalg_det(x[0]), torch::linalg_inv(x[0]), std::get<0>(torch::linalg_qr(x[0])), torch::linalg_cholesky(x[0].matmul(x[0].mT()) + torch::eye(4, torch::kDouble).to(x[0].device()))}; }},
      {"solve", [] { return Tensors{values({3, 4, 4}) + 3 * torch::eye(4, torch::kDouble), values({3, 4, 2})}; }, [](const Tensors& x) { return Tensors{torch::linalg_solve(x[0], x[1])}; }},
      {"distances", [] { return Tensors{values({2, 5, 3}), values({2, 4, 3}) + 2}; }, [](const Tensors& x) { return Tensors{torch::cdist(x[0], x[1]), torch::linalg_cross(x[0].narrow(1, 0, 4), x[1])}; }},
      {"fourier", [] { return Tensors{values({4, 6})}; }, [](const Tensors& x) { return Tensors{torch::abs(torch::fft_rfft(x[0], c10::nullopt, 1)), torch::fft_irfft(torch::fft_rfft(x[0], c10::nullopt, 0), 4, 0)}; }},
      {"added_products", [] { return Tensors{values({4}), values({4, 6}), values({6})}; }, [](const Tensors& x) { return Tensors{torch::addmv(x[0], x[1], x[2]), torch::addr(x[1], x[0], x[2])}; }},
      {"added_batch_sum", [] { return Tensors{values({4, 5}), values({3, 4, 6}), values({3, 6, 5})}; }, [](const Tensors& x) { return Tensors{torch::addbmm(x[0], x[1], x[2])}; }},
      {"margins", [] { return Tensors{values({5, 4}), indices({5}, 4)}; }, [](const Tensors& x) { return Tensors{torch::multi_margin_loss(x[0], x[1]), torch::multi_margin_loss(x[0], x[1], 1, 1, {}, at::Reduction::None)}; }},
      {"binary_losses", [] { return Tensors{values({5, 3}), values({5, 3}) * 0.4 + 0.5}; }, [](const Tensors& x) { return Tensors{torch::binary_cross_entropy(torch::sigmoid(x[0]), x[1].detach()), torch::binary_cross_entropy_with_logits(x[0], x[1], {}, {}, at::Reduction::Sum), torch::soft_margin_loss(x[0], x[1].detach().sign())}; }},
      {"embedding_bag", [] { return Tensors{values({7, 4}), indices({6}, 7)}; }, [](const Tensors& x) { return Tensors{std::get<0>(torch::embedding_bag(x[0], x[1], torch::tensor({0, 2, 5}).to(x[0].device()))), std::get<0>(torch::embedding_bag(x[0], x[1], torch::tensor({0, 2, 5}).to(x[0].device()), false, 2))}; }},
      {"foreach", [] { return Tensors{values({4, 6}), values({6}) + 2}; }, [](const Tensors& x) { const auto sums = torch::_foreach_add(x, x); const auto products = torch::_foreach_mul(x, 2.0); const auto norms = torch::_foreach_norm(x, 3); const auto least = torch::_foreach_norm(x, -std::numeric_limits<double>::infinity()); const auto largest = torch::_foreach_max(x); return Tensors{sums[0], sums[1], products[0], products[1], norms[0], norms[1], least[0], least[1], largest[0], largest[1]}; }},
      {"glu_prelu", [] { return Tensors{values({4, 6}), values({6})}; }, [](const Tensors& x) { return Tensors{torch::glu(x[0], 1), torch::prelu(x[0], x[1]), torch::leaky_relu(x[0]), torch::log_sigmoid(x[0]), torch::hardswish(x[0])}; }},
      {"conv1d_transposed", [] { return Tensors{values({4, 6, 5}), values({6, 3, 3})}; }, [](const Tensors& x) { return Tensors{torch::conv_transpose1d(x[0], x[1])}; }},
      {"cross_entropy_smoothed", [] { return Tensors{values({6, 5}), indices({6}, 5), values({5}) + 2}; }, [](const Tensors& x) { namespace F = torch::nn::functional; return Tensors{F::cross_entropy(x[0], x[1], F::CrossEntropyFuncOptions().weight(x[2].detach()).label_smoothing(0.1).ignore_index(2)), F::cross_entropy(x[0], x[1], F::CrossEntropyFuncOptions().weight(x[2].detach()).reduction(torch::kNone))}; }},
      {"cross_entropy_planes", [] { return Tensors{values({2, 5, 3, 2}), indices({2, 3, 2}, 5)}; }, [](const Tensors& x) { return Tensors{torch::nn::functional::cross_entropy(x[0], x[1])}; }},
      {"cross_entropy_of_two_classes", [] { return Tensors{values({4, 2}), indices({4}, 2)}; }, [](const Tensors& x) { return Tensors{torch::nn::functional::cross_entropy(x[0], x[1]), torch::softmax(x[0], 1)}; }},
      {"embedding_of_two_words", [] { return Tensors{values({2, 4}), indices({3, 5}, 2)}; }, [](const Tensors& x) { return Tensors{torch::embedding(x[0], x[1])}; }},
      {"bilinear", [] { return Tensors{values({4, 3}), values({4, 2}), values({5, 3, 2}), values({5})}; }, [](const Tensors& x) { return Tensors{torch::bilinear(x[0], x[1], x[2], x[3])}; }},
      {"batch_norm_with_update", [] { return Tensors{values({6, 4, 3}), values({4}) + 2, values({4})}; }, [](const Tensors& x) { Tensor mean = at::zeros({4}, at::kDouble).to(x[0].device()); Tensor variance = at::ones({4}, at::kDouble).to(x[0].device()); return Tensors{std::get<0>(at::_batch_norm_with_update(x[0], x[1], x[2], mean, variance, 0.3, 1e-5)), mean, variance}; }},
      {"distance", [] { return Tensors{values({4, 6}), values({4, 6}) * 2 + 1}; }, [](const Tensors& x) { const double infinity = std::numeric_limits<double>::infinity(); return Tensors{torch::dist(x[0], x[1]), torch::dist(x[0], x[1], 1), torch::dist(x[0], x[1], 3), torch::dist(x[0], x[1], infinity)}; }},
      {"pairwise_distances", [] { return Tensors{values({5, 6})}; }, [](const Tensors& x) { const double infinity = std::numeric_limits<double>::infinity(); return Tensors{torch::pdist(x[0]), torch::pdist(x[0], 1), torch::pdist(x[0], 3), torch::pdist(x[0], infinity)}; }},
      {"put", [] { return Tensors{values({4, 6}), values({2, 3}) + 2}; }, [](const Tensors& x) { const Tensor index = torch::tensor({{2, 9, 20}, {2, 23, 0}}).to(x[0].device()); const Tensor others = torch::tensor({{2, 9, 20}, {5, 23, 0}}).to(x[0].device()); return Tensors{torch::put(x[0], index, x[1], true), torch::put(x[0], others, x[1]), x[0].clone().put_(index, x[1], true)}; }},
      {"masked_scatter", [] { return Tensors{values({4, 6}), values({30}) + 2}; }, [](const Tensors& x) { return Tensors{torch::masked_scatter(x[0], x[0].gt(0.1), x[1]), x[0].clone().masked_scatter_(x[0].lt(0.1), x[1]), torch::masked_scatter(x[0], values({6}).to(x[0].device()).gt(0), x[1])}; }},
      {"ctc", [] { return Tensors{values({6, 5, 4}), indices({5, 2}, 3)}; }, [](const Tensors& x) { const Tensor scores = torch::log_softmax(x[0], 2); const Tensor targets = x[1] + 1; const std::vector<std::int64_t> lengths{6, 5, 6, 4, 6}; return Tensors{torch::ctc_loss(scores, targets, lengths, {1, 1, 1, 2, 2}), torch::ctc_loss(scores, targets, lengths, {2, 2, 2, 1, 0}, 0, at::Reduction::None), torch::ctc_loss(scores, targets.flatten().narrow(0, 0, 7), lengths, {2, 1, 1, 2, 1}, 0, at::Reduction::Sum)}; }},
      {"block_diag", [] { return Tensors{values({2, 3}), values({4, 2})}; }, [](const Tensors& x) { return Tensors{torch::block_diag({x[0], x[1]})}; }},
      {"bincount", [] { return Tensors{indices({10}, 7), values({10})}; }, [](const Tensors& x) { return Tensors{torch::bincount(x[0]).to(at::kDouble) * x[1].sum(), torch::bincount(x[0], x[1].detach(), 9), torch::bincount(x[0].narrow(0, 0, 0), {}, 3).to(at::kDouble)}; }},
      {"segment_reduce", [] { return Tensors{values({6, 4, 3})}; }, [](const Tensors& x) { const Tensor lengths = torch::tensor({1, 3, 2}).to(x[0].device()); const Tensor own = torch::tensor({1, 3, 2, 2, 2, 2, 0, 4, 0, 4, 4, 0}).view({6, 2}).to(x[0].device()); return Tensors{torch::segment_reduce(x[0], "sum", lengths), torch::segment_reduce(x[0], "max", lengths), torch::segment_reduce(x[0], "mean", {}, {}, torch::tensor({0, 1, 4, 6}).to(x[0].device())), torch::segment_reduce(x[0], "sum", own, {}, {}, 1)}; }},
      {"pad_circular", [] { return Tensors{values({4, 3, 5, 6})}; }, [](const Tensors& x) { return Tensors{torch::pad(x[0], {1, 2, 3, 0}, "circular"), torch::pad(x[0], {-1, 2, 0, -3}, "circular")}; }},
      {"packed_sequence", [] { return Tensors{values({5, 4, 3})}; }, [](const Tensors& x) { const auto [data, sizes] = torch::_pack_padded_sequence(x[0], torch::tensor({5, 3, 3, 1}), false); const auto [padded, lengths] = torch::_pad_packed_sequence(data * 2, sizes, true, 0.5, 6); return Tensors{data, padded, lengths.to(at::kDouble), std::get<0>(torch::_pack_padded_sequence(x[0], torch::tensor({4, 4, 2, 1, 1}), true))}; }},
      {"resize_to_equal_sizes", [] { return Tensors{values({4, 6}), values({4, 6})}; }, [](const Tensors& x) { return Tensors{x[0].detach().clone().resize_as_(x[1].detach()) + x[1], torch::resize_as(x[0].detach(), x[1].detach()) + x[0]}; }},
      {"weight_norm", [] { return Tensors{values({5, 3, 2}), values({5, 1, 1}), values({1, 1, 2})}; }, [](const Tensors& x) { return Tensors{torch::_weight_norm(x[0], x[1], 0), torch::_weight_norm(x[0], x[2], 2)}; }},
      {"euclidean_distances", [] { return Tensors{values({2, 5, 3}), values({2, 4, 3}) + 2}; }, [](const Tensors& x) { return Tensors{torch::_euclidean_dist(x[0], x[1])}; }},
      {"mse", [] { return Tensors{values({5, 3}), values({5, 3}) * 2}; }, [](const Tensors& x) { return Tensors{torch::mse_loss(x[0], x[1]), torch::mse_loss(x[0], x[1], at::Reduction::Sum), torch::smooth_l1_loss(x[0], x[1]), torch::huber_loss(x[0], x[1])}; }},
  };
  return kCases;
}

/// Placements that one input may have on one axis.
std::vector<Placement> choices(const Tensor& input) {
  std::vector<Placement> result{Replicate()};
  for (std::int64_t dim = 0; dim < input.dim(); ++dim) result.push_back(Shard(dim));
  if (input.is_floating_point()) result.push_back(Partial());
  return result;
}

/// Shards in groups and in units; no plain ones, which are tried without these.
std::vector<Placement> choices_of_cuts(const Tensor& input) {
  std::vector<Placement> result{Replicate()};
  for (std::int64_t dim = 0; dim < input.dim(); ++dim) {
    const std::int64_t size = input.size(dim);
    for (const std::int32_t groups : {2, 3, 5, 7}) {
      if (size > groups && size % groups == 0) result.push_back(Shard(dim, {.groups = groups}));
    }
    if (size > 1) result.push_back(Shard(dim, {.unit = static_cast<std::int32_t>(size / 2 + 1)}));
  }
  return result;
}

using Choices = std::vector<Placement> (*)(const Tensor&);

/// Every combination of placements of all inputs on one axis.
std::vector<std::vector<Placement>> combinations(const Tensors& inputs, Choices choices) {
  std::vector<std::vector<Placement>> result{{}};
  for (const Tensor& input : inputs) {
    std::vector<std::vector<Placement>> more;
    for (const auto& chosen : result) {
      for (const Placement& choice : choices(input)) {
        more.push_back(chosen);
        more.back().push_back(choice);
      }
    }
    result = std::move(more);
  }
  return result;
}

Tensor spread(const Tensor& value, const Placements& placements, const Mesh& mesh) {
  Tensor share = value;
  Placements cuts = placements;
  for (int axis = 0; axis < placements.size(); ++axis) {
    if (!placements[axis].is_partial()) continue;
    share = mesh.coordinate(axis) == 0 ? share - (mesh.axis_size(axis) - 1) : at::ones_like(share);
    cuts[axis] = Replicate();
  }
  const Tensor cut = distribute(share, mesh, cuts);
  return cuts == placements ? cut : from_local(local(cut), mesh, placements, value.sizes());
}
Tensor spread(const Tensor& value, const Placement& placement, const Mesh& mesh) {
  return spread(value, Placements{placement}, mesh);
}

/// Gradients of a weighted sum of the outputs, so that no cotangent is all ones.
void backward(const Tensors& outputs) {
  Tensor total;
  for (const Tensor& output : outputs) {
    const Tensor weighted = (output * 1.5 + output * output * 0.25).sum();
    total = total.defined() ? total + weighted : weighted;
  }
  total.backward();
}

struct Result {
  Tensors outputs;
  Tensors gradients;
};

Result evaluate(const Case& test, Tensors inputs) {
  for (Tensor& input : inputs) {
    if (input.is_floating_point()) input.requires_grad_();
  }
  Result result;
  result.outputs = test.run(inputs);
  backward(result.outputs);
  for (const Tensor& input : inputs) result.gradients.push_back(input.grad());
  return result;
}

void expect_equal(const Tensors& expected, const Tensors& found, const std::string& what) {
  ASSERT_EQ(expected.size(), found.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(expected[i].defined(), found[i].defined()) << what << i;
    if (!expected[i].defined()) continue;
    const Tensor value = full(found[i]).to(expected[i].device());
    ASSERT_EQ(value.sizes(), expected[i].sizes()) << what << i;
    // 1e-12: sums of at most a few hundred terms of size about 1, in another order.
    ASSERT_TRUE(at::allclose(value, expected[i], 1e-12, 1e-12)) << what << i << " differs by "
                                                                << (value - expected[i]).abs().max().item<double>();
  }
}

/// Inputs as `placements` say, and words for where a test stands.
std::pair<Tensors, std::string> spread_all(const Case& test, const Tensors& plain, const std::vector<Placement>& placements,
                                           const Mesh& mesh) {
  std::pair<Tensors, std::string> result{{}, test.name};
  for (std::size_t i = 0; i < plain.size(); ++i) {
    result.first.push_back(spread(plain[i], placements[i], mesh));
    result.second += " " + to_string(placements[i]);
  }
  return result;
}

void expect_every_combination(const Case& test, int ranks, Choices choices) {
  Tensors alone = test.inputs();
  for (Tensor& input : alone) input = input.to(test::device_of_ranks());
  const Result expected = evaluate(test, alone);
  test::on_mesh("dp=" + std::to_string(ranks), [&](const Mesh& mesh) {
    const Tensors plain = test.inputs();
    for (const auto& placements : combinations(plain, choices)) {
      const auto [inputs, what] = spread_all(test, plain, placements, mesh);
      const Result found = evaluate(test, inputs);
      expect_equal(expected.outputs, found.outputs, what + ": output ");
      expect_equal(expected.gradients, found.gradients, what + ": gradient ");
      if (testing::Test::HasFatalFailure()) return;
    }
    EXPECT_TRUE(replicated_fallbacks(mesh).empty()) << replicated_fallbacks(mesh).begin()->first;
  });
}

class EveryOperator : public testing::TestWithParam<std::tuple<std::size_t, int>> {
 protected:
  void SetUp() override {
    if (!test::has_device_of_ranks()) GTEST_SKIP() << "no GPU here";
  }
};

TEST_P(EveryOperator, EqualsPlainTensorsForEveryPlacement) {
  expect_every_combination(cases()[std::get<0>(GetParam())], std::get<1>(GetParam()), choices);
}
TEST_P(EveryOperator, EqualsPlainTensorsForEveryCut) {
  expect_every_combination(cases()[std::get<0>(GetParam())], std::get<1>(GetParam()), choices_of_cuts);
}

std::string case_name(const testing::TestParamInfo<std::tuple<std::size_t, int>>& info) {
  return cases()[std::get<0>(info.param)].name + "On" + std::to_string(std::get<1>(info.param)) + "Ranks";
}

INSTANTIATE_TEST_SUITE_P(Rules, EveryOperator,
                         testing::Combine(testing::Range<std::size_t>(0, cases().size()), testing::Values(2, 3)),
                         case_name);

class EveryOperatorOnAxes : public testing::TestWithParam<std::tuple<std::size_t, std::string>> {};

/// One axis after the other has every combination, beside another one on the other axes: together they cut dims shorter than
/// the mesh, and one dim several times.
TEST_P(EveryOperatorOnAxes, EqualsPlainTensors) {
  const Case& test = cases()[std::get<0>(GetParam())];
  const Result expected = evaluate(test, test.inputs());
  test::on_mesh(std::get<1>(GetParam()), [&](const Mesh& mesh) {
    const Tensors plain = test.inputs();
    const auto possible = combinations(plain, choices);
    for (std::size_t turn = 0; turn < possible.size(); ++turn) {
      Tensors inputs;
      std::string what = test.name;
      for (std::size_t i = 0; i < plain.size(); ++i) {
        Placements placements = Placements::replicated(mesh.num_axes());
        for (int axis = 0; axis < mesh.num_axes(); ++axis) {
          // 5 and 3: other combinations beside the same one on each axis, the same one among them.
          const std::size_t other = turn * (axis == 1 ? 5 : 1) + (axis == 2 ? 3 : 0);
          placements[axis] = possible[other % possible.size()][i];
          what += " " + to_string(placements[axis]);
        }
        inputs.push_back(spread(plain[i], placements, mesh));
        what += ",";
      }
      const Result found = evaluate(test, inputs);
      expect_equal(expected.outputs, found.outputs, what + " output ");
      expect_equal(expected.gradients, found.gradients, what + " gradient ");
      if (testing::Test::HasFatalFailure()) return;
    }
  });
}

std::string axes_name(std::string axes) {
  std::erase_if(axes, [](char letter) { return std::isalnum(static_cast<unsigned char>(letter)) == 0; });
  return axes;
}

std::string axes_case_name(const testing::TestParamInfo<EveryOperatorOnAxes::ParamType>& info) {
  return cases()[std::get<0>(info.param)].name + "On" + axes_name(std::get<1>(info.param));
}

INSTANTIATE_TEST_SUITE_P(Rules, EveryOperatorOnAxes,
                         testing::Combine(testing::Range<std::size_t>(0, cases().size()),
                                          testing::Values("dp=5", "dp=2,tp=3", "dp_replicate=2,dp_shard=2,tp=2")),
                         axes_case_name);

/// A way in which a tensor lies in memory.
struct Layout {
  std::string name;
  std::function<Tensor(const Tensor&)> lay;
};

const std::vector<Layout>& layouts() {
  static const std::vector<Layout> kLayouts{
      {"ChannelsLast", [](const Tensor& x) { return x.dim() < 2 ? x : x.movedim(1, -1).contiguous().movedim(-1, 1); }},
      {"Reversed", [](const Tensor& x) { return x.dim() < 2 ? x : x.movedim(0, -1).contiguous().movedim(-1, 0); }},
      {"Sliced", [](const Tensor& x) { return x.dim() < 1 ? x : torch::stack({x, x + 1}, -1).select(-1, 0); }},
      {"Expanded", [](const Tensor& x) { return x.dim() < 1 || x.size(0) == 0 ? x : x.narrow(0, 0, 1).expand_as(x); }},
  };
  return kLayouts;
}

class EveryLayout : public testing::TestWithParam<std::tuple<std::size_t, std::size_t, std::string>> {};

/// Outputs of a case whose inputs were laid as `layout` says, and the gradients for cotangents that `cotangent` makes of
/// plain ones.
Result evaluate_laid(const Case& test, Tensors inputs, const Layout& layout,
                     const std::function<Tensor(const Tensor&)>& cotangent) {
  Tensors laid;
  for (Tensor& input : inputs) {
    if (input.is_floating_point()) input.requires_grad_();
    laid.push_back(layout.lay(input));
  }
  Result result;
  result.outputs = test.run(laid);
  Tensors roots;
  Tensors cotangents;
  for (const Tensor& output : result.outputs) {
    if (!output.requires_grad()) continue;
    roots.push_back(output);
    cotangents.push_back(layout.lay(cotangent(values(output.sizes()) + 0.2)));
  }
  torch::autograd::backward(roots, cotangents);
  for (const Tensor& input : inputs) result.gradients.push_back(input.grad());
  return result;
}

/// Kernels that expect one layout of all their inputs are asked for on what strides of the whole say.
void expect_shards_lie_as_strides_say(const Tensors& found, const std::string& what) {
  for (const Tensor& tensor : found) {
    if (!tensor.defined() || tensor.numel() == 0 || !tensor.is_non_overlapping_and_dense()) continue;
    std::vector<std::int64_t> order(static_cast<std::size_t>(tensor.dim()));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return tensor.stride(a) > tensor.stride(b); });
    if (!tensor.permute(order).is_contiguous()) continue;
    ASSERT_TRUE(local(tensor).permute(order).is_contiguous())
        << what << describe(tensor) << " of strides " << tensor.strides() << ", shard " << local(tensor).sizes()
        << " of strides " << local(tensor).strides();
  }
}

/// Why a case cannot be asked in a layout; empty: it can.
std::string hindrance(const std::string& name, const std::string& layout) {
  struct Row {
    std::string name, layout, reason;
  };
  static const std::vector<Row> kTable{
      {"as_strided_patches", "", "as_strided is about memory, not about values"},
      {"as_strided_windows", "", "as_strided is about memory, not about values"},
      {"stft", "Expanded", "frames by as_strided of samples that share memory are refused"},
      {"view_merge_split", "ChannelsLast", "one device refuses the view"},
      {"cross_entropy_ignore", "Expanded", "all targets are ignored, and the mean is NaN"},
      {"sort_topk", "Expanded", "LibTorch's median of an expanded tensor reads other memory"},
      {"arrange", "ChannelsLast", "windows of unfold share memory, which strides of the whole do not show"},
  };
  for (const Row& row : kTable) {
    if (row.name == name && (row.layout.empty() || row.layout == layout)) return row.reason;
  }
  return {};
}

TEST_P(EveryLayout, EqualsPlainTensorsForEveryPlacement) {
  const Case& test = cases()[std::get<0>(GetParam())];
  const Layout& layout = layouts()[std::get<1>(GetParam())];
  if (const std::string reason = hindrance(test.name, layout.name); !reason.empty()) GTEST_SKIP() << reason;
  const Result expected = evaluate_laid(test, test.inputs(), layout, [](const Tensor& cotangent) { return cotangent; });
  test::on_mesh(std::get<2>(GetParam()), [&](const Mesh& mesh) {
    const Tensors plain = test.inputs();
    std::size_t turn = 0;
    for (const auto& placements : combinations(plain, choices)) {
      const auto [inputs, what] = spread_all(test, plain, placements, mesh);
      const Result found = evaluate_laid(test, inputs, layout, [&](const Tensor& cotangent) {
        const std::vector<Placement> possible = choices(cotangent);
        return spread(cotangent, possible[turn++ % possible.size()], mesh);
      });
      expect_equal(expected.outputs, found.outputs, what + ": output ");
      expect_equal(expected.gradients, found.gradients, what + ": gradient ");
      expect_shards_lie_as_strides_say(found.outputs, what + ": output ");
      if (testing::Test::HasFatalFailure()) return;
    }
  });
}

std::string layout_case_name(const testing::TestParamInfo<EveryLayout::ParamType>& info) {
  return cases()[std::get<0>(info.param)].name + layouts()[std::get<1>(info.param)].name + "On" +
         axes_name(std::get<2>(info.param));
}

INSTANTIATE_TEST_SUITE_P(Rules, EveryLayout,
                         testing::Combine(testing::Range<std::size_t>(0, cases().size()),
                                          testing::Range<std::size_t>(0, layouts().size()),
                                          testing::Values("dp=2", "dp=3")),
                         layout_case_name);

/// Two rows over dp and two heads or channels over tp: neither axis takes anything from the other's dim.
TEST(CutsOfDifferentDims, DoNotGatherEachOther) {
  struct Member {
    std::string name;
    Tensors inputs;
    std::vector<Placements> placements;
    std::function<Tensor(const Tensors&)> run;
  };
  const Placements both{Shard(0), Shard(1)};
  const Tensor planes = values({2, 2, 5, 4});
  const std::vector<Member> members{
      {"attention", {planes}, {both}, [](const Tensors& x) { return torch::scaled_dot_product_attention(x[0], x[0] * 2, x[0] + 1); }},
      {"convolution", {values({2, 3, 5, 5}), values({2, 3, 3, 3})}, {{Shard(0), Replicate()}, {Replicate(), Shard(0)}}, [](const Tensors& x) { return torch::conv2d(x[0], x[1]); }},
      {"batch norm", {planes}, {both}, [](const Tensors& x) { return torch::batch_norm(x[0], {}, {}, {}, {}, true, 0.1, 1e-5, false); }},
      {"pooling", {planes}, {both}, [](const Tensors& x) { return torch::max_pool2d(x[0], 2) + torch::avg_pool2d(x[0], 2); }},
      {"interpolation", {planes}, {both}, [](const Tensors& x) { return torch::upsample_bilinear2d(x[0], {6, 7}, false); }},
      // Its backward starts from new_zeros of other sizes, which are replicated, and so gathers.
      {"fft", {planes}, {both}, [](const Tensors& x) { return torch::abs(torch::fft_rfft(x[0].detach())); }},
      {"padding", {planes}, {both}, [](const Tensors& x) { return torch::reflection_pad2d(x[0], {1, 2, 0, 1}); }},
      {"view of attention", {planes}, {both}, [](const Tensors& x) { return torch::scaled_dot_product_attention(x[0], x[0], x[0]).transpose(1, 2).contiguous().view({2, 5, 8}); }},
  };
  for (const Member& member : members) {
    SCOPED_TRACE(member.name);
    const Tensor expected = member.run(member.inputs);
    test::on_mesh("dp=2,tp=2", [&](const Mesh& mesh) {
      Tensors inputs;
      for (std::size_t i = 0; i < member.inputs.size(); ++i) {
        inputs.push_back(distribute(member.inputs[i], mesh, member.placements[i]).requires_grad_());
      }
      const Tensor found = member.run(inputs);
      if (found.requires_grad()) (found * found).sum().backward();
      EXPECT_TRUE(at::allclose(full(found), expected, 1e-12, 1e-12));
      EXPECT_TRUE(gathers(mesh).empty()) << gathers(mesh).begin()->first;
    });
  }
}

TEST(Gathers, AreCountedWithTheirBytes) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor cut = distribute(values({4, 6}), mesh, {Shard(1)});
    (void)torch::sort(cut, 1);
    (void)torch::sort(cut, 1);
    (void)torch::sort(cut, 0);
    (void)full(cut);
    ASSERT_EQ(gathers(mesh).size(), 1);
    EXPECT_EQ(gathers(mesh).at("aten::sort").times, 2);
    EXPECT_EQ(gathers(mesh).at("aten::sort").bytes, 2 * 4 * 3 * static_cast<std::int64_t>(sizeof(double)));
  });
}

TEST(OutVariant, GivesAPlainTensorTheWholeValue) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor a = distribute(values({5, 6}), mesh, {Shard(0)});
    Tensor out = at::zeros({0}, at::kDouble);
    at::mul_out(out, a, a);
    EXPECT_FALSE(is_mesh_tensor(out));
    EXPECT_TRUE(at::equal(out, values({5, 6}) * values({5, 6})));
  });
}

TEST(OutVariant, FillsAMeshTensorWhereItLies) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor a = distribute(values({4, 6}), mesh, {Shard(0)});
    const Tensor b = distribute(values({4, 6}), mesh, {Replicate()});
    Tensor out = distribute(at::zeros({4, 6}, at::kDouble), mesh, {Shard(1)});
    at::add_out(out, a, b);
    EXPECT_EQ(placements(out), (Placements{Shard(1)}));
    EXPECT_TRUE(at::equal(full(out), values({4, 6}) * 2));
  });
}

TEST(OutVariant, TakesTheResultsSizesAndPlacementsIfItHadOthers) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor a = distribute(values({4, 6}), mesh, {Shard(0)});
    Tensor out = distribute(at::zeros({0}, at::kDouble), mesh, {Replicate()});
    at::mul_out(out, a, a);
    EXPECT_TRUE(at::equal(full(out), values({4, 6}) * values({4, 6})));
    EXPECT_EQ(placements(out), (Placements{Shard(0)}));
  });
}

TEST(InPlace, KeepsThePlacementOfSelfWhateverTheOther) {
  test::on_mesh("dp=3", [](const Mesh& mesh) {
    for (const Placement& self : {Replicate(), Shard(0), Shard(1)}) {
      for (const Placement& other : choices(values({4, 6}))) {
        Tensor target = distribute(values({4, 6}), mesh, {self});
        target.mul_(spread(values({4, 6}) + 3, other, mesh)).add_(1.0);
        EXPECT_EQ(placements(target), (Placements{self}));
        EXPECT_TRUE(at::allclose(full(target), values({4, 6}) * (values({4, 6}) + 3) + 1, 1e-14, 1e-14));
      }
    }
  });
}

TEST(InPlace, WritesTheWholeValueIntoAPlainTensor) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor index = (at::arange(30) * 7).remainder(5).view({5, 6});
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
      const Tensor source = values({5, 6}).to(dtype);
      Tensor plain = at::zeros({5, 6}, dtype);
      plain.scatter_(0, distribute(index, mesh, {Shard(1)}), distribute(source, mesh, {Shard(1)}));
      EXPECT_TRUE(at::equal(plain, at::zeros({5, 6}, dtype).scatter_(0, index, source)));
    }
  });
}

TEST(InPlace, ChangesMetadataOfTheTensorItself) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    Tensor matrix = distribute(values({4, 6}), mesh, {Shard(0)});
    matrix.t_();
    EXPECT_EQ(placements(matrix), (Placements{Shard(1)}));
    EXPECT_TRUE(at::equal(full(matrix), values({4, 6}).t()));
  });
}

TEST(PlainTensor, CountsAsReplicatedBesideMeshTensors) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor spread_values = distribute(values({4, 6}), mesh, {Shard(0)});
    EXPECT_TRUE(at::equal(full(spread_values * values({6}) + 1.0), values({4, 6}) * values({6}) + 1.0));
    EXPECT_TRUE(replicated_fallbacks(mesh).empty());
  });
}

TEST(DecisionCache, IgnoresScalarsThatDecideNothing) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    Tensor total = distribute(values({4, 6}), mesh, {Shard(0)});
    Tensor expected = values({4, 6});
    for (int i = 0; i < 5; ++i) {
      total = total * (1.0 + 0.1 * i) + i;
      expected = expected * (1.0 + 0.1 * i) + i;
    }
    EXPECT_TRUE(at::allclose(full(total), expected, 1e-14, 1e-14));
  });
}

TEST(Out, OfPlainOperandsFillsTheMeshTensorWhereItLies) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    Tensor out = distribute(at::zeros({4, 4}, at::kDouble), mesh, {Shard(0)});
    torch::eye_out(out, 4);
    EXPECT_EQ(placements(out), (Placements{Shard(0)}));
    EXPECT_TRUE(at::equal(full(out), at::eye(4, at::kDouble)));
    const Tensor a = values({4, 4});
    torch::add_out(out, a, a);
    EXPECT_TRUE(at::equal(full(out), a + a));
  });
}

TEST(Fallback, IsCountedByOperatorName) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor spread_values = distribute(values({6}), mesh, {Shard(0)});
    EXPECT_TRUE(at::equal(full(torch::nonzero(spread_values)), torch::nonzero(values({6}))));
    EXPECT_EQ(replicated_fallbacks(mesh).at("aten::nonzero"), 1);
  });
}

TEST(Fallback, IsAnErrorInStrictMode) {
  test::on_mesh(
      "dp=2",
      [](const Mesh& mesh) {
        const Tensor spread_values = distribute(values({6}), mesh, {Shard(0)});
        EXPECT_THROW((void)torch::nonzero(spread_values), ShapeError);
      },
      {.strict = true});
}

TEST(ViewWithAnOffset, PassesGradientsPastWhatWasWrittenIntoIt) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const auto gradient = [](Tensor leaf) {
      leaf.requires_grad_();
      const Tensor copy = leaf.clone();
      copy.select(0, 2).mul_(3.0);
      (copy * copy).sum().backward();
      return leaf.grad();
    };
    const Tensor expected = gradient(values({4, 6}));
    EXPECT_TRUE(at::equal(full(gradient(distribute(values({4, 6}), mesh, {Replicate()}))), expected));
  });
}

TEST(Conjugation, IsSeenByWhoGathers) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor value = at::complex(values({4, 3}), values({4, 3}) + 1);
    const Tensor conjugate = torch::conj(distribute(value, mesh, {Shard(0)}));
    EXPECT_TRUE(at::equal(full(conjugate), torch::conj(value).resolve_conj()));
  });
}

TEST(RunningStatistics, AreThoseOfTheWholeBatch) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const auto run = [](const Tensor& batch, const Tensor& mean, const Tensor& variance) {
      return torch::batch_norm(batch, {}, {}, mean, variance, true, 0.3, 1e-5, false);
    };
    const Tensor mean = at::zeros({4}, at::kDouble);
    const Tensor variance = at::ones({4}, at::kDouble);
    const Tensor mesh_mean = distribute(mean, mesh, {Replicate()});
    const Tensor mesh_variance = distribute(variance, mesh, {Replicate()});
    run(values({5, 4, 3}), mean, variance);
    run(distribute(values({5, 4, 3}), mesh, {Shard(0)}), mesh_mean, mesh_variance);
    EXPECT_TRUE(at::allclose(full(mesh_mean), mean, 1e-14, 1e-14));
    EXPECT_TRUE(at::allclose(full(mesh_variance), variance, 1e-14, 1e-14));
  });
}

TEST(ListOperator, LetsEachElementLieAsItDoes) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    std::vector<Tensor> list{distribute(values({4, 6}), mesh, {Shard(0)}), distribute(values({5}), mesh, {Replicate()}),
                             distribute(values({3, 3}), mesh, {Shard(1)})};
    torch::_foreach_mul_(list, 2.0);
    torch::_foreach_addcmul_(list, list, list, 0.5);
    EXPECT_EQ(placements(list[0]), (Placements{Shard(0)}));
    EXPECT_EQ(placements(list[1]), (Placements{Replicate()}));
    EXPECT_EQ(placements(list[2]), (Placements{Shard(1)}));
    const Tensor doubled = values({3, 3}) * 2;
    EXPECT_TRUE(at::allclose(full(list[2]), doubled + 0.5 * doubled * doubled, 1e-14, 1e-14));
    EXPECT_TRUE(replicated_fallbacks(mesh).empty());
  });
}

TEST(ListOperator, DoesAnOptimizersStepOnShards) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const auto step = [](Tensors weights, const Tensors& gradients, Tensors first, Tensors second, const Tensors& steps) {
      torch::_fused_adamw_(weights, gradients, first, second, {}, steps, 0.1, 0.9, 0.99, 0.01, 1e-8, false, false);
    };
    const auto plain = [](double shift) { return Tensors{values({4, 6}) + shift, values({5}) + shift}; };
    const auto spread_all = [&](const Tensors& list) {
      return Tensors{distribute(list[0], mesh, {Shard(1)}), distribute(list[1], mesh, {Shard(0)})};
    };
    const Tensors steps{at::ones({}), at::ones({})};
    const Tensors expected = plain(0);
    step(expected, plain(1), plain(2), plain(3), {steps[0].clone(), steps[1].clone()});
    const Tensors found = spread_all(plain(0));
    step(found, spread_all(plain(1)), spread_all(plain(2)), spread_all(plain(3)), {steps[0].clone(), steps[1].clone()});
    for (std::size_t i = 0; i < found.size(); ++i) EXPECT_TRUE(at::equal(full(found[i]), expected[i]));
    EXPECT_TRUE(replicated_fallbacks(mesh).empty());
  });
}

TEST(VocabularyLookup, MovesNoWeightsAndRefusesStrangers) {
  test::on_mesh("tp=2", [](const Mesh& mesh) {
    const Tensor weight = distribute(values({7, 4}), mesh, {Shard(0)});
    const auto before = mesh.traffic().calls;
    const Tensor found = torch::embedding(weight, indices({3, 5}, 7));
    EXPECT_EQ(mesh.traffic().calls, before);
    EXPECT_EQ(placements(found), (Placements{Partial()}));
    EXPECT_TRUE(at::equal(full(found), torch::embedding(values({7, 4}), indices({3, 5}, 7))));
    EXPECT_THROW((void)torch::embedding(weight, at::full({1}, 7, at::kLong)), ShapeError);
  });
}

TEST(SoftmaxAlongAShardedDim, KeepsItsShards) {
  test::on_mesh("tp=3", [](const Mesh& mesh) {
    const Tensor scores = distribute(values({4, 7}) * 20, mesh, {Shard(1)});
    const Tensor found = torch::log_softmax(scores, 1);
    EXPECT_EQ(placements(found), (Placements{Shard(1)}));
    EXPECT_TRUE(at::allclose(full(found), torch::log_softmax(values({4, 7}) * 20, 1), 1e-13, 1e-13));
  });
}

TEST(CtcLoss, TakesLengthsThatAreMeshTensors) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor scores = torch::log_softmax(values({6, 4, 5}), 2);
    const Tensor targets = indices({4, 2}, 4) + 1;
    const Tensor lengths = torch::tensor({6, 5, 6, 4});
    const Tensor target_lengths = torch::tensor({2, 1, 2, 2});
    const auto cut = [&](const Tensor& tensor, std::int64_t dim) { return distribute(tensor, mesh, {Shard(dim)}); };
    const Tensor found = torch::ctc_loss(cut(scores, 1), cut(targets, 0), cut(lengths, 0), cut(target_lengths, 0));
    EXPECT_TRUE(at::allclose(full(found), torch::ctc_loss(scores, targets, lengths, target_lengths), 1e-13, 1e-13));
  });
}

TEST(DeviceOfAMeshTensor, RefusesToBecomeAnother) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor spread_values = distribute(values({4, 6}), mesh, {Shard(0)});
    EXPECT_THROW((void)spread_values.to(c10::Device("cuda:7")), ShapeError);
  });
}

TEST(Bincount, RefusesNegativeNumbersOnEveryRank) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor numbers = distribute(torch::tensor({3, 1, 2, -4}), mesh, {Shard(0)});
    EXPECT_THROW((void)torch::bincount(numbers), ShapeError);
  });
}

TEST(FractionalPooling, TakesTheSamplesOfRankZero) {
  test::on_mesh("dp=2,tp=2", [](const Mesh& mesh) {
    const Tensor input = values({4, 2, 6, 6});
    const auto samples = [](int rank) { return (torch::arange(16, at::kDouble) * 0.37 + 0.2 * rank).remainder(1).view({4, 2, 2}); };
    const Tensor expected = std::get<0>(torch::fractional_max_pool2d(input, {2, 2}, {3, 3}, samples(0)));
    for (const Placements& placements :
         {Placements{Shard(0), Replicate()}, Placements{Shard(0), Shard(0)}, Placements{Shard(1), Shard(0)}}) {
      const Tensor spread_input = distribute(input, mesh, placements);
      const Tensor found = std::get<0>(torch::fractional_max_pool2d(spread_input, {2, 2}, {3, 3}, samples(mesh.rank())));
      EXPECT_TRUE(at::equal(full(found), expected));
    }
  });
}

TEST(PackedSequence, RefusesLengthsThatAreNotSorted) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor input = distribute(values({5, 4, 3}), mesh, {Shard(1)});
    EXPECT_THROW((void)torch::_pack_padded_sequence(input, torch::tensor({1, 3, 3, 5}), false), c10::Error);
  });
}

TEST(MaskedIndex, HasTheSizesOfEachCall) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor spread_values = distribute(values({6, 4}), mesh, {Shard(1)});
    for (const double limit : {-0.5, 0.0, 0.5}) {
      const Tensor mask = values({6}) > limit;
      EXPECT_TRUE(at::equal(full(torch::index(spread_values, {mask})), torch::index(values({6, 4}), {mask})));
    }
  });
}

TEST(ViewAlongAWholeDim, WritesIntoItsBase) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor base = distribute(values({4, 6}), mesh, {Shard(0)});
    base.select(1, 2).fill_(9.0);
    Tensor expected = values({4, 6});
    expected.select(1, 2).fill_(9.0);
    EXPECT_TRUE(at::equal(full(base), expected));
  });
}

TEST(ViewOfAPartialSum, WritesIntoItsBase) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor base = from_local(values({4, 6}), mesh, {Partial()}, {4, 6});
    base.select(1, 2).fill_(9.0);
    base.diagonal().tanh_();
    Tensor expected = values({4, 6}) * 2;
    expected.select(1, 2).fill_(9.0);
    expected.diagonal().tanh_();
    EXPECT_TRUE(at::allclose(full(base), expected));
  });
}

TEST(Meshes, RefuseToBeMixedInOneOperator) {
  test::on_ranks(2, [](const auto& world) {
    const Mesh a(world, parse_axes("dp=2"));
    const Mesh b(world, parse_axes("tp=2"));
    EXPECT_THROW((void)(distribute(values({4}), a, {Shard(0)}) + distribute(values({4}), b, {Shard(0)})), ShapeError);
  });
}

}  // namespace
}  // namespace tessera
