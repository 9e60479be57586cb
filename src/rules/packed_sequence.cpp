// SPDX-License-Identifier: Apache-2.0
// Packed sequences: LibTorch's kernels read lengths from memory and write into slices of a plain tensor. Here lengths
// are plain numbers, the same on every rank, and packing is a look-up by row.
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "rules/composites.h"

namespace tessera::rules {
namespace {

using Integers = std::vector<std::int64_t>;

/// [time, batch, ...] -> [time * batch, ...]
at::Tensor flat_rows(const at::Tensor& steps) { return steps.flatten(0, 1); }

// _pack_padded_sequence(input, lengths, batch_first) -> (the rows in use, step by step; how many each step has)
std::pair<at::Tensor, at::Tensor> pack(const at::Tensor& input, const at::Tensor& lengths, bool batch_first) {
  const at::Tensor steps = batch_first ? input.transpose(0, 1) : input;
  const Integers given = whole_integers(lengths);
  TORCH_CHECK_VALUE(static_cast<std::int64_t>(given.size()) == steps.size(1), "pack_padded_sequence: ", given.size(),
                    " lengths for a batch of ", steps.size(1), "; give one per sequence");
  TORCH_CHECK_VALUE(std::is_sorted(given.rbegin(), given.rend()) && given.back() > 0 && given.front() <= steps.size(0),
                    "pack_padded_sequence: lengths ", given, "; allowed: from ", steps.size(0),
                    " to 1, longest first, or pass enforce_sorted=false");
  Integers rows;
  Integers batch_sizes;
  for (std::int64_t step = 0; step < given.front(); ++step) {
    batch_sizes.push_back(
        std::count_if(given.begin(), given.end(), [&](std::int64_t length) { return length > step; }));
    for (std::int64_t b = 0; b < batch_sizes.back(); ++b) rows.push_back(step * steps.size(1) + b);
  }
  return {flat_rows(steps).index_select(0, at::tensor(rows, input.options().dtype(at::kLong))),
          at::tensor(batch_sizes, at::kLong)};
}
std::tuple<at::Tensor, at::Tensor> pack_padded_sequence(const at::Tensor& input, const at::Tensor& lengths,
                                                        bool batch_first) {
  return pack(input, lengths, batch_first);
}

/// Which row of the packed data stands at [step, sequence]; any where there is none, and that is then `absent`.
struct Layout {
  Integers rows;
  Integers absent;
  Integers lengths;
};
Layout unpacked_layout(const Integers& batch_sizes, std::int64_t num_steps) {
  Layout layout;
  layout.lengths.assign(static_cast<std::size_t>(batch_sizes.front()), 0);
  std::int64_t first = 0;
  for (std::int64_t step = 0; step < num_steps; ++step) {
    const bool packed = step < static_cast<std::int64_t>(batch_sizes.size());
    const std::int64_t present = packed ? batch_sizes[static_cast<std::size_t>(step)] : 0;
    for (std::int64_t b = 0; b < batch_sizes.front(); ++b) {
      layout.rows.push_back(b < present ? first + b : 0);
      layout.absent.push_back(b < present ? 0 : 1);
      if (b < present) ++layout.lengths[static_cast<std::size_t>(b)];
    }
    first += present;
  }
  return layout;
}

// _pad_packed_sequence(data, batch_sizes, batch_first, padding_value, total_length) -> (padded, lengths)
std::tuple<at::Tensor, at::Tensor> pad_packed_sequence(const at::Tensor& data, const at::Tensor& batch_sizes,
                                                       bool batch_first, const at::Scalar& padding_value,
                                                       std::int64_t total_length) {
  const Integers sizes = whole_integers(batch_sizes);
  const auto longest = static_cast<std::int64_t>(sizes.size());
  TORCH_CHECK_VALUE(total_length <= 0 || total_length >= longest, "pad_packed_sequence: total_length ", total_length,
                    " is below ", longest, ", the length of the longest sequence");
  const std::int64_t num_steps = std::max(total_length, longest);
  const Layout layout = unpacked_layout(sizes, num_steps);
  const at::TensorOptions integers_here = data.options().dtype(at::kLong);
  const at::Tensor padded =
      data.index_select(0, at::tensor(layout.rows, integers_here)).unflatten(0, {num_steps, sizes.front()});
  std::vector<std::int64_t> mask_sizes(static_cast<std::size_t>(padded.dim()), 1);
  mask_sizes[0] = num_steps;
  mask_sizes[1] = sizes.front();
  const at::Tensor absent = at::tensor(layout.absent, integers_here).to(at::kBool).view(mask_sizes);
  const at::Tensor result = padded.masked_fill(absent, padding_value);
  return {batch_first ? result.transpose(0, 1) : result, at::tensor(layout.lengths, at::kLong)};
}

}  // namespace

void add_packed_sequence_composites(torch::Library& library) {
  library.impl("_pack_padded_sequence", pack_padded_sequence);
  library.impl("_pad_packed_sequence", pad_packed_sequence);
}

}  // namespace tessera::rules
