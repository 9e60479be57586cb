// SPDX-License-Identifier: Apache-2.0
// A program of somebody else: includes a public header, links the library, calls a function of it.
#include <tessera/base/error.h>
#include <tessera/base/version.h>

int main() {
  tessera::base::check_torch_version();
  tessera::check<tessera::ConfigError>(tessera::base::version() == EXPECTED_VERSION, "version {} of another build",
                                       tessera::base::version());
  return 0;
}
