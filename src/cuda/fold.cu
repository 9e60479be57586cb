// SPDX-License-Identifier: Apache-2.0
// One kernel per dtype, reduction and width of access.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "comm/fold_operators.h"
#include "cuda/fold.h"

namespace tessera::cuda {

namespace {

using comm::ReduceOp;
using comm::detail::Add;
using comm::detail::Max;
using comm::detail::Min;
using comm::detail::Multiply;

constexpr unsigned kThreads = 256;
// Enough to fill a GPU; beyond, threads take several packs each.
constexpr std::size_t kMaxBlocks = 2048;
constexpr std::size_t kAccessBytes = 16;

struct Buffers {
  const void* sources[kMaxRanks];
  void* targets[kMaxRanks];
  int num_sources;
  int num_targets;
};

template <class T>
constexpr bool kIsSixteenBitFloat = std::is_same_v<T, c10::Half> || std::is_same_v<T, c10::BFloat16>;

// The type in which elements are accumulated.
template <class T>
using Accumulator = std::conditional_t<kIsSixteenBitFloat<T>, float, T>;

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T values[kWidth];
};

template <class T, class Op, bool kAverage, int kWidth>
__global__ void fold_packs(const Buffers buffers, std::size_t num_packs) {
  using Elements = Pack<T, kWidth>;
  using Sum = Accumulator<T>;
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < num_packs; i += stride) {
    Elements pack = static_cast<const Elements*>(buffers.sources[0])[i];
    Sum sums[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sums[k] = static_cast<Sum>(pack.values[k]);
    for (int s = 1; s < buffers.num_sources; ++s) {
      pack = static_cast<const Elements*>(buffers.sources[s])[i];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sums[k] = Op::apply(sums[k], static_cast<Sum>(pack.values[k]));
    }
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      if constexpr (kAverage) sums[k] = static_cast<Sum>(sums[k] / static_cast<Sum>(buffers.num_sources));
      pack.values[k] = static_cast<T>(sums[k]);
    }
    for (int t = 0; t < buffers.num_targets; ++t) static_cast<Elements*>(buffers.targets[t])[i] = pack;
  }
}

// The buffers from byte `offset` on.
Buffers buffers_of(const Fold& fold, std::size_t offset) {
  Buffers buffers{};
  buffers.num_sources = fold.num_sources;
  buffers.num_targets = fold.num_targets;
  for (int s = 0; s < fold.num_sources; ++s) buffers.sources[s] = fold.sources[s] + offset;
  for (int t = 0; t < fold.num_targets; ++t) buffers.targets[t] = fold.targets[t] + offset;
  return buffers;
}

bool is_aligned(const Fold& fold) {
  std::uintptr_t bits = 0;
  for (int s = 0; s < fold.num_sources; ++s) bits |= reinterpret_cast<std::uintptr_t>(fold.sources[s]);
  for (int t = 0; t < fold.num_targets; ++t) bits |= reinterpret_cast<std::uintptr_t>(fold.targets[t]);
  return bits % kAccessBytes == 0;
}

template <class T, class Op, bool kAverage, int kWidth>
cudaError_t launch(const Fold& fold, std::size_t first, std::size_t count, cudaStream_t stream) {
  const std::size_t num_packs = count / kWidth;
  if (num_packs == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(std::min((num_packs + kThreads - 1) / kThreads, kMaxBlocks));
  fold_packs<T, Op, kAverage, kWidth>
      <<<blocks, kThreads, 0, stream>>>(buffers_of(fold, first * sizeof(T)), num_packs);
  return cudaGetLastError();
}

// Whole packs, then what is left of the last one.
template <class T, class Op, bool kAverage = false>
cudaError_t run(const Fold& fold, cudaStream_t stream) {
  constexpr int kWidth = kAccessBytes / sizeof(T);
  const std::size_t in_packs = is_aligned(fold) ? fold.count / kWidth * kWidth : 0;
  const cudaError_t error = launch<T, Op, kAverage, kWidth>(fold, 0, in_packs, stream);
  if (error != cudaSuccess) return error;
  return launch<T, Op, kAverage, 1>(fold, in_packs, fold.count - in_packs, stream);
}

template <class T>
cudaError_t run_op(const Fold& fold, cudaStream_t stream) {
  switch (fold.op) {
    case ReduceOp::kSum:
      return run<T, Add>(fold, stream);
    case ReduceOp::kAvg:
      return run<T, Add, true>(fold, stream);
    case ReduceOp::kMax:
      return run<T, Max>(fold, stream);
    case ReduceOp::kMin:
      return run<T, Min>(fold, stream);
    case ReduceOp::kProduct:
      return run<T, Multiply>(fold, stream);
  }
  return cudaErrorInvalidValue;
}

// Bytes that are 0 or 1.
cudaError_t run_bool(const Fold& fold, cudaStream_t stream) {
  if (fold.op == ReduceOp::kAvg) return cudaErrorInvalidValue;
  const bool is_or = fold.op == ReduceOp::kSum || fold.op == ReduceOp::kMax;
  return is_or ? run<std::uint8_t, Max>(fold, stream) : run<std::uint8_t, Min>(fold, stream);
}

}  // namespace

cudaError_t enqueue_fold(const Fold& fold, cudaStream_t stream) {
  switch (fold.dtype) {
    case c10::ScalarType::Double:
      return run_op<double>(fold, stream);
    case c10::ScalarType::Float:
      return run_op<float>(fold, stream);
    case c10::ScalarType::BFloat16:
      return run_op<c10::BFloat16>(fold, stream);
    case c10::ScalarType::Half:
      return run_op<c10::Half>(fold, stream);
    case c10::ScalarType::Long:
      return run_op<std::int64_t>(fold, stream);
    case c10::ScalarType::Int:
      return run_op<std::int32_t>(fold, stream);
    case c10::ScalarType::Char:
      return run_op<std::int8_t>(fold, stream);
    case c10::ScalarType::Byte:
      return run_op<std::uint8_t>(fold, stream);
    case c10::ScalarType::Bool:
      return run_bool(fold, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace tessera::cuda
