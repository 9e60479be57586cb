# SPDX-License-Identifier: Apache-2.0
"""tools/check_floors.py accepts good samples and names the line and the rule of bad ones."""
import importlib.util
import pathlib
import subprocess
import sys
import tempfile
import unittest

TOOL = pathlib.Path(__file__).resolve().parents[2] / "tools" / "check_floors.py"
spec = importlib.util.spec_from_file_location("check_floors", TOOL)
check_floors = importlib.util.module_from_spec(spec)
sys.modules["check_floors"] = check_floors
spec.loader.exec_module(check_floors)

HEAD = "// SPDX-License-Identifier: Apache-2.0\n"
CONFIG = check_floors.Config(
    heights={"base": 0, "comm": 1, "launch": 2, "mesh": 3, "left": 4, "right": 4, "cli": 9, "cuda": 2},
    plugins={"cuda"})


def violations(path, body, head=HEAD):
    return [(found.line, found.rule) for found in check_floors.check_file(path, head + body, CONFIG)]


class HotPath(unittest.TestCase):
    def test_check_is_refused_in_the_dispatcher_only(self):
        body = "void f() {\n  check<ShapeError>(fits, text());\n}\n"
        self.assertEqual(violations("src/tensor/dispatch.cpp", body), [(3, "hot path")])
        self.assertEqual(violations("src/tensor/layout.cpp", body), [])


class Includes(unittest.TestCase):
    def test_going_down_is_accepted(self):
        self.assertEqual(violations("src/mesh/a.cpp", '#include "tessera/comm/c.h"\n#include "base/x.h"\n'), [])

    def test_own_floor_and_foreign_headers_are_accepted(self):
        self.assertEqual(violations("src/mesh/a.cpp", '#include "mesh/b.h"\n#include <ATen/core/Tensor.h>\n'), [])

    def test_going_up_is_refused_with_its_line(self):
        self.assertEqual(violations("src/comm/a.cpp", '\n#include "tessera/mesh/mesh.h"\n'), [(3, "floor")])

    def test_private_headers_count_like_public_ones(self):
        self.assertEqual(violations("include/tessera/comm/a.h", '#pragma once\n#include "mesh/b.h"\n'), [(3, "floor")])

    def test_angle_brackets_are_no_way_around(self):
        self.assertEqual(violations("src/comm/a.cpp", "#include <tessera/mesh/mesh.h>\n"), [(2, "floor")])

    def test_neighbours_are_refused(self):
        self.assertEqual(violations("src/left/a.cpp", '#include "tessera/right/b.h"\n'), [(2, "floor")])

    def test_a_plugin_looks_down_but_nobody_includes_it(self):
        self.assertEqual(violations("src/cuda/a.cu", '#include "tessera/comm/c.h"\n'), [])
        self.assertEqual(violations("src/mesh/a.cpp", '#include "cuda/b.h"\n'), [(2, "floor")])

    def test_relative_paths_are_refused(self):
        self.assertEqual(violations("src/mesh/a.cpp", '#include "../comm/b.h"\n'), [(2, "floor")])

    def test_the_umbrella_header_is_for_programs(self):
        self.assertEqual(violations("src/mesh/a.cpp", '#include "tessera/tessera.h"\n'), [(2, "floor")])
        self.assertEqual(violations("src/cli/a.cpp", '#include "tessera/tessera.h"\n'), [])
        self.assertEqual(violations("examples/a.cpp", '#include "tessera/tessera.h"\n'), [])


class Conditionals(unittest.TestCase):
    def test_outside_of_bodies_is_accepted(self):
        body = ("#ifdef A\nnamespace x {\n#if B\nclass C : public D {\n#if E\n  int f();\n#endif\n};\n#endif\n}\n#endif\n")
        self.assertEqual(violations("src/mesh/a.cpp", body), [])

    def test_in_a_function_is_refused(self):
        self.assertEqual(violations("src/mesh/a.cpp", "int f(int x) {\n#ifdef A\n  return x;\n#endif\n}\n"),
                         [(3, "if-in-body")])

    def test_in_a_method_template_and_in_a_lambda_is_refused(self):
        method = "struct S {\n template <class T>\n T f() const noexcept {\n#if A\n#endif\n }\n};\n"
        self.assertEqual(violations("src/mesh/a.cpp", method), [(5, "if-in-body")])
        lambda_ = "namespace {\nconst auto f = [] {\n#ifndef A\n#endif\n};\n}\n"
        self.assertEqual(violations("src/mesh/a.cpp", lambda_), [(4, "if-in-body")])

    def test_after_a_body_is_accepted(self):
        self.assertEqual(violations("src/mesh/a.cpp", "int f() {\n  return 1;\n}\n#if A\n#endif\n"), [])

    def test_braces_in_text_do_not_count(self):
        body = 'const char* a = "{"; // {\n/* { */ const char b = \'{\';\n#if A\n#endif\n'
        self.assertEqual(violations("src/mesh/a.cpp", body), [])


class Words(unittest.TestCase):
    def test_environment_belongs_to_launch(self):
        self.assertEqual(violations("src/mesh/a.cpp", 'auto* p = std::getenv("RANK");\n'), [(2, "environment")])
        self.assertEqual(violations("src/launch/a.cpp", 'auto* p = std::getenv("RANK");\n'), [])

    def test_printing_belongs_to_log_and_cli(self):
        for line in ("std::cout << 1;", 'printf("x");', 'std::fprintf(stderr, "x");', 'fmt::print("x");'):
            self.assertEqual(violations("src/mesh/a.cpp", line + "\n"), [(2, "printing")], line)
            self.assertEqual(violations("src/base/log.cpp", line + "\n"), [], line)
            self.assertEqual(violations("src/cli/a.cpp", line + "\n"), [], line)

    def test_formatting_into_memory_is_not_printing(self):
        self.assertEqual(violations("src/mesh/a.cpp", 'std::snprintf(b, 2, "x"); my_printf_like;\n'), [])

    def test_seeds_from_clock_or_machine_are_refused_everywhere(self):
        for line in ("std::random_device d;", "srand(1);", "auto s = time(nullptr);"):
            self.assertEqual(violations("tests/mesh/a.cpp", line + "\n"), [(2, "seed")], line)

    def test_comments_and_literals_are_not_code(self):
        self.assertEqual(violations("src/mesh/a.cpp", '// std::cout, getenv("X")\nauto s = "printf(";\n'), [])


class Heads(unittest.TestCase):
    def test_a_missing_licence_line_is_refused(self):
        self.assertEqual(violations("src/mesh/a.cpp", "int x;\n", head=""), [(1, "spdx")])

    def test_a_script_may_have_it_in_the_second_line(self):
        self.assertEqual(violations("tools/a.sh", "# SPDX-License-Identifier: Apache-2.0\n", head="#!/bin/sh\n"), [])

    def test_a_header_without_pragma_once_is_refused(self):
        self.assertEqual(violations("include/tessera/mesh/a.h", "int f();\n"), [(1, "pragma-once")])


class Program(unittest.TestCase):
    def run_on(self, floors, files):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for path, text in {"tools/floors.txt": floors, **files}.items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text)
            return subprocess.run([sys.executable, str(TOOL), folder], capture_output=True, text=True)

    def test_prints_the_offending_line_and_fails(self):
        result = self.run_on("floor base 0\nfloor mesh 3\n", {"src/base/a.cpp": HEAD + '#include "mesh/b.h"\n'})
        self.assertEqual(result.returncode, 1)
        self.assertIn("src/base/a.cpp:2: [floor]", result.stdout)

    def test_an_exception_with_a_reason_is_honoured(self):
        floors = "floor base 0\nfloor mesh 3\nallow floor src/base/a.cpp: shown in a test\n"
        self.assertEqual(self.run_on(floors, {"src/base/a.cpp": HEAD + '#include "mesh/b.h"\n'}).returncode, 0)

    def test_an_exception_that_nobody_needs_is_refused(self):
        result = self.run_on("floor base 0\nallow floor src/base/a.cpp: gone\n", {"src/base/a.cpp": HEAD})
        self.assertEqual(result.returncode, 1)
        self.assertIn("tools/floors.txt:2: [allow]", result.stdout)

    def test_an_exception_without_a_reason_is_refused(self):
        self.assertNotEqual(self.run_on("allow floor src/base/a.cpp\n", {}).returncode, 0)


if __name__ == "__main__":
    unittest.main()
