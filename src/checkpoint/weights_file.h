// SPDX-License-Identifier: Apache-2.0
// An open weights file: its header, and any part of its tensors.
#pragma once

#include <filesystem>
#include <string>

#include "tensor/box.h"
#include "tessera/checkpoint/safetensors.h"
#include "checkpoint/files.h"

namespace tessera::checkpoint {

class WeightsFile {
 public:
  /// Reads and proves the header. Throws FileError as read_safetensors does.
  explicit WeightsFile(const std::filesystem::path& path);
  /// The same of a file that is open; `name` stands for it in messages.
  WeightsFile(Descriptor file, std::string name);

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] std::uint64_t num_bytes() const noexcept { return num_bytes_; }
  /// Where the data begin.
  [[nodiscard]] std::uint64_t data_begin() const noexcept { return data_begin_; }
  /// Bytes as they are, counted from the beginning of the file.
  void read_bytes(void* target, std::uint64_t num_bytes, std::uint64_t offset) const {
    read_at(file_, target, num_bytes, offset, name_);
  }

  [[nodiscard]] const std::vector<TensorEntry>& tensors() const noexcept { return header_.tensors; }
  /// The part `box` of a tensor into `target`, which has the box's lengths and the entry's dtype; nothing else is read.
  void read(const TensorEntry& entry, const tensor::Box& box, const at::Tensor& target) const;

 private:
  std::string name_;
  Descriptor file_;
  std::uint64_t num_bytes_ = 0;
  std::uint64_t data_begin_ = 0;
  SafetensorsHeader header_;
};

/// Larger elements first, so that every tensor is aligned to its element.
void sort_for_file(std::vector<NamedTensor>& tensors);

/// What stands before the data of these tensors, in this order: the header and its length. `file` stands for the file in
/// messages. Throws FileError as write_safetensors does.
[[nodiscard]] std::string file_prefix(const std::vector<NamedTensor>& tensors,
                                      const std::map<std::string, std::string>& metadata, const std::string& file);

}  // namespace tessera::checkpoint
