// SPDX-License-Identifier: Apache-2.0
// Fills a rank's part of a tensor with random numbers that depend on the elements' places in the whole, not on the cut.
#pragma once

#include <ATen/core/Tensor.h>

#include "tensor/box.h"
#include "tensor/philox.h"

namespace tessera::tensor {

// `local` is the box's part, of any strides, dtype and device; 64-bit types take two words of the stream per element,
// others one. Numbers for another device than the CPU are drawn on the host and copied. Arguments must be legal.

/// [from, to); as many random bits as the mantissa of the dtype has.
void fill_uniform(const at::Tensor& local, const Box& box, const PhiloxStream& stream, double from, double to);

/// Box and Muller 1958, doi:10.1214/aoms/1177706645: elements 2k and 2k + 1 share their words.
void fill_normal(const at::Tensor& local, const Box& box, const PhiloxStream& stream, double mean, double std);

/// 1 with probability `p`, to 2^-32, else 0. The same elements whatever the dtype.
void fill_bernoulli(const at::Tensor& local, const Box& box, const PhiloxStream& stream, double p);

/// The same with a probability per element; `p` has the sizes of `local`.
void fill_bernoulli(const at::Tensor& local, const Box& box, const PhiloxStream& stream, const at::Tensor& p);

/// Integers from `from`, `count` of them; 0 stands for 2^64. Takes two words per element.
void fill_integers(const at::Tensor& local, const Box& box, const PhiloxStream& stream, std::int64_t from,
                   std::uint64_t count);

void fill_exponential(const at::Tensor& local, const Box& box, const PhiloxStream& stream, double lambda);
void fill_geometric(const at::Tensor& local, const Box& box, const PhiloxStream& stream, double p);
void fill_log_normal(const at::Tensor& local, const Box& box, const PhiloxStream& stream, double mean, double std);
void fill_cauchy(const at::Tensor& local, const Box& box, const PhiloxStream& stream, double median, double sigma);

}  // namespace tessera::tensor
