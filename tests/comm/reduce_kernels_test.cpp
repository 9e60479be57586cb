// SPDX-License-Identifier: Apache-2.0
// Kernels against ATen, value by value, beyond the small integers of the contract.
#include "comm/reduce_kernels.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tessera/base/error.h"

namespace tessera::comm::detail {

namespace {

at::Tensor fold(ReduceOp op, const std::vector<at::Tensor>& sources) {
  at::Tensor result = at::empty_like(sources.front());
  std::vector<const std::byte*> from;
  for (const at::Tensor& source : sources) from.push_back(static_cast<const std::byte*>(source.const_data_ptr()));
  auto* to = static_cast<std::byte*>(result.mutable_data_ptr());
  find_fold_kernel(result.scalar_type(), op)(from.data(), static_cast<int>(from.size()), &to, 1,
                                             static_cast<std::size_t>(result.numel()));
  return result;
}

// Every bit pattern of a 16-bit float.
at::Tensor every_pattern(at::ScalarType dtype) { return at::arange(65536, at::kInt).to(at::kShort).view(dtype); }

TEST(ReduceKernel, SixteenBitFloatsSurviveTheRoundTripThroughFloat32) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    const at::Tensor patterns = every_pattern(dtype);
    const at::Tensor same = fold(ReduceOp::kSum, {patterns});
    const at::Tensor is_nan = patterns.isnan();
    EXPECT_TRUE(same.isnan().equal(is_nan)) << dtype;
    EXPECT_TRUE(same.view(at::kShort).masked_select(~is_nan).equal(patterns.view(at::kShort).masked_select(~is_nan)))
        << dtype;
  }
}

TEST(ReduceKernel, SixteenBitSumsRoundAsAtenRounds) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    const at::Tensor a = every_pattern(dtype);
    for (const double shift : {1.0, 0.001, -37.5, 60000.0, 6e-8}) {
      const at::Tensor b = at::empty_like(a).fill_(shift);
      const at::Tensor expected = (a.to(at::kFloat) + b.to(at::kFloat)).to(dtype);
      const at::Tensor sum = fold(ReduceOp::kSum, {a, b});
      EXPECT_TRUE(sum.isnan().equal(expected.isnan())) << dtype << " " << shift;
      EXPECT_TRUE(sum.nan_to_num(0).equal(expected.nan_to_num(0))) << dtype << " " << shift;
    }
  }
}

TEST(ReduceKernel, IntegersWrapAndDivideTowardsZero) {
  const at::Tensor a = at::tensor({std::numeric_limits<std::int32_t>::max(), -3, 5}, at::kInt);
  const at::Tensor b = at::tensor({1, -4, 2}, at::kInt);
  EXPECT_TRUE(fold(ReduceOp::kSum, {a, b}).equal(a + b));
  EXPECT_TRUE(fold(ReduceOp::kAvg, {a, b}).slice(0, 1).equal(at::tensor({-3, 3}, at::kInt)));
  EXPECT_TRUE(fold(ReduceOp::kProduct, {a, b}).slice(0, 1).equal(at::tensor({12, 10}, at::kInt)));
}

TEST(ReduceKernel, MaximumAndMinimumKeepNotANumber) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const at::Tensor a = at::tensor({nan, 1.0F, 2.0F});
  const at::Tensor b = at::tensor({1.0F, nan, 3.0F});
  for (const ReduceOp op : {ReduceOp::kMax, ReduceOp::kMin}) {
    const at::Tensor result = fold(op, {a, b, b});
    EXPECT_TRUE(std::isnan(result[0].item<float>()));
    EXPECT_TRUE(std::isnan(result[1].item<float>()));
  }
  EXPECT_EQ(fold(ReduceOp::kMax, {a, b})[2].item<float>(), 3.0F);
  EXPECT_EQ(fold(ReduceOp::kMin, {a, b})[2].item<float>(), 2.0F);
}

TEST(ReduceKernel, RefusesWhatHasNoSum) {
  EXPECT_THROW(static_cast<void>(find_fold_kernel(at::kComplexFloat, ReduceOp::kSum)), ShapeError);
  EXPECT_THROW(static_cast<void>(find_fold_kernel(at::kBool, ReduceOp::kAvg)), ShapeError);
}

}  // namespace

}  // namespace tessera::comm::detail
