// SPDX-License-Identifier: Apache-2.0
// An open weights file: its header, and any part of its tensors.
#pragma once

#include <filesystem>
#include <string>

#include "tensor/box.h"
#include "tessera/train/safetensors.h"
#include "train/weights/descriptor.h"

namespace tessera::train {

class WeightsFile {
 public:
  /// Reads and proves the header. Throws FileError as read_safetensors does.
  explicit WeightsFile(const std::filesystem::path& path);

  [[nodiscard]] const std::vector<TensorEntry>& tensors() const noexcept { return header_.tensors; }
  /// The part `box` of a tensor into `target`, which has the box's lengths and the entry's dtype; nothing else is read.
  void read(const TensorEntry& entry, const tensor::Box& box, const torch::Tensor& target) const;

 private:
  std::string name_;
  Descriptor file_;
  std::uint64_t data_begin_ = 0;
  SafetensorsHeader header_;
};

}  // namespace tessera::train
