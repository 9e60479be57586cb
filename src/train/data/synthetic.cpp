// SPDX-License-Identifier: Apache-2.0
// Data made by formula: needs no file and is the same on every machine.
#include "train/data/readers.h"

namespace tessera::train {

RawSamples make_synthetic_vectors(std::int64_t width, std::int64_t classes) {
  constexpr std::int64_t kNumSamples = 4096;
  constexpr std::uint64_t kSeed = 1;
  auto generator = at::make_generator<at::CPUGeneratorImpl>(kSeed);
  auto input = torch::randn({kNumSamples, width}, generator, torch::TensorOptions(torch::kFloat32));
  auto target = input.slice(1, 0, classes).argmax(1);
  return {input, target};
}

torch::Tensor make_synthetic_tokens(std::int64_t vocab) {
  constexpr std::int64_t kNumTokens = 1 << 16;
  auto tokens = torch::empty({kNumTokens}, torch::kInt64);
  auto* out = tokens.mutable_data_ptr<std::int64_t>();
  std::int64_t token = 0;
  std::int64_t state = 1;
  for (std::int64_t i = 0; i < kNumTokens; ++i) {
    state = (1103515245 * state + 12345) % (std::int64_t{1} << 31);
    token = (5 * token + 1 + (state >> 16) % 4) % vocab;
    out[i] = token;
  }
  return tokens;
}

}  // namespace tessera::train
