// SPDX-License-Identifier: Apache-2.0
// Records of executed schedules.
#include "tessera/pipeline/trace.h"

#include <ATen/ops/full.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "tensor/decision_cache.h"

namespace tessera::pipeline {
namespace {

constexpr std::int64_t kColumns = 5;

at::Tensor to_rows(const std::vector<TracedAction>& actions, std::int64_t count) {
  at::Tensor rows = at::full({count, kColumns}, -1.0, at::kDouble);
  auto* row = rows.data_ptr<double>();
  for (const TracedAction& traced : actions) {
    row[0] = static_cast<double>(traced.action.kind);
    row[1] = traced.action.stage;
    row[2] = traced.action.microbatch;
    row[3] = traced.start_ms;
    row[4] = traced.end_ms;
    row += kColumns;
  }
  return rows;
}

std::vector<TracedAction> from_rows(const at::Tensor& rows) {
  std::vector<TracedAction> actions;
  const auto* row = rows.data_ptr<double>();
  for (std::int64_t i = 0; i < rows.size(0) && row[0] >= 0; ++i, row += kColumns) {
    actions.push_back({{static_cast<ActionKind>(row[0]), static_cast<int>(row[1]), static_cast<int>(row[2])},
                       row[3],
                       row[4]});
  }
  return actions;
}

}  // namespace

std::vector<std::vector<TracedAction>> gather_trace(const Mesh& mesh, const std::vector<TracedAction>& mine) {
  const int axis = tensor::MeshRuntime::of(mesh).stages.axis();
  if (axis < 0) return {mine};
  const comm::Communicator& ranks = mesh.along(axis);
  at::Tensor count = at::full({1}, static_cast<std::int64_t>(mine.size()), at::kLong).to(mesh.device());
  const auto most = ranks.all_gather(count).max().item<std::int64_t>();
  const at::Tensor all = ranks.all_gather(to_rows(mine, most).to(mesh.device())).to(at::kCPU);
  std::vector<std::vector<TracedAction>> rows;
  for (int rank = 0; rank < ranks.size(); ++rank) {
    rows.push_back(from_rows(all.view({ranks.size(), most, kColumns})[rank].contiguous()));
  }
  return rows;
}

std::string chrome_trace(const std::vector<std::vector<TracedAction>>& rows) {
  double first_ms = std::numeric_limits<double>::max();
  for (const auto& row : rows) {
    if (!row.empty()) first_ms = std::min(first_ms, row.front().start_ms);
  }
  nlohmann::json events = nlohmann::json::array();
  for (std::size_t rank = 0; rank < rows.size(); ++rank) {
    events.push_back({{"ph", "M"}, {"name", "process_name"}, {"pid", rank}, {"args", {{"name", "rank " + std::to_string(rank)}}}});
    for (const TracedAction& traced : rows[rank]) {
      events.push_back({{"ph", "X"},
                        {"name", to_string(traced.action)},
                        {"cat", std::string(1, letter_of(traced.action.kind))},
                        {"pid", rank},
                        {"tid", traced.action.stage},
                        {"ts", (traced.start_ms - first_ms) * 1e3},
                        {"dur", (traced.end_ms - traced.start_ms) * 1e3},
                        {"args", {{"stage", traced.action.stage}, {"microbatch", traced.action.microbatch}}}});
    }
  }
  return nlohmann::json{{"traceEvents", std::move(events)}, {"displayTimeUnit", "ms"}}.dump();
}

}  // namespace tessera::pipeline
