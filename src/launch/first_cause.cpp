// SPDX-License-Identifier: Apache-2.0
// Ranking of failures, and their wording.
#include "launch/first_cause.h"

#include <fmt/format.h>

#include <algorithm>
#include <csignal>

#include "launch/numbers.h"

namespace tessera::launcher::detail {
namespace {

template <class Predicate>
std::vector<int> ranks_where(const std::vector<RankRecord>& ranks, const Predicate& predicate) {
  std::vector<int> chosen;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    if (predicate(ranks[rank])) {
      chosen.push_back(static_cast<int>(rank));
    }
  }
  return chosen;
}

std::string describe_end(const ProcessEnd& end) {
  if (end.signal == SIGKILL) {
    return "was killed by SIGKILL; if nobody did that, the machine ran out of memory (see the kernel log)";
  }
  if (end.signal != 0) {
    return fmt::format("was killed by {}", signal_name(end.signal));
  }
  return fmt::format("exited with code {} without saying why; see its output above", end.exit_code);
}

JobFailure describe_death(const std::vector<RankRecord>& ranks, int first) {
  const RankRecord& rank = ranks[static_cast<std::size_t>(first)];
  const auto arrived = ranks_where(ranks, [](const RankRecord& other) { return other.arrived; });
  const bool before_rendezvous = !rank.arrived && !arrived.empty();
  std::string message =
      fmt::format("rank {} of {} (pid {}) {}", first, ranks.size(), rank.pid, describe_end(*rank.end));
  if (before_rendezvous) {
    message += fmt::format("; it had not reached the rendezvous, where {} waited",
                           format_ranks_of(arrived, static_cast<int>(ranks.size())));
  }
  return {.rank = first,
          .pid = rank.pid,
          .kind = before_rendezvous ? "rendezvous" : "rank_died",
          .message = std::move(message),
          .ranks = {first}};
}

JobFailure describe_report(const std::vector<RankRecord>& ranks, int first) {
  const RankRecord& rank = ranks[static_cast<std::size_t>(first)];
  auto same = ranks_where(
      ranks, [&](const RankRecord& other) { return other.report && other.report->message == rank.report->message; });
  auto message = fmt::format("{}: {}", format_ranks_of(same, static_cast<int>(ranks.size())), rank.report->message);
  return {.rank = first,
          .pid = rank.pid,
          .kind = rank.report->kind,
          .message = std::move(message),
          .ranks = std::move(same)};
}

}  // namespace

bool is_consequence(const RankRecord& rank) {
  return rank.report && (rank.report->kind == "communication" || rank.report->kind == "rendezvous");
}

JobResult find_first_cause(const std::vector<RankRecord>& ranks) {
  const auto failed = ranks_where(ranks, [](const RankRecord& rank) { return rank.failed(); });
  const int first = *std::min_element(failed.begin(), failed.end(), [&](int a, int b) {
    const auto& left = ranks[static_cast<std::size_t>(a)];
    const auto& right = ranks[static_cast<std::size_t>(b)];
    const bool left_echo = is_consequence(left);
    const bool right_echo = is_consequence(right);
    return left_echo != right_echo ? right_echo : left.failed_at < right.failed_at;
  });
  const auto& report = ranks[static_cast<std::size_t>(first)].report;
  return {.exit_code = report && report->exit_code == kExitConfig ? kExitConfig : kExitFailed,
          .first_failure = report ? describe_report(ranks, first) : describe_death(ranks, first)};
}

}  // namespace tessera::launcher::detail
