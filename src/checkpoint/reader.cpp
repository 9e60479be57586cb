// SPDX-License-Identifier: Apache-2.0
// Blocks from files, and what must be true of both.
#include "checkpoint/reader.h"

#include <ATen/ops/empty.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "checkpoint/dtypes.h"
#include "checkpoint/manifest.h"
#include "tessera/checkpoint/errors.h"

namespace tessera::checkpoint {
namespace {

void check_header(const WeightsFile& file, const ShardFile& expected) {
  std::string header(file.data_begin(), '\0');
  file.read_bytes(header.data(), header.size(), 0);
  check<CheckpointCorrupt>(digest_of(header.data(), header.size()) == expected.header_digest,
                           "{}: its header has another digest than the manifest says; take another checkpoint", file.name());
}

/// The header says of a chunk what the manifest says.
void check_entry(const WeightsFile& file, const SavedTensor& tensor, const Chunk& chunk, const TensorEntry* entry) {
  const bool fits = entry != nullptr && entry->dtype == tensor.dtype && entry->shape == chunk.length;
  check<CheckpointCorrupt>(fits, "{}: tensor {}: the manifest expects {} [{}] under \"{}\", which the file does not have",
                           file.name(), printable(tensor.name), dtype_name(tensor.dtype), fmt::join(chunk.length, ", "),
                           printable(chunk.key));
}

}  // namespace

std::vector<Block> blocks_of(const SavedTensor& tensor) {
  std::vector<Block> blocks;
  for (const Chunk& chunk : tensor.chunks) {
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(chunk.digests.size()); ++i) {
      Block& block = blocks.emplace_back(Block{&tensor, &chunk, i, chunk.offset, chunk.length});
      if (block.length.empty()) continue;
      const std::int64_t row = i * chunk.rows_per_block;
      block.offset[0] += row;
      block.length[0] = std::min(chunk.rows_per_block, chunk.length[0] - row);
    }
  }
  return blocks;
}

Reader::Reader(const std::filesystem::path& folder, const Manifest& manifest)
    : folder_name_(folder.string()),
      folder_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)),
      manifest_(manifest) {
  check<FileError>(folder_.is_open(), "{}: cannot open the folder: {}", folder_name_, std::strerror(errno));
}

Reader::OpenFile Reader::open(const ShardFile& expected) const {
  const std::string name = (std::filesystem::path(folder_name_) / expected.name).string();
  // Relative to the open folder and no link: what is read is in the checkpoint.
  Descriptor descriptor(::openat(folder_.number(), expected.name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  check<CheckpointCorrupt>(descriptor.is_open(), "{}: cannot open: {}", name, std::strerror(errno));
  struct stat status {};
  const bool known = ::fstat(descriptor.number(), &status) == 0;
  check<CheckpointCorrupt>(known && status.st_size == expected.num_bytes, "{}: {} bytes, the manifest says {}", name,
                           known ? status.st_size : -1, expected.num_bytes);
  try {
    OpenFile opened{WeightsFile(std::move(descriptor), name), {}};
    check_header(opened.file, expected);
    for (const TensorEntry& entry : opened.file.tensors()) opened.entries.emplace(entry.name, &entry);
    return opened;
  } catch (const CheckpointCorrupt&) {
    throw;
  } catch (const FileError& error) {
    throw CheckpointCorrupt(error.what());
  }
}

const Reader::OpenFile& Reader::file(const std::string& name) {
  const auto found = files_.find(name);
  if (found != files_.end()) return found->second;
  const auto has_name = [&](const ShardFile& file) { return file.name == name; };
  return files_.emplace(name, open(*std::find_if(manifest_.files.begin(), manifest_.files.end(), has_name))).first->second;
}

void Reader::open_all() {
  std::map<std::string, std::size_t> num_chunks;
  for (const SavedTensor& tensor : manifest_.tensors) {
    for (const Chunk& chunk : tensor.chunks) {
      ++num_chunks[chunk.file];
      const OpenFile& opened = file(chunk.file);
      const auto entry = opened.entries.find(chunk.key);
      check_entry(opened.file, tensor, chunk, entry == opened.entries.end() ? nullptr : entry->second);
    }
  }
  for (const ShardFile& expected : manifest_.files) {
    const OpenFile& opened = file(expected.name);
    check<CheckpointCorrupt>(opened.entries.size() == num_chunks[expected.name],
                             "{}: {} tensors, the manifest says {}", opened.file.name(), opened.entries.size(),
                             num_chunks[expected.name]);
  }
}

const at::Tensor& Reader::read(const Block& block) {
  const OpenFile& opened = file(block.chunk->file);
  const auto found = opened.entries.find(block.chunk->key);
  const TensorEntry* entry = found == opened.entries.end() ? nullptr : found->second;
  check_entry(opened.file, *block.tensor, *block.chunk, entry);
  block_ = at::Tensor();
  block_ = at::empty(block.length, at::TensorOptions(block.tensor->dtype));
  const auto num_bytes = static_cast<std::uint64_t>(block_.nbytes());
  const std::int64_t rows = block.length.empty() ? 0 : block.offset[0] - block.chunk->offset[0];
  const std::uint64_t row_bytes = block.length.empty() ? 0 : num_bytes / static_cast<std::uint64_t>(block.length[0]);
  opened.file.read_bytes(block_.mutable_data_ptr(), num_bytes,
                         opened.file.data_begin() + entry->begin + static_cast<std::uint64_t>(rows) * row_bytes);
  const auto index = static_cast<std::size_t>(block.index);
  check<CheckpointCorrupt>(digest_of(block_.const_data_ptr(), num_bytes) == block.chunk->digests[index],
                           "{}: tensor {}: block {} of {} has another digest than the manifest says; take another checkpoint",
                           opened.file.name(), printable(block.tensor->name), block.index, block.chunk->digests.size());
  return block_;
}

}  // namespace tessera::checkpoint
