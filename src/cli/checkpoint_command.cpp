// SPDX-License-Identifier: Apache-2.0
// `tessera checkpoint`: looks into checkpoints, proves, compares and exports them.
#include <cmath>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "tessera/base/error.h"
#include "tessera/base/text.h"
#include "tessera/checkpoint/checkpoints.h"
#include "tessera/checkpoint/tools.h"
#include "tessera/launch/failure.h"
#include "tessera/train/metrics.h"

namespace tessera::cli {
namespace {

using Json = nlohmann::ordered_json;

struct CheckpointFlags {
  std::string folder;
  std::string other;
  std::string to;
  std::string part = "model";
  std::string format = "safetensors";
  std::string json;
  bool digests = false;
};

/// A checkpoint's own folder, or that of a run, which means its newest checkpoint.
std::filesystem::path chosen_folder(const std::string& given) {
  std::filesystem::path chosen(given);
  if (checkpoint::is_checkpoint(chosen)) return chosen;
  const auto newest = newest_step(chosen);
  return newest ? chosen / step_folder(*newest) : chosen;
}

std::string shape_text(const std::vector<std::int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

std::int64_t total_bytes(const checkpoint::Manifest& manifest) {
  std::int64_t bytes = 0;
  for (const checkpoint::SavedTensor& tensor : manifest.tensors) bytes += tensor.num_bytes();
  return bytes;
}

std::map<std::string, std::string> digests_of(const CheckpointFlags& flags, const std::filesystem::path& folder,
                                              const checkpoint::Manifest& manifest) {
  std::map<std::string, std::string> digests;
  if (!flags.digests) return digests;
  for (const auto& [name, digest] : checkpoint::tensor_digests(folder, manifest)) digests[name] = digest;
  return digests;
}

Json json_of(const checkpoint::SavedTensor& tensor, const std::map<std::string, std::string>& digests) {
  Json json = {{"name", tensor.name},
               {"role", tensor.role},
               {"dtype", c10::toString(tensor.dtype)},
               {"shape", tensor.shape},
               {"bytes", tensor.num_bytes()},
               {"chunks", tensor.chunks.size()}};
  if (const auto digest = digests.find(tensor.name); digest != digests.end()) json["digest"] = digest->second;
  return json;
}

/// One line for the checkpoint, then one per tensor.
void inspect_json(const CheckpointFlags& flags, const std::filesystem::path& folder, const checkpoint::Manifest& manifest) {
  train::JsonLines json(flags.json);
  Json values = Json::object();
  for (const auto& [name, value] : manifest.values) values[name] = checkpoint::to_string(value);
  const auto found = manifest.values.find("step");
  const auto* step = found == manifest.values.end() ? nullptr : std::get_if<std::int64_t>(&found->second);
  json.write(Json{{"checkpoint", folder.string()},
                  {"format", manifest.format},
                  {"step", step == nullptr ? Json() : Json(*step)},
                  {"mesh", manifest.mesh},
                  {"tessera", manifest.tessera},
                  {"libtorch", manifest.libtorch},
                  {"files", manifest.files.size()},
                  {"tensors", manifest.tensors.size()},
                  {"bytes", total_bytes(manifest)},
                  {"values", values},
                  {"aliases", manifest.aliases}}
                 .dump());
  const auto digests = digests_of(flags, folder, manifest);
  for (const checkpoint::SavedTensor& tensor : manifest.tensors) json.write(json_of(tensor, digests).dump());
}

/// Names as a tree: what a name has in common with the one before it is not said again.
void print_tree(const checkpoint::Manifest& manifest, const std::map<std::string, std::string>& digests) {
  std::vector<std::string> open;
  for (const checkpoint::SavedTensor& tensor : manifest.tensors) {
    std::vector<std::string> path;
    for (std::size_t begin = 0; begin != std::string::npos;) {
      const std::size_t dot = tensor.name.find('.', begin);
      path.push_back(tensor.name.substr(begin, dot == std::string::npos ? dot : dot - begin));
      begin = dot == std::string::npos ? dot : dot + 1;
    }
    std::size_t common = 0;
    while (common + 1 < path.size() && common < open.size() && open[common] == path[common]) ++common;
    for (std::size_t depth = common; depth + 1 < path.size(); ++depth) {
      std::cout << std::string(2 * depth + 2, ' ') << path[depth] << '\n';
    }
    const std::string line = std::string(2 * path.size(), ' ') + path.back();
    const auto digest = digests.find(tensor.name);
    std::cout << fmt::format("{:<40} {:>10} {:<16} {:>10}{}\n", line, c10::toString(tensor.dtype), shape_text(tensor.shape),
                             base::human_bytes(tensor.num_bytes()),
                             digest == digests.end() ? "" : "  " + digest->second);
    path.pop_back();
    open = std::move(path);
  }
}

int inspect(const CheckpointFlags& flags) {
  const std::filesystem::path folder = chosen_folder(flags.folder);
  const checkpoint::Manifest manifest = checkpoint::read_manifest(folder);
  if (!flags.json.empty()) inspect_json(flags, folder, manifest);
  if (flags.json == "-") return 0;
  std::cout << fmt::format("{}: {} tensors, {} in {} files; mesh {}; Tessera {}, LibTorch {}\n", folder.string(),
                           manifest.tensors.size(), base::human_bytes(total_bytes(manifest)), manifest.files.size(),
                           manifest.mesh.empty() ? "none" : manifest.mesh, manifest.tessera, manifest.libtorch);
  print_tree(manifest, digests_of(flags, folder, manifest));
  for (const auto& [name, target] : manifest.aliases) std::cout << fmt::format("  {} = {}\n", name, target);
  for (const auto& [name, value] : manifest.values) {
    const std::string text = checkpoint::to_string(value);
    if (text.find('\n') == std::string::npos) std::cout << fmt::format("  {} = {}\n", name, text);
  }
  return 0;
}

int verify(const CheckpointFlags& flags) {
  const std::filesystem::path folder = chosen_folder(flags.folder);
  const checkpoint::Verdict verdict = checkpoint::verify_checkpoint(folder);
  if (!flags.json.empty()) {
    train::JsonLines(flags.json)
        .write(Json{{"checkpoint", folder.string()},
                    {"files", verdict.num_files},
                    {"blocks", verdict.num_blocks},
                    {"bytes", verdict.num_bytes},
                    {"problems", verdict.problems},
                    {"holds", verdict.problems.empty()}}
                   .dump());
  }
  if (flags.json != "-") {
    for (const std::string& problem : verdict.problems) std::cout << problem << '\n';
    std::cout << fmt::format("{}: {}; {} files, {} blocks, {}\n", folder.string(),
                             verdict.problems.empty() ? "whole" : "damaged", verdict.num_files, verdict.num_blocks,
                             base::human_bytes(verdict.num_bytes));
  }
  return verdict.problems.empty() ? 0 : launcher::kExitFailed;
}

int diff(const CheckpointFlags& flags) {
  const std::vector<checkpoint::Difference> differences =
      checkpoint::compare(chosen_folder(flags.folder), chosen_folder(flags.other));
  train::JsonLines json(flags.json);
  for (const checkpoint::Difference& difference : differences) {
    json.write(Json{{"name", difference.name},
                    {"difference", difference.what},
                    {"elements", difference.count},
                    {"largest", std::isfinite(difference.largest) ? Json(difference.largest) : Json()}}
                   .dump());
    if (flags.json == "-") continue;
    const std::string largest = difference.count > 0 ? fmt::format(", by at most {:.3g}", difference.largest) : "";
    std::cout << fmt::format("{}: {}{}\n", difference.name, difference.what, largest);
  }
  if (flags.json != "-" && differences.empty()) std::cout << "equal, bit for bit\n";
  return differences.empty() ? 0 : launcher::kExitFailed;
}

int export_to(const CheckpointFlags& flags) {
  check<ConfigError>(flags.format == "safetensors", "--format \"{}\" is not known; allowed: safetensors", flags.format);
  const std::int64_t count = checkpoint::export_safetensors(chosen_folder(flags.folder), flags.part, flags.to);
  std::cout << fmt::format("{}: {} tensors\n", flags.to, count);
  return 0;
}

using Action = int (*)(const CheckpointFlags&);

/// A command on one folder, with --json.
CLI::App* add_action(CLI::App& app, const std::shared_ptr<CheckpointFlags>& flags, const char* name, const char* does,
                     bool has_json) {
  CLI::App* action = app.add_subcommand(name, does);
  action->add_option("folder", flags->folder, "a checkpoint's folder, or a run's: its newest checkpoint")
      ->option_text("DIR")
      ->required();
  if (has_json) {
    action->add_option("--json", flags->json, "writes JSON objects, one per line, to this file; - is standard output")
        ->option_text("FILE");
  }
  return action;
}

}  // namespace

Command add_checkpoint(CLI::App& app, const Invocation& /*invocation*/) {
  CLI::App* command = app.add_subcommand("checkpoint", "looks into checkpoints, checks, compares and exports them");
  command->footer("\nExamples:\n"
                  "  tessera checkpoint inspect run/step-200\n"
                  "  tessera checkpoint verify run\n"
                  "  tessera checkpoint diff run/step-100 run/step-200\n"
                  "  tessera checkpoint export run --to model.safetensors");
  command->require_subcommand(0, 1);
  const auto flags = std::make_shared<CheckpointFlags>();
  CLI::App* inspects = add_action(*command, flags, "inspect", "shows step, mesh, values and every tensor", true);
  inspects->add_flag("--digests", flags->digests, "the digest of each tensor, which does not depend on its mesh; reads all of it");
  (void)add_action(*command, flags, "verify", "reads every byte; exit code 1 if something is damaged", true);
  CLI::App* compares = add_action(*command, flags, "diff", "which tensors and values differ, and by how much; exit code 1 if any", true);
  compares->add_option("other", flags->other, "the checkpoint to compare with")->option_text("DIR")->required();
  CLI::App* exports = add_action(*command, flags, "export", "writes one safetensors file", false);
  exports->add_option("--to", flags->to, "the file")->option_text("FILE")->required();
  exports->add_option("--part", flags->part, "what is exported, under the names within it; \"\": everything (default model)")
      ->option_text("NAME");
  exports->add_option("--format", flags->format, "safetensors (default)")->option_text("FORMAT");
  const std::map<std::string, Action> actions = {
      {"inspect", inspect}, {"verify", verify}, {"diff", diff}, {"export", export_to}};
  return [command, flags, actions] {
    const auto chosen = command->get_subcommands();
    check<ConfigError>(!chosen.empty(), "checkpoint: nothing to do was named; allowed: inspect, verify, diff, export, for "
                       "instance `tessera checkpoint inspect run`");
    return actions.at(chosen.front()->get_name())(*flags);
  };
}

}  // namespace tessera::cli
