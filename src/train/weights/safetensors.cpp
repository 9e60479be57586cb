// SPDX-License-Identifier: Apache-2.0
// Reads and writes whole weights files.
#include "tessera/train/safetensors.h"

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
#include "train/weights/descriptor.h"
#include "train/weights/dtypes.h"
#include "train/weights/file.h"

namespace tessera::train {
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

// Larger elements first, so that every tensor is aligned to its element.
std::vector<NamedTensor> in_file_order(const std::vector<NamedTensor>& tensors) {
  std::vector<NamedTensor> ordered;
  for (const auto& [name, tensor] : tensors) ordered.push_back({name, tensor.detach().cpu().contiguous()});
  std::stable_sort(ordered.begin(), ordered.end(),
                   [](const auto& a, const auto& b) { return a.tensor.element_size() > b.tensor.element_size(); });
  return ordered;
}

std::string format_header(const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata,
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
    const auto end = offset + tensor.nbytes();
    json[name] = {{"dtype", dtype}, {"shape", tensor.sizes().vec()}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  auto text = json.dump();
  text.resize((text.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  return text;
}

}  // namespace

WeightsFile::WeightsFile(const std::filesystem::path& path)
    : name_(path.string()), file_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  const auto file_bytes = regular_size(file_, name_);
  const auto length = read_header_length(file_, file_bytes, name_);
  std::string json(length, '\0');
  read_at(file_, json.data(), length, kLengthBytes, name_);
  data_begin_ = kLengthBytes + length;
  header_ = parse_safetensors_header(json, file_bytes - data_begin_, name_);
}

void WeightsFile::read(const TensorEntry& entry, const tensor::Box& box, const torch::Tensor& target) const {
  const bool direct = target.is_contiguous() && target.is_cpu();
  const auto memory = direct ? target : torch::empty(target.sizes(), torch::TensorOptions(entry.dtype));
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
    tensors.push_back({entry.name, torch::empty(entry.shape, torch::TensorOptions(entry.dtype))});
    file.read(entry, tensor::Box::whole_of(entry.shape), tensors.back().tensor);
  }
  return tensors;
}

void write_safetensors(const std::vector<NamedTensor>& tensors, const std::filesystem::path& path,
                       const std::map<std::string, std::string>& metadata) {
  const auto ordered = in_file_order(tensors);
  const auto header = format_header(ordered, metadata, path.string());
  const std::uint64_t length = header.size();
  NewFile file(path);
  file.append(&length, sizeof length);
  file.append(header.data(), header.size());
  for (const auto& [name, tensor] : ordered) file.append(tensor.const_data_ptr(), tensor.nbytes());
  file.publish();
}

}  // namespace tessera::train
