// SPDX-License-Identifier: Apache-2.0
// The table of data sources and the spelling of `data.source`.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "tessera/base/error.h"
#include "tessera/base/text.h"
#include "train/names.h"

namespace tessera::train {

using Path = SourceKind::Path;

const std::vector<SourceKind>& source_kinds() {
  static const std::vector<SourceKind> kinds = {
      {"digits", Path::kNone, false, true},
      {"text", Path::kOptional, true, false},
      {"csv", Path::kRequired, false, true},
      {"synthetic", Path::kNone, true, true},
  };
  return kinds;
}

std::string describe_sources(bool tokens) {
  std::vector<std::string> spellings;
  for (const auto& kind : source_kinds()) {
    if (!(tokens ? kind.for_tokens : kind.for_vectors)) continue;
    if (kind.path != Path::kRequired) spellings.push_back(kind.word);
    if (kind.path != Path::kNone) spellings.push_back(kind.word + ":PATH");
  }
  return fmt::format("{}", fmt::join(spellings, ", "));
}

Source parse_source(const std::string& text) {
  const auto colon = text.find(':');
  const auto word = text.substr(0, colon);
  const auto& kinds = source_kinds();
  const auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const auto& row) { return row.word == word; });
  if (kind == kinds.end()) {
    std::vector<std::string> words;
    for (const auto& row : kinds) words.push_back(row.word);
    throw ConfigError(
        fmt::format("data.source = \"{}\": \"{}\" is not a known source; allowed: {}; did you mean \"{}\"?", text, word,
                    fmt::join(words, ", "), base::nearest_word(word, words)));
  }
  Source source{&*kind, colon == std::string::npos ? "" : text.substr(colon + 1)};
  check<ConfigError>(kind->path != Path::kNone || colon == std::string::npos,
                     "data.source = \"{}\": {} takes no path; write \"{}\"", text, word, word);
  check<ConfigError>(colon == std::string::npos || !source.path.empty(),
                     "data.source = \"{}\": there is no path after the colon; write \"{}:PATH\"", text, word);
  check<ConfigError>(kind->path != Path::kRequired || !source.path.empty(),
                     "data.source = \"{}\": {} needs a file; write \"{}:FILE\"", text, word, word);
  return source;
}

}  // namespace tessera::train
