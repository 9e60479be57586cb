// SPDX-License-Identifier: Apache-2.0
// Reads and writes whole weights files.
#include "tessera/checkpoint/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "tessera/base/error.h"
#include "checkpoint/files.h"
#include "checkpoint/dtypes.h"
#include "checkpoint/weights_file.h"

namespace tessera::checkpoint {
namespace {

static_assert(std::endian::native == std::endian::little, "weights files are little-endian");

constexpr std::uint64_t kLengthBytes = 8;

// The size of a regular file; anything else is refused.
std::uint64_t regular_size(const Descriptor& file, const std::string& name) {
  struct stat status {};
  check<FileError>(file.number() >= 0, "{}: cannot open the weights: {}", name, std::strerror(errno));
  check<FileError>(::fstat(file.number(), &status) == 0, "{}: cannot inspect the file: {}", name, std::strerror(errno));
  check<FileError>(S_ISREG(status.st_mode), "{}: weights must be a regular file", name);
  return static_cast<std::uint64_t>(status.st_size);
}

std::uint64_t read_header_length(const Descriptor& file, std::uint64_t file_bytes, const std::string& name) {
  check<FileError>(file_bytes >= kLengthBytes,
                   "{}: {} bytes are too few for a weights file, which starts with an "
                   "8-byte header length",
                   name, file_bytes);
  std::uint64_t length = 0;
  read_at(file, &length, kLengthBytes, 0, name);
  check<FileError>(length <= kMaxHeaderBytes, "{}: the header claims {} bytes; at most {} are read", name, length,
                   kMaxHeaderBytes);
  check<FileError>(length + kLengthBytes <= file_bytes, "{}: the header claims {} bytes, but only {} follow", name,
                   length, file_bytes - kLengthBytes);
  return length;
}

}  // namespace

void sort_for_file(std::vector<NamedTensor>& tensors) {
  std::stable_sort(tensors.begin(), tensors.end(),
                   [](const auto& a, const auto& b) { return a.tensor.element_size() > b.tensor.element_size(); });
}

std::string file_prefix(const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata,
                        const std::string& file) {
  auto json = nlohmann::ordered_json::object();
  if (!metadata.empty()) json["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  std::set<std::string> names = {"__metadata__"};
  for (const auto& [name, tensor] : tensors) {
    check<FileError>(names.insert(name).second, "{}: the tensor name \"{}\" is taken already", file, printable(name));
    const auto dtype = dtype_name(tensor.scalar_type());
    check<FileError>(!dtype.empty(), "{}: tensor \"{}\" is of {}; a weights file holds {}", file, printable(name),
                     c10::toString(tensor.scalar_type()), all_dtype_names());
    const auto end = offset + static_cast<std::uint64_t>(tensor.numel()) * tensor.element_size();
    json[name] = {{"dtype", dtype}, {"shape", tensor.sizes().vec()}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  auto text = json.dump();
  const std::uint64_t length = (text.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes;
  text.resize(length, ' ');
  std::string prefix(kLengthBytes, '\0');
  std::memcpy(prefix.data(), &length, kLengthBytes);
  return prefix + text;
}

WeightsFile::WeightsFile(const std::filesystem::path& path)
    : WeightsFile(Descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC)), path.string()) {}

WeightsFile::WeightsFile(Descriptor file, std::string name)
    : name_(std::move(name)), file_(std::move(file)), num_bytes_(regular_size(file_, name_)) {
  const auto length = read_header_length(file_, num_bytes_, name_);
  std::string json(length, '\0');
  read_at(file_, json.data(), length, kLengthBytes, name_);
  data_begin_ = kLengthBytes + length;
  header_ = parse_safetensors_header(json, num_bytes_ - data_begin_, name_);
}

void WeightsFile::read(const TensorEntry& entry, const tensor::Box& box, const at::Tensor& target) const {
  const bool direct = target.is_contiguous() && target.is_cpu();
  const auto memory = direct ? target : at::empty(target.sizes(), at::TensorOptions(entry.dtype));
  const auto element = c10::elementSize(entry.dtype);
  auto* bytes = static_cast<char*>(memory.mutable_data_ptr());
  tensor::Runs(box).for_each(0, box.num_elements(), [&](const tensor::Run& run) {
    const auto count = [&](std::int64_t elements) { return static_cast<std::uint64_t>(elements) * element; };
    read_at(file_, bytes + count(run.box_first), count(run.length), data_begin_ + entry.begin + count(run.whole_first),
            name_);
  });
  if (!direct) target.copy_(memory);
}

std::vector<NamedTensor> read_safetensors(const std::filesystem::path& path) {
  const WeightsFile file(path);
  std::vector<NamedTensor> tensors;
  for (const auto& entry : file.tensors()) {
    tensors.push_back({entry.name, at::empty(entry.shape, at::TensorOptions(entry.dtype))});
    file.read(entry, tensor::Box::whole_of(entry.shape), tensors.back().tensor);
  }
  return tensors;
}

void write_safetensors(const std::vector<NamedTensor>& tensors, const std::filesystem::path& path,
                       const std::map<std::string, std::string>& metadata) {
  auto ordered = tensors;
  sort_for_file(ordered);
  const auto prefix = file_prefix(ordered, metadata, path.string());
  NewFile file(path);
  file.append(prefix.data(), prefix.size());
  for (const auto& [name, tensor] : ordered) {
    const auto memory = tensor.detach().cpu().contiguous();
    file.append(memory.const_data_ptr(), memory.nbytes());
  }
  file.publish();
}

}  // namespace tessera::checkpoint
