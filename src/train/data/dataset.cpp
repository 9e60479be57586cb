// SPDX-License-Identifier: Apache-2.0
// From a named source to samples to train on and samples held out.
#include "tessera/train/dataset.h"

#include <algorithm>
#include <cmath>

#include "tessera/base/error.h"
#include "train/data/readers.h"
#include "train/names.h"

namespace tessera::train {
namespace {

constexpr const char* kDefaultText = "/usr/share/common-licenses";
constexpr std::int64_t kHeldOutShare = 10;
// Streams of make_permutation: epochs count up from 0, so this one is never an epoch.
constexpr std::uint64_t kSplitStream = ~std::uint64_t{0};

RawSamples read_tokens(const Source& source, const InputSpec& input) {
  if (source.kind->word == "synthetic") {
    return cut_windows(make_synthetic_tokens(input.classes), input.width, input.classes, "synthetic");
  }
  const auto path = source.path.empty() ? std::string(kDefaultText) : source.path;
  return cut_windows(read_text_tokens(path), input.width, input.classes, path);
}

RawSamples read_vectors(const Source& source, const DataConfig& config, const InputSpec& input) {
  const auto width = input.kind == InputKind::kImage ? input.width * input.width : input.width;
  if (source.kind->word == "synthetic") {
    check<ConfigError>(width >= input.classes,
                       "data.source = \"synthetic\": {} inputs are fewer than {} classes; the label is the largest of "
                       "the first {} inputs, so take at least as many",
                       width, input.classes, input.classes);
    return make_synthetic_vectors(width, input.classes);
  }
  return source.kind->word == "digits" ? read_digits(config.digits_file, input.classes)
                                       : read_csv(source.path, input.classes);
}

RawSamples shape_vectors(RawSamples samples, const InputSpec& input, const std::string& source) {
  const auto width = samples.input.size(1);
  if (input.kind == InputKind::kVector) {
    check<ConfigError>(width == input.width,
                       "data.source = \"{}\": samples have {} numbers, the model takes {}; set model.sizes to begin "
                       "with {}",
                       source, width, input.width, width);
    return samples;
  }
  const auto side = static_cast<std::int64_t>(std::llround(std::sqrt(static_cast<double>(width))));
  check<ConfigError>(side * side == width,
                     "data.source = \"{}\": {} numbers per sample make no square image; use "
                     "model.name = \"mlp\"",
                     source, width);
  return {samples.input.view({-1, 1, side, side}), samples.target};
}

std::vector<std::int64_t> range(std::int64_t count) {
  std::vector<std::int64_t> indices(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) indices[static_cast<std::size_t>(i)] = i;
  return indices;
}

// A text keeps its order, so that the held-out windows are its end; rows are drawn by lot.
Dataset split(const Samples& all, const InputSpec& input, std::uint64_t seed) {
  const auto count = all.size();
  const auto num_held = count < 2 ? 0 : std::max<std::int64_t>(1, count / kHeldOutShare);
  const auto order = input.kind == InputKind::kTokens ? range(count) : make_permutation(count, seed, kSplitStream);
  const auto border = order.begin() + static_cast<std::ptrdiff_t>(count - num_held);
  return {all.subset({order.begin(), border}), all.subset({border, order.end()}), {}};
}

}  // namespace

Dataset load_dataset(const DataConfig& config, const InputSpec& input, std::uint64_t seed) {
  const auto spelling = config.source.empty() ? default_source(input) : config.source;
  const auto source = parse_source(spelling);
  const bool tokens = input.kind == InputKind::kTokens;
  check<ConfigError>(tokens ? source.kind->for_tokens : source.kind->for_vectors,
                     "data.source = \"{}\" does not fit the model; allowed: {}", spelling, describe_sources(tokens));
  auto raw = tokens ? read_tokens(source, input) : shape_vectors(read_vectors(source, config, input), input, spelling);
  const Samples all(std::move(raw.input), std::move(raw.target));
  auto dataset = batch_order(config) == BatchOrder::kSequential ? Dataset{all, {}, {}} : split(all, input, seed);
  dataset.description =
      fmt::format("{}: {} samples to train on, {} held out", spelling, dataset.train.size(), dataset.held_out.size());
  return dataset;
}

Samples::Samples(torch::Tensor input, torch::Tensor target)
    : input_(std::move(input)), target_(std::move(target)), size_(input_.size(0)) {
  check<ShapeError>(target_.size(0) == size_, "Samples: {} inputs but {} targets", size_, target_.size(0));
}

namespace {

torch::Tensor widen(const torch::Tensor& tensor) {
  return tensor.is_floating_point() ? tensor : tensor.to(torch::kInt64);
}

torch::Tensor as_index(const std::vector<std::int64_t>& indices) { return torch::tensor(indices, torch::kInt64); }

}  // namespace

Batch Samples::take(const std::vector<std::int64_t>& indices) const {
  const auto index = as_index(indices);
  return {widen(input_.index_select(0, index)), widen(target_.index_select(0, index))};
}

Batch Samples::slice(std::int64_t begin, std::int64_t count) const {
  const auto end = std::min(begin + count, size_);
  check<ShapeError>(begin >= 0 && begin < end, "Samples::slice: no samples from {} to {} of {}", begin, begin + count,
                    size_);
  return {widen(input_.slice(0, begin, end)), widen(target_.slice(0, begin, end))};
}

Samples Samples::subset(const std::vector<std::int64_t>& indices) const {
  if (indices.empty()) return {};
  const auto index = as_index(indices);
  return {input_.index_select(0, index), target_.index_select(0, index)};
}

}  // namespace tessera::train
