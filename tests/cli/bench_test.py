# SPDX-License-Identifier: Apache-2.0
"""What programs read of `tessera bench`: the fields of its JSON lines. Nothing here looks at how long anything took.

    bench_test.py TESSERA
"""

import json
import subprocess
import sys
import unittest

TESSERA = ""
TINY_TRAIN = "bench train --model mlp --sizes 8,16,4 --batch 4 --steps 4 --warmup 1".split()


def run(*words):
    return subprocess.run([TESSERA, *words], capture_output=True, text=True, timeout=120)


def json_lines(*words):
    done = run(*words, "--json", "-")
    if done.returncode != 0:
        raise AssertionError(f"{words}: exit code {done.returncode}: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


class BenchOp(unittest.TestCase):
    def test_every_operation_has_plain_mesh_and_added_times(self):
        lines = json_lines(*"bench op --repeats 3".split())
        self.assertEqual(len(lines), 3 * 2 * 2)  # operations, placements, with and without gradients
        for line in lines:
            self.assertLessEqual(
                {"operation", "placement", "grad", "world", "plain_ns", "mesh_ns", "added_ns"}, line.keys())
            for name in ("plain_ns", "mesh_ns", "added_ns"):
                self.assertLessEqual(line[name + "_p10"], line[name])
                self.assertLessEqual(line[name], line[name + "_p90"])
        self.assertEqual({line["operation"] for line in lines}, {"add_4", "mm_16x16", "chain_1000_adds_4"})

    def test_runs_on_a_mesh_of_two_ranks(self):
        lines = json_lines(*"bench op --nproc 2 --repeats 1".split())
        self.assertEqual({line["world"] for line in lines}, {2})

    def test_refuses_a_batch_of_nothing(self):
        done = run(*"bench op --calls 0".split())
        self.assertEqual(done.returncode, 2)
        self.assertIn("--calls 0", done.stderr)


class BenchCollectives(unittest.TestCase):
    def check(self, transport, world):
        words = f"bench collectives --transport {transport} --nproc {world} --max-bytes 64".split()
        lines = json_lines(*words)
        self.assertEqual({line["collective"] for line in lines},
                         {"all_reduce", "all_gather", "reduce_scatter", "all_to_all"})
        for line in lines:
            self.assertEqual((line["transport"], line["world"], line["dtype"]), (transport, world, "float32"))
            self.assertLessEqual(line["us_p10"], line["us_median"])
            self.assertLessEqual(line["us_median"], line["us_p90"])
            factor = (2 if line["collective"] == "all_reduce" else 1) * (world - 1) / world
            self.assertAlmostEqual(line["algorithm_gbps"], line["bytes"] / line["us_median"] / 1e3)
            self.assertAlmostEqual(line["bus_gbps"], line["algorithm_gbps"] * factor)
        # Shares of at least one element: a message of 4 bytes grows to one element per rank.
        sizes = [line["bytes"] for line in lines if line["collective"] == "all_gather"]
        self.assertEqual(sizes, [4 * world, 16 - 16 % (4 * world), 64 - 64 % (4 * world)])

    def test_ranks_as_threads(self):
        self.check("thread", 3)

    def test_ranks_as_processes_over_shared_memory(self):
        self.check("shm", 2)

    def test_ranks_as_processes_over_gloo(self):
        if "gloo is not in this build" in run(*"bench collectives --transport gloo --max-bytes 4".split()).stderr:
            self.skipTest("this LibTorch has no gloo")
        self.check("gloo", 2)

    def test_refuses_one_rank(self):
        done = run(*"bench collectives --nproc 1".split())
        self.assertEqual(done.returncode, 2)
        self.assertIn("--nproc 2 or more", done.stderr)


class BenchTrain(unittest.TestCase):
    def check(self, *words):
        lines = json_lines(*TINY_TRAIN, *words)
        steps, summary = lines[:-1], lines[-1]
        self.assertEqual([line["step"] for line in steps], [0, 1, 2, 3])
        for line in steps:
            self.assertLessEqual({"loss", "lr", "grad_norm", "step_ms", "samples_per_s", "comm_bytes",
                                  "comm_ms_exposed", "peak_memory_bytes"}, line.keys())
        self.assertTrue(summary["summary"])
        self.assertLessEqual({"world", "mesh", "plan", "params", "steps", "ms_median", "ms_p10", "ms_p90", "throughput",
                              "final_loss", "losses", "peak_rss_bytes", "threads", "replicated_fallbacks"},
                             summary.keys())
        self.assertEqual(summary["losses"], [line["loss"] for line in steps])
        timed = sorted(line["step_ms"] for line in steps[1:])
        self.assertEqual(summary["ms_median"], timed[1])
        return summary

    def test_one_device_and_meshes_see_the_same_losses(self):
        single = self.check()
        self.assertEqual(single["world"], 1)
        for words in (["--mesh", "dp=1"], ["--mesh", "dp=2"], ["--mesh", "tp=2", "--ranks", "threads"]):
            summary = self.check(*words)
            for mine, theirs in zip(summary["losses"], single["losses"]):
                self.assertAlmostEqual(mine, theirs, delta=1e-5)  # float32, sums of tens of terms

    def test_refuses_to_warm_up_for_ever(self):
        done = run(*TINY_TRAIN, "--warmup", "4")
        self.assertEqual(done.returncode, 2)


class Bench(unittest.TestCase):
    def test_refuses_an_unknown_flag_and_names_the_nearest(self):
        done = run(*"bench op --repeat 3".split())
        self.assertEqual(done.returncode, 2)
        self.assertIn("--repeats", done.stderr)

    def test_refuses_to_measure_nothing(self):
        self.assertEqual(run("bench").returncode, 2)


if __name__ == "__main__":
    TESSERA = sys.argv.pop(1)
    unittest.main()
