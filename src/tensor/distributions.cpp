// SPDX-License-Identifier: Apache-2.0
// From words to numbers.
#include "tensor/distributions.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <array>
#include <bit>
#include <cmath>
#include <numbers>

#include "tensor/elementary.h"

namespace tessera::tensor {
namespace {

/// Elements that go through the buffers at once: words and values stay in the first cache.
constexpr std::int64_t kChunk = 1024;
/// Elements that are worth another thread.
constexpr std::int64_t kGrain = 1 << 15;

/// Fills contiguous memory. `make(words, values, count)` turns the words of `count` elements into values. Elements come
/// in groups of `kGroup` that start at a multiple of it, as far as `make` sees; what nobody asked for is dropped.
template <class T, int kWords, int kGroup, class Make>
void fill_contiguous(T* values, const Box& box, const PhiloxStream& stream, const Make& make) {
  const Runs runs(box);
  at::parallel_for(0, box.num_elements(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    std::array<std::uint32_t, static_cast<std::size_t>(kChunk) * kWords> words;
    std::array<T, kChunk> made;
    runs.for_each(begin, end, [&](const Run& run) {
      for (std::int64_t done = 0; done < run.length;) {
        const std::int64_t first = run.whole_first + done;
        const std::int64_t skipped = first % kGroup;
        const std::int64_t count = std::min(kChunk - skipped, run.length - done);
        const std::int64_t whole_groups = (skipped + count + kGroup - 1) / kGroup * kGroup;
        stream.fill(static_cast<std::uint64_t>(first - skipped) * kWords,
                    {words.data(), static_cast<std::size_t>(whole_groups * kWords)});
        make(words.data(), made.data(), whole_groups);
        std::copy_n(made.data() + skipped, count, values + run.box_first + done);
        done += count;
      }
    });
  });
}

/// Fills `local` through memory of type T that is contiguous and on the host: its own where it is that already.
template <class T, int kWords, int kGroup, class Make>
void fill_as(const at::Tensor& local, const Box& box, const PhiloxStream& stream, const Make& make) {
  constexpr at::ScalarType kType = c10::CppTypeToScalarType<T>::value;
  const bool direct = local.is_contiguous() && local.scalar_type() == kType && local.is_cpu();
  const at::Tensor values = direct ? local : at::empty(local.sizes(), at::TensorOptions(kType));
  fill_contiguous<T, kWords, kGroup>(values.mutable_data_ptr<T>(), box, stream, make);
  if (!direct) local.copy_(values);
}

/// The bits of two words that fit the mantissa, as a number in [0, 1).
double unit_double(const std::uint32_t* words) {
  const std::uint64_t bits = words[0] | (std::uint64_t{words[1]} << 32);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

/// The middle of one of 2^32 or 2^53 equal parts of [0, 1]: never 0 or 1, so that logarithms are finite.
double open_unit(std::uint32_t word) { return (static_cast<double>(word) + 0.5) * 0x1p-32; }
double open_unit(const std::uint32_t* words) { return unit_double(words) + 0x1p-54; }

int mantissa_digits(at::ScalarType dtype) { return dtype == at::kBFloat16 ? 8 : dtype == at::kHalf ? 11 : 24; }

/// value = transform(number in (0, 1)), worked out in double.
template <class Transform>
void fill_by_inverse(const at::Tensor& local, const Box& box, const PhiloxStream& stream, const Transform& transform) {
  if (local.element_size() == 8) {
    fill_as<double, 2, 1>(local, box, stream, [&](const std::uint32_t* words, double* values, std::int64_t count) {
      for (std::int64_t i = 0; i < count; ++i) values[i] = transform(open_unit(words + 2 * i));
    });
  } else {
    fill_as<float, 1, 1>(local, box, stream, [&](const std::uint32_t* words, float* values, std::int64_t count) {
      for (std::int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(transform(open_unit(words[i])));
    });
  }
}

/// Two numbers of (0, 1] from the words of two elements, by operations that vector units have.
void pair_of_units(const std::uint32_t* words, float& u, float& v) {
  // A sign less, because only signed integers convert everywhere.
  u = (static_cast<float>(static_cast<std::int32_t>(words[0] >> 1)) + 0.5F) * 0x1p-31F;
  v = static_cast<float>(static_cast<std::int32_t>(words[1] >> 8)) * 0x1p-24F;
}
void pair_of_units(const std::uint32_t* words, double& u, double& v) {
  // 52 bits in the mantissa of a number between 1 and 2.
  const auto unit = [](std::uint64_t bits) { return std::bit_cast<double>((bits >> 12) | 0x3ff0000000000000U) - 1; };
  u = unit(words[0] | (std::uint64_t{words[1]} << 32)) + 0x1p-53;
  v = unit(words[2] | (std::uint64_t{words[3]} << 32));
}

/// finish(normal number) for every element; `finish` works in the type of the values.
template <class T, class Finish>
void fill_from_normal_as(const at::Tensor& local, const Box& box, const PhiloxStream& stream, const Finish& finish) {
  constexpr int kWords = sizeof(T) / sizeof(std::uint32_t);
  fill_as<T, kWords, 2>(local, box, stream, [&](const std::uint32_t* words, T* values, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += 2) {
      T u;
      T v;
      pair_of_units(words + i * kWords, u, v);
      const T radius = std::sqrt(-2 * log_of(u));
      const auto [sine, cosine] = sine_cosine_of_turn(v);
      values[i] = finish(radius * cosine);
      values[i + 1] = finish(radius * sine);
    }
  });
}

template <class Finish>
void fill_from_normal(const at::Tensor& local, const Box& box, const PhiloxStream& stream, const Finish& finish) {
  if (local.scalar_type() == at::kDouble) {
    fill_from_normal_as<double>(local, box, stream, finish);
  } else {
    fill_from_normal_as<float>(local, box, stream, finish);
  }
}

/// A word below the result has probability `p`; all words are below 2^32.
std::uint64_t threshold(double p) { return static_cast<std::uint64_t>(std::llround(p * 0x1p32)); }

/// floor(x * count / 2^64): every value equally often, up to count / 2^64.
std::uint64_t scaled(std::uint64_t x, std::uint64_t count) {
  // Two products of 64 x 32 bits, because C++ has no wider integer.
  const std::uint64_t low = (x & 0xffffffffU) * (count & 0xffffffffU);
  const std::uint64_t mid1 = (x >> 32) * (count & 0xffffffffU) + (low >> 32);
  const std::uint64_t mid2 = (x & 0xffffffffU) * (count >> 32) + (mid1 & 0xffffffffU);
  return (x >> 32) * (count >> 32) + (mid1 >> 32) + (mid2 >> 32);
}

}  // namespace

void fill_uniform(const at::Tensor& local, const Box& box, const PhiloxStream& stream, double from, double to) {
  // Rounding may reach `to`, which does not belong to the range.
  if (local.scalar_type() == at::kDouble) {
    fill_as<double, 2, 1>(local, box, stream, [&](const std::uint32_t* words, double* values, std::int64_t count) {
      for (std::int64_t i = 0; i < count; ++i) {
        const double value = unit_double(words + 2 * i) * (to - from) + from;
        values[i] = value < to ? value : from;
      }
    });
    return;
  }
  const int shift = 32 - mantissa_digits(local.scalar_type());
  const float unit = std::ldexp(1.0F, shift - 32);
  const auto low = static_cast<float>(from);
  const auto high = static_cast<float>(to);
  fill_as<float, 1, 1>(local, box, stream, [&](const std::uint32_t* words, float* values, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      const float value = static_cast<float>(static_cast<std::int32_t>(words[i] >> shift)) * unit * (high - low) + low;
      values[i] = value < high ? value : low;
    }
  });
}

void fill_normal(const at::Tensor& local, const Box& box, const PhiloxStream& stream, double mean, double std) {
  fill_from_normal(local, box, stream, [=]<class T>(T x) { return x * static_cast<T>(std) + static_cast<T>(mean); });
}

void fill_bernoulli(const at::Tensor& local, const Box& box, const PhiloxStream& stream, double p) {
  const auto limit = static_cast<std::uint32_t>(threshold(p));
  const bool always = threshold(p) > limit;
  const auto fill = [&]<class T>(T /*type*/) {
    fill_as<T, 1, 1>(local, box, stream, [&](const std::uint32_t* words, T* values, std::int64_t count) {
      for (std::int64_t i = 0; i < count; ++i) values[i] = static_cast<T>((words[i] < limit) | always);
    });
  };
  if (local.scalar_type() == at::kFloat) return fill(float{});
  if (local.scalar_type() == at::kDouble) return fill(double{});
  fill(bool{});
}

void fill_bernoulli(const at::Tensor& local, const Box& box, const PhiloxStream& stream, const at::Tensor& p) {
  const at::Tensor limits = p.to(at::kCPU, at::kDouble).contiguous();
  const at::Tensor drawn = at::empty(local.sizes(), at::TensorOptions(at::kLong));
  fill_as<std::int64_t, 1, 1>(drawn, box, stream,
                              [](const std::uint32_t* words, std::int64_t* values, std::int64_t count) {
                                for (std::int64_t i = 0; i < count; ++i) values[i] = words[i];
                              });
  const double* limit = limits.const_data_ptr<double>();
  auto* value = drawn.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < drawn.numel(); ++i) {
    value[i] = static_cast<std::uint64_t>(value[i]) < threshold(limit[i]) ? 1 : 0;
  }
  local.copy_(drawn);
}

void fill_integers(const at::Tensor& local, const Box& box, const PhiloxStream& stream, std::int64_t from,
                   std::uint64_t count) {
  fill_as<std::int64_t, 2, 1>(local, box, stream,
                              [&](const std::uint32_t* words, std::int64_t* values, std::int64_t number) {
                                for (std::int64_t i = 0; i < number; ++i) {
                                  const std::uint64_t bits = words[2 * i] | (std::uint64_t{words[2 * i + 1]} << 32);
                                  const std::uint64_t drawn = count == 0 ? bits : scaled(bits, count);
                                  values[i] = static_cast<std::int64_t>(static_cast<std::uint64_t>(from) + drawn);
                                }
                              });
}

void fill_exponential(const at::Tensor& local, const Box& box, const PhiloxStream& stream, double lambda) {
  fill_by_inverse(local, box, stream, [lambda](double u) { return -std::log(u) / lambda; });
}

void fill_geometric(const at::Tensor& local, const Box& box, const PhiloxStream& stream, double p) {
  const double scale = std::log1p(-p);
  fill_by_inverse(local, box, stream, [scale](double u) { return std::ceil(std::log(u) / scale); });
}

void fill_log_normal(const at::Tensor& local, const Box& box, const PhiloxStream& stream, double mean, double std) {
  fill_from_normal(local, box, stream,
                   [=]<class T>(T x) { return std::exp(x * static_cast<T>(std) + static_cast<T>(mean)); });
}

void fill_cauchy(const at::Tensor& local, const Box& box, const PhiloxStream& stream, double median, double sigma) {
  fill_by_inverse(local, box, stream,
                  [=](double u) { return median + sigma * std::tan(std::numbers::pi * (u - 0.5)); });
}

}  // namespace tessera::tensor
