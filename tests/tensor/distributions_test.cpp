// SPDX-License-Identifier: Apache-2.0
// Distributions have their shape, and a part of a tensor gets the numbers that the whole has there.
#include "tensor/distributions.h"

#include <gtest/gtest.h>

#include <ATen/ATen.h>

#include <cmath>
#include <functional>
#include <numbers>

#include "tensor/elementary.h"

namespace tessera::tensor {
namespace {

constexpr PhiloxStream kStream{2026, 7};

at::Tensor filled(at::IntArrayRef sizes, at::ScalarType dtype,
                  const std::function<void(const at::Tensor&, const Box&)>& fill) {
  const at::Tensor tensor = at::empty(sizes, dtype);
  fill(tensor, Box::whole_of(sizes));
  return tensor;
}

/// Largest distance between the distribution of a sample and `cdf` (Kolmogorov and Smirnov).
double distance(const at::Tensor& sample, const std::function<double(double)>& cdf) {
  const at::Tensor sorted = std::get<0>(sample.to(at::kDouble).flatten().sort());
  const double* values = sorted.const_data_ptr<double>();
  const auto count = static_cast<double>(sorted.numel());
  double largest = 0;
  for (std::int64_t i = 0; i < sorted.numel(); ++i) {
    const double expected = cdf(values[i]);
    largest =
        std::max({largest, static_cast<double>(i + 1) / count - expected, expected - static_cast<double>(i) / count});
  }
  return largest;
}

constexpr std::int64_t kSample = 1 << 20;
/// A true sample of size n is farther away with probability 2 exp(-2 n d^2) = 1e-9. The seed is fixed, so that a test
/// that passed passes for ever; the bound says how sure its first pass made us.
const double kFarthest = std::sqrt(std::log(2 / 1e-9) / (2.0 * kSample));

TEST(Uniform, FillsBinsEvenly) {
  // Chi-square over 1024 bins; (x - 1023) / sqrt(2 * 1023) is about normal: beyond 6 has probability 1e-9.
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    const at::Tensor sample =
        filled({kSample}, dtype, [](const at::Tensor& t, const Box& box) { fill_uniform(t, box, kStream, 0, 1); });
    const at::Tensor counts = at::bincount(sample.mul(1024).to(at::kLong), {}, 1024).to(at::kDouble);
    ASSERT_EQ(counts.numel(), 1024);
    const double expected = kSample / 1024.0;
    const double chi_square = (counts - expected).square().sum().item<double>() / expected;
    EXPECT_LT(std::abs(chi_square - 1023) / std::sqrt(2 * 1023.0), 6) << dtype;
  }
}

TEST(Uniform, StaysInsideItsRange) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    const at::Tensor sample =
        filled({1 << 16}, dtype, [](const at::Tensor& t, const Box& box) { fill_uniform(t, box, kStream, -2, 2); });
    EXPECT_GE(sample.min().item<double>(), -2) << dtype;
    EXPECT_LT(sample.max().item<double>(), 2) << dtype;
    EXPECT_LT(distance(sample, [](double x) { return (x + 2) / 4; }), 1.0 / 64) << dtype;
  }
}

TEST(Normal, HasTheBellsDistribution) {
  const auto cdf = [](double x) { return std::erfc(-(x - 1) / 3 / std::numbers::sqrt2) / 2; };
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    const at::Tensor sample =
        filled({kSample}, dtype, [](const at::Tensor& t, const Box& box) { fill_normal(t, box, kStream, 1, 3); });
    EXPECT_LT(distance(sample, cdf), kFarthest) << dtype;
  }
}

TEST(Normal, GivesNeighboursThatDoNotKnowEachOther) {
  const at::Tensor sample =
      filled({kSample}, at::kDouble, [](const at::Tensor& t, const Box& box) { fill_normal(t, box, kStream, 0, 1); });
  // A correlation of n pairs has deviation 1 / sqrt(n): beyond 6 of them has probability 2e-9.
  for (const std::int64_t lag : {1, 2, 3, 4}) {
    const double correlation = sample.slice(0, lag).mul(sample.slice(0, 0, kSample - lag)).mean().item<double>();
    EXPECT_LT(std::abs(correlation), 6 / std::sqrt(static_cast<double>(kSample))) << lag;
  }
}

TEST(Bernoulli, KeepsTheShareItIsAskedFor) {
  for (const double p : {0.0, 0.1, 0.5, 0.9, 1.0}) {
    const at::Tensor sample =
        filled({kSample}, at::kFloat, [p](const at::Tensor& t, const Box& box) { fill_bernoulli(t, box, kStream, p); });
    // Beyond 6 deviations: probability 2e-9.
    EXPECT_LE(std::abs(sample.mean(at::kDouble).item<double>() - p), 6 * std::sqrt(p * (1 - p) / kSample)) << p;
  }
}

TEST(Bernoulli, ChoosesTheSameElementsWhateverTheDtype) {
  const auto draw = [](at::ScalarType dtype) {
    return filled({5000}, dtype, [](const at::Tensor& t, const Box& box) { fill_bernoulli(t, box, kStream, 0.3); });
  };
  const at::Tensor kept = draw(at::kBool);
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kHalf, at::kLong}) {
    EXPECT_TRUE(at::equal(draw(dtype).to(at::kBool), kept)) << dtype;
  }
  const at::Tensor by_element = at::empty({5000}, at::kBool);
  fill_bernoulli(by_element, Box::whole_of({5000}), kStream, at::full({5000}, 0.3, at::kDouble));
  EXPECT_TRUE(at::equal(by_element, kept));
}

TEST(Integers, FillTheirRangeEvenly) {
  for (const std::int64_t from : {0, -3}) {
    const at::Tensor sample = filled(
        {kSample}, at::kLong, [from](const at::Tensor& t, const Box& box) { fill_integers(t, box, kStream, from, 7); });
    const at::Tensor counts = at::bincount(sample - from, {}, 7).to(at::kDouble);
    ASSERT_EQ(counts.numel(), 7);
    // Chi-square with 6 degrees of freedom is above 54 with probability 1e-9.
    EXPECT_LT((counts - kSample / 7.0).square().sum().item<double>() / (kSample / 7.0), 54);
  }
}

TEST(Integers, ReachAllOf64Bits) {
  const at::Tensor sample = filled(
      {4096}, at::kLong, [](const at::Tensor& t, const Box& box) { fill_integers(t, box, kStream, INT64_MIN, 0); });
  // Of 4096 numbers, none in the lowest or the highest hundredth: probability 1e-17 each.
  EXPECT_LT(sample.min().item<std::int64_t>(), INT64_MIN / 100 * 98);
  EXPECT_GT(sample.max().item<std::int64_t>(), INT64_MAX / 100 * 98);
}

TEST(OtherDistributions, HaveTheirShapes) {
  struct Case {
    const char* name;
    std::function<void(const at::Tensor&, const Box&)> fill;
    std::function<double(double)> cdf;
  };
  const std::vector<Case> cases{
      {"exponential", [](const at::Tensor& t, const Box& box) { fill_exponential(t, box, kStream, 2); },
       [](double x) { return -std::expm1(-2 * x); }},
      {"cauchy", [](const at::Tensor& t, const Box& box) { fill_cauchy(t, box, kStream, 1, 2); },
       [](double x) { return std::atan((x - 1) / 2) / std::numbers::pi + 0.5; }},
      {"log_normal", [](const at::Tensor& t, const Box& box) { fill_log_normal(t, box, kStream, 1, 0.5); },
       [](double x) { return std::erfc(-(std::log(x) - 1) / 0.5 / std::numbers::sqrt2) / 2; }},
  };
  for (const Case& test : cases) {
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
      EXPECT_LT(distance(filled({kSample}, dtype, test.fill), test.cdf), kFarthest) << test.name << dtype;
    }
  }
}

TEST(Geometric, CountsTrials) {
  const at::Tensor sample =
      filled({kSample}, at::kLong, [](const at::Tensor& t, const Box& box) { fill_geometric(t, box, kStream, 0.25); });
  EXPECT_EQ(sample.min().item<std::int64_t>(), 1);
  for (const std::int64_t trials : {1, 2, 3, 8}) {
    const double expected = 1 - std::pow(0.75, static_cast<double>(trials));
    EXPECT_LT(std::abs(sample.le(trials).to(at::kDouble).mean().item<double>() - expected), kFarthest) << trials;
  }
}

template <class T>
void expect_elementary(double tolerance) {
  for (int i = 0; i <= 200'000; ++i) {
    const auto x = static_cast<T>(i / 200'000.0);
    const auto [sine, cosine] = sine_cosine_of_turn(x);
    const double angle = 2 * std::numbers::pi * static_cast<double>(x);
    ASSERT_NEAR(static_cast<double>(sine), std::sin(angle), tolerance) << i;
    ASSERT_NEAR(static_cast<double>(cosine), std::cos(angle), tolerance) << i;
    if (i == 0) continue;
    const double log = std::log(static_cast<double>(x));
    ASSERT_NEAR(static_cast<double>(log_of(x)), log, tolerance * std::max(1.0, std::abs(log))) << i;
  }
  for (int power = 1; power < 55; ++power) {
    const double log = -power * std::numbers::ln2;
    ASSERT_NEAR(static_cast<double>(log_of(std::ldexp(T{1}, -power))), log, tolerance * -log);
  }
}

TEST(Elementary, EqualsTheMathematicalLibraryUpToRounding) {
  // Measured: 9.5e-8 and 7.2e-16.
  expect_elementary<float>(1.2e-7);
  expect_elementary<double>(1e-15);
}

using Fill = void (*)(const at::Tensor&, const Box&);

class APartOfATensor : public testing::TestWithParam<Fill> {};

TEST_P(APartOfATensor, GetsTheNumbersOfTheWhole) {
  const std::vector<std::int64_t> sizes{5, 3, 7};
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const at::Tensor whole = filled(sizes, dtype, GetParam());
    for (std::int64_t a = 0; a < 5; a += 2) {
      for (std::int64_t b = 0; b < 3; ++b) {
        for (std::int64_t c = 0; c < 7; c += 3) {
          Box box = Box::whole_of(sizes);
          box.extents = {{a, 5 - a}, {b, 1}, {c, std::min<std::int64_t>(7 - c, 4)}};
          const at::Tensor expected = whole.narrow(0, a, 5 - a).narrow(1, b, 1).narrow(2, c, box.extents[2].length);
          const at::Tensor part = at::empty(expected.sizes(), dtype);
          GetParam()(part, box);
          EXPECT_TRUE(at::equal(part, expected)) << a << b << c << dtype;
          const at::Tensor transposed = at::empty_like(expected.transpose(0, 2).contiguous()).transpose(0, 2);
          GetParam()(transposed, box);
          EXPECT_TRUE(at::equal(transposed, expected)) << "strided " << a << b << c << dtype;
        }
      }
    }
  }
}

constexpr Fill kFills[] = {
    [](const at::Tensor& local, const Box& box) { fill_uniform(local, box, kStream, -1, 1); },
    [](const at::Tensor& local, const Box& box) { fill_normal(local, box, kStream, 0, 1); },
    [](const at::Tensor& local, const Box& box) { fill_log_normal(local, box, kStream, 0, 1); },
    [](const at::Tensor& local, const Box& box) { fill_bernoulli(local, box, kStream, 0.4); },
    [](const at::Tensor& local, const Box& box) { fill_exponential(local, box, kStream, 1); },
    [](const at::Tensor& local, const Box& box) { fill_integers(local, box, kStream, 0, 100); },
};
INSTANTIATE_TEST_SUITE_P(Distributions, APartOfATensor, testing::ValuesIn(kFills));

TEST(ALongRun, GetsTheSameNumbersInPieces) {
  // Longer than the buffers, from an odd element.
  const at::Tensor whole =
      filled({10'000}, at::kFloat, [](const at::Tensor& t, const Box& box) { fill_normal(t, box, kStream, 0, 1); });
  for (const std::int64_t begin : {1, 1023, 2047}) {
    const at::Tensor part = at::empty({10'000 - begin}, at::kFloat);
    fill_normal(part, {{10'000}, {{begin, 10'000 - begin}}}, kStream, 0, 1);
    EXPECT_TRUE(at::equal(part, whole.slice(0, begin))) << begin;
  }
}

}  // namespace
}  // namespace tessera::tensor
