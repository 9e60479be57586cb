// SPDX-License-Identifier: Apache-2.0
// A timeline as text.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cmath>

#include "tessera/pipeline/timeline.h"

namespace tessera::pipeline {
namespace {

/// Finest division of the shortest action that is tried for a column.
constexpr int kFinest = 12;
constexpr double kTolerance = 1e-6;

/// How time becomes columns.
struct Scale {
  double column = 1;     ///< time per column
  int stretch = 1;       ///< columns for each of those
  bool rounded = false;  ///< some action starts or ends inside a column

  [[nodiscard]] int at(double time) const {
    return stretch * static_cast<int>(std::floor(time / column + 0.5 + kTolerance));
  }
};

double shortest_action(const Timeline& timeline) {
  double shortest = timeline.makespan;
  for (const std::vector<Span>& row : timeline.spans) {
    for (const Span& span : row) {
      if (span.end > span.start) shortest = std::min(shortest, span.end - span.start);
    }
  }
  return shortest > 0 ? shortest : 1;
}

bool all_on_columns(const Timeline& timeline, double column) {
  const auto on_column = [column](double time) {
    const double columns = time / column;
    return std::abs(columns - std::round(columns)) < kTolerance * std::max(1.0, columns);
  };
  for (const std::vector<Span>& row : timeline.spans) {
    for (const Span& span : row) {
      if (!on_column(span.start) || !on_column(span.end)) return false;
    }
  }
  return true;
}

Scale choose_scale(const Timeline& timeline, int columns, int digits) {
  const double shortest = shortest_action(timeline);
  Scale scale{shortest, 1, true};
  for (int parts = 1; parts <= kFinest; ++parts) {
    const double column = shortest / parts;
    if (parts > 1 && timeline.makespan / column > columns) break;
    if (!all_on_columns(timeline, column)) continue;
    scale = {column, 1, false};
    break;
  }
  while (scale.stretch < digits && scale.at(timeline.makespan) / scale.stretch * (scale.stretch + 1) <= columns) {
    ++scale.stretch;
  }
  return scale;
}

/// One line of the picture, and the colour of each character (0: none).
struct Line {
  std::string text;
  std::vector<int> colours;

  explicit Line(int columns, char fill)
      : text(static_cast<std::size_t>(columns), fill), colours(static_cast<std::size_t>(columns), 0) {}

  void write(int begin, int end, std::string_view word, char rest, int colour) {
    for (int i = begin; i < std::min(end, static_cast<int>(text.size())); ++i) {
      const auto index = static_cast<std::size_t>(i - begin);
      text[static_cast<std::size_t>(i)] = index < word.size() ? word[index] : rest;
      colours[static_cast<std::size_t>(i)] = colour;
    }
  }
};

/// ANSI backgrounds by kind; chunks after the first have the bright one.
int colour_of(ActionKind kind, int chunk) {
  constexpr int kBackgrounds[] = {44, 42, 46, 45};
  return kBackgrounds[static_cast<std::size_t>(kind)] + (chunk > 0 ? 60 : 0);
}

std::string with_colours(const Line& line) {
  std::string text;
  int colour = 0;
  for (std::size_t i = 0; i < line.text.size(); ++i) {
    if (line.colours[i] != colour) {
      colour = line.colours[i];
      text += colour == 0 ? "\x1b[0m" : fmt::format("\x1b[30;{}m", colour);
    }
    text += line.text[i];
  }
  return colour == 0 ? text : text + "\x1b[0m";
}

std::string without_trailing_blanks(std::string text) {
  text.erase(text.find_last_not_of(' ') + 1);
  return text;
}

/// How many columns of a micro-batch's or chunk's number fit: the last digits, if not all.
std::string number_text(int number, int columns) {
  const std::string text = std::to_string(number);
  const auto room = static_cast<std::size_t>(std::max(columns, 0));
  return text.size() > room ? text.substr(text.size() - room) : text;
}

class Painter {
 public:
  Painter(const Schedule& schedule, const Timeline& timeline, const PictureOptions& options)
      : schedule_(schedule), timeline_(timeline), options_(options) {
    prefix_ = fmt::format("rank {}", schedule.num_ranks - 1).size() + 2;
    const int room = std::max(1, options.width - static_cast<int>(prefix_));
    scale_ = choose_scale(timeline, room, static_cast<int>(std::to_string(schedule.num_microbatches - 1).size()));
    all_columns_ = scale_.at(timeline.makespan);
    columns_ = std::min(room, all_columns_);
    chunk_of_.resize(schedule.rank_of_stage.size());
    std::vector<int> counts(static_cast<std::size_t>(schedule.num_ranks), 0);
    for (std::size_t stage = 0; stage < chunk_of_.size(); ++stage) {
      chunk_of_[stage] = counts[static_cast<std::size_t>(schedule.rank_of_stage[stage])]++;
    }
  }

  [[nodiscard]] std::string paint() const {
    std::string text;
    for (std::size_t rank = 0; rank < schedule_.actions.size(); ++rank) text += paint_rank(rank);
    if (columns_ < all_columns_) {
      text += fmt::format("(cut: {} of {} columns; all of them need a width of {})\n", columns_, all_columns_,
                          all_columns_ + static_cast<int>(prefix_));
    }
    return text + legend();
  }

 private:
  [[nodiscard]] std::string paint_rank(std::size_t rank) const {
    Line kinds(columns_, '.');
    Line microbatches(columns_, ' ');
    Line chunks(columns_, ' ');
    for (std::size_t i = 0; i < schedule_.actions[rank].size(); ++i) {
      const Action& action = schedule_.actions[rank][i];
      const Span& span = timeline_.spans[rank][i];
      const int begin = scale_.at(span.start);
      const int end = scale_.at(span.end);
      const int chunk = chunk_of_[static_cast<std::size_t>(action.stage)];
      const int colour = options_.colour ? colour_of(action.kind, chunk) : 0;
      kinds.write(begin, end, std::string(1, letter(action.kind, chunk)), '-', colour);
      microbatches.write(begin, end, number_text(action.microbatch, end - begin), ' ', colour);
      chunks.write(begin, end, number_text(chunk, end - begin), ' ', colour);
    }
    std::string text = line(fmt::format("rank {}", rank), kinds) + line("", microbatches);
    return schedule_.num_chunks > 2 ? text + line("", chunks) : text;
  }

  [[nodiscard]] char letter(ActionKind kind, int chunk) const {
    const char upper = letter_of(kind);
    return schedule_.num_chunks == 2 && chunk == 1 ? static_cast<char>(std::tolower(upper)) : upper;
  }

  [[nodiscard]] std::string line(const std::string& label, const Line& content) const {
    return without_trailing_blanks(fmt::format("{:<{}}{}", label, prefix_, with_colours(content))) + "\n";
  }

  [[nodiscard]] std::string legend() const {
    constexpr std::pair<ActionKind, const char*> kNames[] = {{ActionKind::kForward, "F forward"},
                                                             {ActionKind::kBackward, "B backward"},
                                                             {ActionKind::kBackwardInput, "I input gradient"},
                                                             {ActionKind::kBackwardWeight, "W weight gradient"}};
    std::vector<std::string_view> kinds;
    for (const auto& [kind, name] : kNames) {
      if (has(kind)) kinds.emplace_back(name);
    }
    const char* chunks = schedule_.num_chunks == 2 ? "second chunk in lower case; " : "";
    return fmt::format("{}\n{}{} below; one column = {:.4g}{}\n", fmt::join(kinds, ", "), chunks,
                       schedule_.num_chunks > 2 ? "micro-batch and chunk" : "micro-batch",
                       scale_.column / scale_.stretch, scale_.rounded ? ", rounded" : "");
  }

  [[nodiscard]] bool has(ActionKind kind) const {
    return std::any_of(schedule_.actions.begin(), schedule_.actions.end(), [kind](const std::vector<Action>& row) {
      return std::any_of(row.begin(), row.end(), [kind](const Action& action) { return action.kind == kind; });
    });
  }

  const Schedule& schedule_;
  const Timeline& timeline_;
  const PictureOptions& options_;
  std::size_t prefix_ = 0;
  Scale scale_;
  int all_columns_ = 0;
  int columns_ = 0;
  std::vector<int> chunk_of_;  ///< per stage: the how-manieth of its rank
};

}  // namespace

std::string picture(const Schedule& schedule, const Timeline& timeline, const PictureOptions& options) {
  return Painter(schedule, timeline, options).paint();
}

}  // namespace tessera::pipeline
