# SPDX-License-Identifier: Apache-2.0
"""Every third-party header that the code includes comes with a package that `make setup` installs or with LibTorch."""
import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^\s*#\s*include\s+<([^>]+)>', re.MULTILINE)
PACKAGES = {
    "CLI": "libcli11-dev",
    "gloo": "libgloo-dev",
    "gmock": "libgmock-dev",
    "gtest": "libgtest-dev",
    "nlohmann": "nlohmann-json3-dev",
    "toml++": "libtomlplusplus-dev",
    "xxhash.h": "libxxhash-dev",
}
WITH_LIBTORCH = {"ATen", "c10", "torch", "fmt"}
WITH_CUDA = {"cuda_runtime_api.h", "nccl.h", "cuda_bf16.h", "cuda_fp16.h"}
OF_LINUX = {"sys", "linux", "net", "netinet", "arpa", "asm"}
POSIX = {"dlfcn.h", "fcntl.h", "fnmatch.h", "ifaddrs.h", "malloc.h", "netdb.h", "poll.h", "pthread.h", "sched.h", "signal.h",
         "spawn.h", "stdlib.h", "string.h", "termios.h", "unistd.h"}


def installed():
    lines = (ROOT / "tools/apt-packages.txt").read_text().splitlines()
    return {line.split()[0] for line in lines if line and not line.startswith("#")}


def third_party_roots():
    for tree in ("include", "src", "tests", "examples"):
        for path in (ROOT / tree).rglob("*"):
            if path.suffix not in {".h", ".cpp", ".cu"}:
                continue
            for header in INCLUDE.findall(path.read_text()):
                root = header.split("/")[0]
                standard = "." not in root and "/" not in header
                if not standard and root != "tessera":
                    yield root, path.relative_to(ROOT)


class Packages(unittest.TestCase):
    def test_every_third_party_header_has_a_package(self):
        known = WITH_LIBTORCH | WITH_CUDA | OF_LINUX | POSIX
        for root, path in third_party_roots():
            if root in known:
                continue
            self.assertIn(root, PACKAGES, f"{path} includes <{root}>: name its package here, in "
                                          "tools/apt-packages.txt and in docs/dependencies.md")
            self.assertIn(PACKAGES[root], installed(), f"{path} includes <{root}>")


if __name__ == "__main__":
    unittest.main()
