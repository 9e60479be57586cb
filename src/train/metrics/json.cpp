// SPDX-License-Identifier: Apache-2.0
// Records as lines of JSON, and the file that takes them.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "tessera/base/error.h"
#include "tessera/train/metrics.h"
#include "verify/json_fields.h"

namespace tessera::train {
namespace {

using Json = nlohmann::ordered_json;

// nlohmann writes numbers that are not finite as null.
std::string one_line(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

template <class T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json(nullptr);
}

}  // namespace

std::string format_json(const StepRecord& record, std::string_view unit) {
  return one_line({{"step", record.step},
                   {"loss", record.loss},
                   {"lr", record.lr},
                   {"grad_norm", record.grad_norm},
                   {"step_ms", record.step_ms},
                   {fmt::format("{}_per_s", unit), record.rate_per_s},
                   {"comm_bytes", record.comm_bytes},
                   {"comm_ms_exposed", record.comm_ms_exposed},
                   {"peak_memory_bytes", record.peak_memory_bytes},
                   {"allocated_bytes", or_null(record.allocated_bytes)},
                   {"peak_allocated_bytes", or_null(record.peak_allocated_bytes)}});
}

std::string format_json(const EvalRecord& record) {
  const auto* quality = record.metric == Metric::kAccuracy ? "eval_accuracy" : "eval_perplexity";
  return one_line({{"step", record.step}, {"eval_loss", record.loss}, {quality, record.quality}});
}

std::string format_json(const SummaryRecord& record) {
  return one_line({{"summary", true},
                   {"world", record.world},
                   {"mesh", record.mesh},
                   {"plan", record.plan},
                   {"params", record.params},
                   {"steps", record.steps},
                   {"ms_median", record.ms_median},
                   {"ms_p10", record.ms_p10},
                   {"ms_p90", record.ms_p90},
                   {"throughput", record.throughput},
                   {"final_loss", record.final_loss},
                   {"losses", Json(record.losses)},
                   {"peak_rss_bytes", record.peak_rss_bytes},
                   {"threads", record.threads},
                   {"predicted_ms", or_null(record.predicted_ms)},
                   {"predicted_memory_bytes", or_null(record.predicted_memory_bytes)},
                   {"replicated_fallbacks", Json(record.replicated_fallbacks)},
                   {"gathers", verify::json_of(record.gathers)}});
}

std::string format_json(const ErrorRecord& record) {
  return one_line(
      {{"error",
        {{"kind", record.kind}, {"rank", record.rank}, {"message", record.message}, {"where", record.where}}}});
}

JsonLines::JsonLines(const std::string& destination, bool append) : destination_(destination) {
  if (destination.empty()) return;
  constexpr int kOwnerAndReaders = 0644;
  descriptor_ = destination == "-" ? ::dup(STDOUT_FILENO)
                                   : ::open(destination.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (append ? 0 : O_TRUNC),
                                            kOwnerAndReaders);
  check<ConfigError>(descriptor_ >= 0, "json = \"{}\": cannot be opened for writing: {}; name a file or \"-\"",
                     destination, std::strerror(errno));
}

JsonLines::~JsonLines() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void JsonLines::write(std::string_view line) {
  if (descriptor_ < 0) return;
  auto text = std::string(line) + "\n";
  for (std::string_view rest = text; !rest.empty();) {
    const auto written = ::write(descriptor_, rest.data(), rest.size());
    if (written < 0 && errno == EINTR) continue;
    check<FileError>(written >= 0, "json = \"{}\": cannot write: {}", destination_, std::strerror(errno));
    rest.remove_prefix(static_cast<std::size_t>(written));
  }
}

}  // namespace tessera::train
