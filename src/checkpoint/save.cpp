// SPDX-License-Identifier: Apache-2.0
// Writing a checkpoint: every rank its shards, rank 0 the manifest and the name.
#include "checkpoint/save.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <optional>

#include "checkpoint/agreement.h"
#include "checkpoint/collector.h"
#include "checkpoint/dtypes.h"
#include "checkpoint/held.h"
#include "checkpoint/manifest.h"
#include "checkpoint/weights_file.h"
#include "tessera/base/text.h"
#include "tessera/base/version.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera::checkpoint {
namespace {

/// A box that this rank writes, and its memory.
struct Piece {
  std::size_t item;  ///< index of the tensor
  Chunk chunk;
  at::Tensor memory;
};

/// What a rank tells rank 0 about its file.
struct Report {
  std::vector<std::pair<std::size_t, Chunk>> chunks;
  std::optional<ShardFile> file;
};

/// A sum that is not done yet is none of the values that a program knows.
at::Tensor reduced(const at::Tensor& tensor) {
  if (!is_mesh_tensor(tensor) || !placements(tensor).any_partial()) return tensor;
  Placements whole = placements(tensor);
  for (int axis = 0; axis < whole.size(); ++axis) {
    if (whole[axis].is_partial()) whole[axis] = Replicate();
  }
  return redistribute(tensor.detach(), whole);
}

/// Tensors take turns in which of their replicas writes them, so that files are of about one size.
bool writes(const at::Tensor& tensor, std::size_t item, const Group& group) {
  const Replica replica = replica_of(tensor, group.rank(), group.size());
  return replica.index == static_cast<int>(item % static_cast<std::size_t>(replica.count));
}

std::vector<Piece> pieces_of(const std::vector<TensorItem>& items, const Group& group) {
  std::vector<Piece> pieces;
  for (std::size_t item = 0; item < items.size(); ++item) {
    const at::Tensor tensor = reduced(items[item].tensor);
    if (!writes(tensor, item, group)) continue;
    for (const HeldBox& box : held_boxes(tensor)) {
      const bool whole = box.length == tensor.sizes().vec();
      const std::string key = whole ? items[item].name : fmt::format("{}@{}", items[item].name, fmt::join(box.offset, ","));
      const Chunk chunk{.file = shard_name(group.rank(), group.size()), .key = key, .offset = box.offset, .length = box.length,
                        .digests = {}};
      pieces.push_back({item, chunk, part(local(tensor).detach(), box.local_offset, box.length)});
    }
  }
  return pieces;
}

std::int64_t rows_per_block(const at::Tensor& memory, std::int64_t block_bytes) {
  if (memory.dim() == 0) return 1;
  const auto row_bytes = static_cast<std::int64_t>(memory.nbytes()) / memory.size(0);
  return std::clamp<std::int64_t>(block_bytes / row_bytes, 1, memory.size(0));
}

/// Appends the piece to the file and notes the digest of each block.
void write_piece(OutputFile& file, Piece& piece, std::int64_t block_bytes) {
  piece.chunk.rows_per_block = rows_per_block(piece.memory, block_bytes);
  const std::int64_t rows = piece.memory.dim() == 0 ? 1 : piece.memory.size(0);
  for (std::int64_t row = 0; row < rows; row += piece.chunk.rows_per_block) {
    const std::int64_t count = std::min(piece.chunk.rows_per_block, rows - row);
    const at::Tensor part = piece.memory.dim() == 0 ? piece.memory : piece.memory.narrow(0, row, count);
    const at::Tensor bytes = part.cpu().contiguous();
    file.append(bytes.const_data_ptr(), bytes.nbytes());
    piece.chunk.digests.push_back(digest_of(bytes.const_data_ptr(), bytes.nbytes()));
  }
}

/// Writes this rank's file, if there is something in it.
Report write_shard(Files& files, const std::string& folder, std::vector<Piece> pieces, const Group& group,
                   std::int64_t block_bytes) {
  Report report;
  if (pieces.empty()) return report;
  std::stable_sort(pieces.begin(), pieces.end(),
                   [](const Piece& a, const Piece& b) { return a.memory.element_size() > b.memory.element_size(); });
  std::vector<NamedTensor> tensors;
  for (const Piece& piece : pieces) tensors.push_back({piece.chunk.key, piece.memory});
  const std::string name = shard_name(group.rank(), group.size());
  const std::string path = (std::filesystem::path(folder) / name).string();
  const std::string prefix = file_prefix(tensors, {{"format", "pt"}}, path);
  report.file = ShardFile{name, static_cast<std::int64_t>(prefix.size()), digest_of(prefix.data(), prefix.size())};
  OutputFile file(files, path);
  file.append(prefix.data(), prefix.size());
  for (Piece& piece : pieces) {
    write_piece(file, piece, block_bytes);
    report.file->num_bytes += static_cast<std::int64_t>(piece.memory.nbytes());
    report.chunks.emplace_back(piece.item, std::move(piece.chunk));
  }
  file.flush();
  return report;
}

std::string format_report(const Report& report) {
  Json json = {{"chunks", Json::array()}, {"files", Json::array()}};
  for (const auto& [item, chunk] : report.chunks) json["chunks"].push_back({{"item", item}, {"chunk", to_json(chunk)}});
  if (report.file) {
    json["files"].push_back({{"name", report.file->name},
                             {"bytes", report.file->num_bytes},
                             {"header_xxh3", report.file->header_digest}});
  }
  return json.dump();
}

/// Adds what a rank wrote.
void add_report(const std::string& text, const std::vector<TensorItem>& items, std::map<std::string, SavedTensor>& tensors,
                Manifest& manifest) {
  const std::string source = "a rank's report";
  const Json json = parse_strictly(text, source);
  const JsonPlace root(json, source, "");
  for (const JsonPlace& place : root["chunks"].items()) {
    const auto item = static_cast<std::size_t>(place["item"].number());
    tensors.at(items.at(item).name).chunks.push_back(chunk_of(place["chunk"]));
  }
  for (const JsonPlace& place : root["files"].items()) {
    manifest.files.push_back({place["name"].text(), place["bytes"].number(), place["header_xxh3"].text()});
  }
}

Manifest manifest_of(const Collector& collector, const std::vector<std::string>& reports) {
  Manifest manifest;
  manifest.tessera = base::version();
  manifest.libtorch = base::format_version(base::loaded_torch_version());
  manifest.mesh = collector.mesh() ? collector.mesh()->to_string() : "";
  manifest.aliases = collector.aliases();
  for (const ValueItem& item : collector.values()) manifest.values.emplace(item.name, item.value);
  std::map<std::string, SavedTensor> tensors;
  for (const TensorItem& item : collector.tensors()) {
    tensors.emplace(item.name, SavedTensor{item.name, item.role, item.tensor.scalar_type(), item.tensor.sizes().vec(), {}});
  }
  for (const std::string& report : reports) add_report(report, collector.tensors(), tensors, manifest);
  for (auto& [name, tensor] : tensors) {
    check_coverage(tensor, "save");
    manifest.tensors.push_back(std::move(tensor));
  }
  return manifest;
}

void write_file(Files& files, const std::string& folder, const char* name, const std::string& text) {
  OutputFile file(files, (std::filesystem::path(folder) / name).string());
  file.append(text.data(), text.size());
  file.flush();
}

void write_manifest(Files& files, const std::string& folder, const Manifest& manifest) {
  const std::string text = format_manifest(manifest);
  write_file(files, folder, kDigestName, digest_of(text.data(), text.size()) + "\n");
  write_file(files, folder, kManifestName, text);
  files.flush_folder(folder);
}

/// What ranks must have alike, so that one manifest speaks for all.
std::string signature(const Collector& collector) {
  std::string text;
  for (const TensorItem& item : collector.tensors()) {
    text += fmt::format("{} {} [{}]\n", item.name, at::toString(item.tensor.scalar_type()),
                        fmt::join(item.tensor.sizes(), ","));
  }
  return digest_of(text.data(), text.size());
}

/// Names and dtypes that the format has no words for are refused before anything is written.
void check_savable(const Collector& collector) {
  for (const TensorItem& item : collector.tensors()) {
    const auto dtype = item.tensor.scalar_type();
    check<ConfigError>(!dtype_name(dtype).empty(), "save: tensor \"{}\" is of {}; allowed: {}", printable(item.name),
                       at::toString(dtype), all_dtype_names());
  }
  const auto is_utf8 = [](const std::string& text) {
    return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace).find("\xEF\xBF\xBD") == std::string::npos ||
           text.find("\xEF\xBF\xBD") != std::string::npos;
  };
  const auto check_text = [&](const std::string& text) {
    check<ConfigError>(is_utf8(text), "save: the text \"{}\" is not UTF-8; allowed: UTF-8", printable(text));
  };
  for (const TensorItem& item : collector.tensors()) check_text(item.name);
  for (const ValueItem& item : collector.values()) {
    check_text(item.name);
    if (const auto* text = std::get_if<std::string>(&item.value)) check_text(*text);
  }
}

void check_space(const std::string& folder, const Collector& collector) {
  std::int64_t needed = 0;
  for (const TensorItem& item : collector.tensors()) {
    needed += item.tensor.numel() * static_cast<std::int64_t>(item.tensor.element_size());
  }
  struct statvfs status {};
  if (::statvfs(folder.c_str(), &status) != 0) return;  // writing will tell
  const auto free = static_cast<std::int64_t>(status.f_bavail) * static_cast<std::int64_t>(status.f_frsize);
  check<FileError>(free > needed, "{}: {} to write, {} are free; make room, or name another folder", folder,
                   base::human_bytes(needed), base::human_bytes(free));
}

/// Removes the unfinished folder, unless it got its name.
class Cleanup {
 public:
  explicit Cleanup(Files& files) : files_(files) {}
  ~Cleanup() {
    try {
      if (!path_.empty()) files_.remove(path_);
    } catch (const FileError&) {  // the next save tries again
    }
  }
  Cleanup(const Cleanup&) = delete;
  Cleanup& operator=(const Cleanup&) = delete;
  void watch(const std::string& path) { path_ = path; }
  void cancel() { path_.clear(); }

 private:
  Files& files_;
  std::string path_;
};

}  // namespace

void save_through(Files& files, const std::filesystem::path& given, const State& state, const SaveOptions& options) {
  const at::NoGradGuard no_grad;
  check<ConfigError>(options.block_bytes >= 1, "save: block_bytes = {}; allowed: 1 and above", options.block_bytes);
  std::filesystem::path folder = given.lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();
  check<ConfigError>(folder.has_filename() && folder.filename() != "." && folder.filename() != "..",
                     "save: \"{}\" is no name for a new folder; name one, for instance run/step-100", given.string());
  Collector collector(nullptr);
  for (const Part& part : state.parts()) part(collector);
  const Group group(collector.mesh());
  const bool leads = group.rank() == 0;
  Unfinished unfinished;
  Cleanup cleanup(files);
  group.together([&] {
    check_savable(collector);
    if (!leads) return;
    unfinished = begin_folder(files, folder);
    cleanup.watch(unfinished.path);
  });
  const std::vector<std::string> signatures = group.exchange(signature(collector));
  const std::string path = group.exchange(leads ? unfinished.path : "").front();
  Report report;
  const std::vector<Piece> pieces = pieces_of(collector.tensors(), group);
  group.together([&] {
    for (std::size_t rank = 0; rank < signatures.size(); ++rank) {
      check<ConfigError>(signatures[rank] == signatures[0], "save: rank {} has other tensors in its state than rank 0; add "
                         "the same parts on every rank", rank);
    }
    if (leads) check_space(path, collector);
    report = write_shard(files, path, pieces, group, options.block_bytes);
  });
  const std::vector<std::string> reports = group.exchange(format_report(report));
  group.together([&] {
    if (!leads) return;
    write_manifest(files, path, manifest_of(collector, reports));
    publish_folder(files, path, folder);
    cleanup.cancel();
  });
}

}  // namespace tessera::checkpoint

namespace tessera {

void save(const std::filesystem::path& folder, const State& state, const SaveOptions& options) {
  checkpoint::save_through(checkpoint::real_files(), folder, state, options);
}

}  // namespace tessera
