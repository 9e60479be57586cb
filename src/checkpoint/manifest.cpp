// SPDX-License-Identifier: Apache-2.0
// The manifest of a checkpoint: its text, and the proof that it makes sense.
#include "checkpoint/manifest.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <set>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "checkpoint/dtypes.h"
#include "checkpoint/files.h"
#include "tessera/checkpoint/errors.h"

namespace tessera::checkpoint {
namespace {

constexpr std::int64_t kMaxManifestBytes = std::int64_t{1} << 30;
constexpr std::size_t kDigestDigits = 32;
constexpr const char* kKinds[] = {"int", "count", "real", "bool", "text"};  // as the alternatives of Value

constexpr const char* kRoles[] = {"parameter", "buffer", "optimizer", "average", "random", "tensor"};

template <class Number>
Number parse_number(const std::string& text, const JsonPlace& place) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size()) {
    place.refuse(fmt::format("\"{}\" is no number of its kind", printable(text)));
  }
  return number;
}

Value value_of(const JsonPlace& place) {
  const auto members = place.members();
  if (members.size() != 1) place.refuse("a value has one kind");
  const auto& [kind, content] = members.front();
  const std::string text = content.text();
  if (kind == kKinds[0]) return parse_number<std::int64_t>(text, place);
  if (kind == kKinds[1]) return parse_number<std::uint64_t>(text, place);
  if (kind == kKinds[2]) return parse_number<double>(text, place);
  if (kind == kKinds[3] && (text == "true" || text == "false")) return text == "true";
  if (kind == kKinds[4]) return text;
  place.refuse(fmt::format("\"{}\" of kind \"{}\" is no value; kinds are {}", printable(text), printable(kind),
                           fmt::join(kKinds, ", ")));
}

std::string digest_text(const JsonPlace& place) {
  std::string text = place.text();
  const bool digits = text.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (text.size() != kDigestDigits || !digits) place.refuse("a digest has 32 hexadecimal digits");
  return text;
}

/// Elements of the tensor; refuses what has no 63 bits for its bytes.
void check_size(const SavedTensor& tensor, const JsonPlace& place) {
  std::int64_t bytes = static_cast<std::int64_t>(c10::elementSize(tensor.dtype));
  for (const std::int64_t size : tensor.shape) {
    if (size != 0 && __builtin_mul_overflow(bytes, size, &bytes)) place.refuse("the shape needs more than 2^63 bytes");
  }
}

void check_chunk(const SavedTensor& tensor, const Chunk& chunk, const JsonPlace& place) {
  const std::size_t dims = tensor.shape.size();
  if (chunk.offset.size() != dims || chunk.length.size() != dims) {
    place.refuse(fmt::format("offset and length need {} numbers, one per dim", dims));
  }
  for (std::size_t dim = 0; dim < dims; ++dim) {
    const bool fits = chunk.length[dim] >= 1 && chunk.offset[dim] <= tensor.shape[dim] &&
                      chunk.length[dim] <= tensor.shape[dim] - chunk.offset[dim];
    if (!fits) {
      place.refuse(fmt::format("{} from {} on reaches beyond dim {} of {}", chunk.length[dim], chunk.offset[dim], dim,
                               tensor.shape[dim]));
    }
  }
  const std::int64_t rows = dims == 0 ? 1 : chunk.length[0];
  if (chunk.rows_per_block < 1) place.refuse("rows_per_block is at least 1");
  const std::int64_t blocks = rows / chunk.rows_per_block + (rows % chunk.rows_per_block == 0 ? 0 : 1);
  if (static_cast<std::int64_t>(chunk.digests.size()) != blocks) {
    place.refuse(fmt::format("{} digests for {} blocks", chunk.digests.size(), blocks));
  }
}

SavedTensor tensor_of(const JsonPlace& place) {
  place.has_exactly({"name", "role", "dtype", "shape", "chunks"});
  SavedTensor tensor;
  tensor.name = place["name"].text();
  tensor.role = place["role"].text();
  if (std::find(std::begin(kRoles), std::end(kRoles), tensor.role) == std::end(kRoles)) {
    place.refuse(fmt::format("role \"{}\" is not known", printable(tensor.role)));
  }
  const auto dtype = parse_dtype(place["dtype"].text());
  if (!dtype) place.refuse(fmt::format("the dtype is not known; allowed: {}", all_dtype_names()));
  tensor.dtype = *dtype;
  tensor.shape = place["shape"].numbers();
  check_size(tensor, place);
  for (const JsonPlace& item : place["chunks"].items()) {
    tensor.chunks.push_back(chunk_of(item));
    check_chunk(tensor, tensor.chunks.back(), item);
  }
  return tensor;
}

bool overlap(const Chunk& a, const Chunk& b) {
  for (std::size_t dim = 0; dim < a.offset.size(); ++dim) {
    if (a.offset[dim] + a.length[dim] <= b.offset[dim] || b.offset[dim] + b.length[dim] <= a.offset[dim]) return false;
  }
  return true;
}

ShardFile file_of(const JsonPlace& place) {
  place.has_exactly({"name", "bytes", "header_xxh3"});
  ShardFile file{place["name"].text(), place["bytes"].number(), digest_text(place["header_xxh3"])};
  if (!is_shard_name(file.name)) place.refuse(fmt::format("\"{}\" is no name of a shard", printable(file.name)));
  return file;
}

/// The whole of a small file.
std::string read_whole(const std::filesystem::path& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  const std::string name = path.string();
  check<CheckpointCorrupt>(file.is_open(), "{}: cannot open: {}", name, std::strerror(errno));
  struct stat status {};
  const bool regular = ::fstat(file.number(), &status) == 0 && S_ISREG(status.st_mode);
  check<CheckpointCorrupt>(regular, "{}: is no regular file", name);
  check<CheckpointCorrupt>(status.st_size <= kMaxManifestBytes, "{}: {} bytes; at most {} are read", name,
                           status.st_size, kMaxManifestBytes);
  std::string text(static_cast<std::size_t>(status.st_size), '\0');
  read_at(file, text.data(), text.size(), 0, name);
  return text;
}

/// A manifest of another format may have other fields, so this one comes first.
int format_of(const JsonPlace& root, const std::string& file) {
  const std::int64_t format = root["format"].number();
  if (format != kFormat) {
    throw CheckpointMismatch(fmt::format("{}: format {}; allowed: {}; read it with the version of Tessera that wrote it",
                                         file, format, kFormat));
  }
  return kFormat;
}

}  // namespace

std::string to_string(const Value& value) {
  return std::visit(
      [](const auto& content) -> std::string {
        using Content = std::decay_t<decltype(content)>;
        if constexpr (std::is_same_v<Content, std::string>) {
          return content;
        } else if constexpr (std::is_same_v<Content, double>) {
          std::array<char, 32> text{};
          return {text.data(), std::to_chars(text.data(), text.data() + text.size(), content).ptr};
        } else {
          return fmt::format("{}", content);
        }
      },
      value);
}

std::int64_t volume(const std::vector<std::int64_t>& lengths) noexcept {
  std::int64_t product = 1;
  for (const std::int64_t length : lengths) product *= length;
  return product;
}

std::int64_t SavedTensor::num_bytes() const noexcept {
  return volume(shape) * static_cast<std::int64_t>(c10::elementSize(dtype));
}

const SavedTensor* Manifest::find(const std::string& name) const {
  const auto before = [](const SavedTensor& tensor, const std::string& wanted) { return tensor.name < wanted; };
  const auto found = std::lower_bound(tensors.begin(), tensors.end(), name, before);
  return found != tensors.end() && found->name == name ? &*found : nullptr;
}

std::string digest_of(const void* bytes, std::size_t num_bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes, num_bytes);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

std::string shard_name(int rank, int num_ranks) {
  return fmt::format("shard-{:05}-of-{:05}.safetensors", rank, num_ranks);
}

bool is_shard_name(std::string_view name) {
  return name.starts_with("shard-") && name.ends_with(".safetensors") &&
         name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-.") == std::string_view::npos;
}

Json to_json(const Chunk& chunk) {
  return {{"file", chunk.file},     {"key", chunk.key},
          {"offset", chunk.offset}, {"length", chunk.length},
          {"rows_per_block", chunk.rows_per_block}, {"xxh3", chunk.digests}};
}

Chunk chunk_of(const JsonPlace& place) {
  place.has_exactly({"file", "key", "offset", "length", "rows_per_block", "xxh3"});
  Chunk chunk{.file = place["file"].text(),
              .key = place["key"].text(),
              .offset = place["offset"].numbers(),
              .length = place["length"].numbers(),
              .rows_per_block = place["rows_per_block"].number(),
              .digests = {}};
  for (const JsonPlace& item : place["xxh3"].items()) chunk.digests.push_back(digest_text(item));
  return chunk;
}

Json to_json(const SavedTensor& tensor) {
  Json chunks = Json::array();
  for (const Chunk& chunk : tensor.chunks) chunks.push_back(to_json(chunk));
  return {{"name", tensor.name},
          {"role", tensor.role},
          {"dtype", dtype_name(tensor.dtype)},
          {"shape", tensor.shape},
          {"chunks", std::move(chunks)}};
}

std::string format_manifest(const Manifest& manifest) {
  Json values = Json::object();
  for (const auto& [name, value] : manifest.values) values[name] = {{kKinds[value.index()], to_string(value)}};
  Json aliases = Json::object();
  for (const auto& [name, target] : manifest.aliases) aliases[name] = target;
  std::vector<std::string> tensors;
  for (const SavedTensor& tensor : manifest.tensors) tensors.push_back(to_json(tensor).dump());
  std::vector<std::string> files;
  for (const ShardFile& file : manifest.files) {
    files.push_back(
        Json{{"name", file.name}, {"bytes", file.num_bytes}, {"header_xxh3", file.header_digest}}.dump());
  }
  // A line per tensor and file, so that people can read and compare it.
  const Json writer = {{"tessera", manifest.tessera}, {"libtorch", manifest.libtorch}};
  return fmt::format(
      "{{\"format\":{},\n\"writer\":{},\n\"mesh\":{},\n\"values\":{},\n\"aliases\":{},\n\"files\":[\n{}],\n"
      "\"tensors\":[\n{}]}}\n",
      manifest.format, writer.dump(), Json(manifest.mesh).dump(), values.dump(), aliases.dump(),
      fmt::join(files, ",\n"), fmt::join(tensors, ",\n"));
}

void check_coverage(const SavedTensor& tensor, const std::string& file) {
  const std::int64_t wanted = volume(tensor.shape);
  std::int64_t found = 0;
  for (const Chunk& chunk : tensor.chunks) found += volume(chunk.length);
  check<CheckpointCorrupt>(found == wanted, "{}: tensor {}: the chunks hold {} of {} elements", file,
                           printable(tensor.name), found, wanted);
  for (std::size_t i = 0; i < tensor.chunks.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      check<CheckpointCorrupt>(!overlap(tensor.chunks[i], tensor.chunks[j]), "{}: tensor {}: chunks {} and {} overlap",
                               file, printable(tensor.name), j, i);
    }
  }
}

Manifest parse_manifest(std::string_view text, const std::string& file) {
  const Json json = parse_strictly(text, file);
  const JsonPlace root(json, file, "");
  Manifest manifest;
  manifest.format = format_of(root, file);
  root.has_exactly({"format", "writer", "mesh", "values", "tensors", "aliases", "files"});
  const JsonPlace writer = root["writer"];
  writer.has_exactly({"tessera", "libtorch"});
  manifest.tessera = writer["tessera"].text();
  manifest.libtorch = writer["libtorch"].text();
  manifest.mesh = root["mesh"].text();
  for (const auto& [name, place] : root["values"].members()) manifest.values.emplace(name, value_of(place));
  std::set<std::string> files;
  for (const JsonPlace& place : root["files"].items()) {
    manifest.files.push_back(file_of(place));
    if (!files.insert(manifest.files.back().name).second) place.refuse("the file comes twice");
  }
  for (const JsonPlace& place : root["tensors"].items()) {
    SavedTensor tensor = tensor_of(place);
    const bool sorted = manifest.tensors.empty() || manifest.tensors.back().name < tensor.name;
    if (!sorted) place.refuse("tensors do not come in the order of their names, each once");
    for (const Chunk& chunk : tensor.chunks) {
      if (!files.contains(chunk.file)) place.refuse(fmt::format("file \"{}\" is not listed", printable(chunk.file)));
    }
    check_coverage(tensor, file);
    manifest.tensors.push_back(std::move(tensor));
  }
  for (const auto& [name, place] : root["aliases"].members()) {
    const std::string target = place.text();
    if (manifest.find(target) == nullptr) place.refuse(fmt::format("there is no tensor \"{}\"", printable(target)));
    manifest.aliases.emplace(name, target);
  }
  return manifest;
}

bool is_checkpoint(const std::filesystem::path& folder) { return std::filesystem::exists(folder / kManifestName); }

Manifest read_manifest(const std::filesystem::path& folder) {
  const std::string name = (folder / kManifestName).string();
  check<FileError>(std::filesystem::is_directory(folder), "{}: there is no such folder; name that of a checkpoint",
                   folder.string());
  check<FileError>(is_checkpoint(folder), "{}: has no {}; name the folder of a checkpoint", folder.string(),
                   kManifestName);
  const std::string text = read_whole(folder / kManifestName);
  const std::string wanted = read_whole(folder / kDigestName);
  const std::string found = digest_of(text.data(), text.size());
  check<CheckpointCorrupt>(found + "\n" == wanted, "{}: its digest is {}, {} says {}; take another checkpoint", name, found,
                           kDigestName, printable(wanted));
  Manifest manifest = parse_manifest(text, name);
  manifest.digest = found;
  return manifest;
}

}  // namespace tessera::checkpoint
