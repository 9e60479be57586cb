# SPDX-License-Identifier: Apache-2.0
"""The command line as people and scripts meet it: results, JSON fields, and one clear line for every wrong input.

    cli_test.py TESSERA
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

TESSERA = ""
TINY_GPT = ["--model", "gpt", "--layers", "1", "--hidden", "16", "--heads", "2", "--seq-len", "16", "--batch", "4"]


def run(*arguments: str, timeout: float = 100) -> subprocess.CompletedProcess:
    return subprocess.run([TESSERA, *arguments], capture_output=True, text=True, timeout=timeout)


def json_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


class Help(unittest.TestCase):
    def test_names_the_commands_and_fits_a_screen(self):
        result = run("--help")
        self.assertEqual(result.returncode, 0)
        self.assertLessEqual(len(result.stdout.splitlines()), 24)
        for command in ("train", "verify", "simulate", "run"):
            self.assertIn(command, result.stdout)

    def test_of_a_command_shows_flags_defaults_and_examples(self):
        text = run("train", "--help").stdout
        for word in ("--mesh", "--batch", "default 16", "Examples"):
            self.assertIn(word, text)


class Train(unittest.TestCase):
    FIELDS = {"step", "loss", "lr", "grad_norm", "step_ms", "tokens_per_s", "comm_bytes", "comm_ms_exposed",
              "peak_memory_bytes", "allocated_bytes", "peak_allocated_bytes"}
    SUMMARY = {"summary", "world", "mesh", "plan", "params", "steps", "ms_median", "ms_p10", "ms_p90", "throughput",
               "final_loss", "losses", "peak_rss_bytes", "threads", "predicted_ms", "predicted_memory_bytes",
               "replicated_fallbacks", "gathers"}

    def losses(self, *arguments: str) -> list[float]:
        result = run("train", *TINY_GPT, "--steps", "6", "--lr", "0.01", "--json", "-", *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        lines = json_lines(result.stdout)
        steps = [line for line in lines if "loss" in line]
        self.assertEqual(set(steps[0]), self.FIELDS)
        self.assertEqual(set(lines[-1]), self.SUMMARY)
        self.assertEqual(lines[-1]["replicated_fallbacks"], {})
        return lines[-1]["losses"]

    def test_gives_the_same_losses_alone_on_processes_and_on_threads(self):
        alone = self.losses()
        self.assertLess(alone[-1], alone[0])
        for arguments in (["--mesh", "dp=2,tp=2"], ["--mesh", "dp=2,tp=2", "--ranks", "threads"], ["--mesh", "dp=4"],
                          ["--mesh", "dp=2", "--transport", "gloo"]):
            for ours, reference in zip(self.losses(*arguments), alone, strict=True):
                self.assertAlmostEqual(ours, reference, delta=1e-4)

    def test_starts_from_the_weights_that_another_run_wrote(self):
        with tempfile.TemporaryDirectory() as folder:
            file = str(pathlib.Path(folder) / "weights.safetensors")
            first = run("train", *TINY_GPT, "--steps", "1", "--mesh", "tp=2", "--dump-weights", file)
            self.assertEqual(first.returncode, 0, first.stderr)
            self.assertTrue(os.path.exists(file))
            moved = self.losses("--weights", file)
            fresh = self.losses()
            self.assertNotEqual(moved[0], fresh[0])

    def test_keeps_configuration_and_metrics_in_the_folder_of_out(self):
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "runs" / "first"
            losses = self.losses("--out", str(out), "--mesh", "dp=2")
            lines = json_lines((out / "metrics.jsonl").read_text())
            self.assertEqual(lines[-1]["losses"], losses)
            again = run("train", str(out / "config.toml"), "--json", "-")
            self.assertEqual(json_lines(again.stdout)[-1]["losses"], losses)

    def test_says_only_what_its_user_can_act_on(self):
        result = run("train", *TINY_GPT, "--steps", "2", "--mesh", "dp=2")
        for line in result.stderr.splitlines():
            self.assertRegex(line, r"^(tessera: |step \d|\d+ parameters)")

    def test_leaves_no_memory_file_or_process_behind(self):
        before = set(os.listdir("/dev/shm"))
        self.losses("--mesh", "dp=2")
        self.assertEqual(set(os.listdir("/dev/shm")), before)


class Verify(unittest.TestCase):
    def test_holds_on_every_mesh_of_four_ranks(self):
        result = run("verify", *TINY_GPT, "--precision", "fp64", "--meshes", "all:4", "--json", "-")
        self.assertEqual(result.returncode, 0, result.stdout)
        lines = json_lines(result.stdout)
        self.assertEqual(len(lines), 16)  # of 19, without tp=3 and tp=4 (2 heads), and pp=4 (3 parts)
        for line in lines:
            self.assertTrue(line["holds"])
            self.assertLessEqual(line["max_param_deviation"], 1e-12)
            self.assertEqual(line["replicated_fallbacks"], {})

    def test_works_with_ranks_as_processes(self):
        result = run("verify", *TINY_GPT, "--mesh", "dp=2,tp=2", "--ranks", "processes", "--json", "-")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertTrue(json_lines(result.stdout)[0]["holds"])

    def test_fails_with_exit_code_1_when_the_tolerance_is_not_met(self):
        self.assertEqual(run("verify", *TINY_GPT, "--mesh", "dp=2", "--tolerance", "0").returncode, 1)

    def test_holds_under_dropout(self):
        result = run("verify", *TINY_GPT, "--dropout", "0.1", "--precision", "fp64", "--meshes", "all:4", "--json", "-")
        self.assertEqual(result.returncode, 0, result.stdout)
        for line in json_lines(result.stdout):
            self.assertLessEqual(line["max_param_deviation"], 1e-12)
            self.assertEqual(line["replicated_fallbacks"], {})

    def test_judges_16_bits_by_what_they_change_on_one_device(self):
        for precision, bound in (("bf16", 0.1), ("fp16", 0.01)):
            result = run("verify", *TINY_GPT, "--precision", precision, "--mesh", "dp=2,tp=2", "--json", "-")
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
            line = json_lines(result.stdout)[0]
            self.assertTrue(0 < line["max_grad_deviation"] <= line["tolerance"] < bound, line)

    def holds(self, *arguments: str):
        result = run("verify", "--precision", "fp64", "--json", "-", *arguments)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        for line in json_lines(result.stdout):
            self.assertLessEqual(line["max_param_deviation"], 1e-12)
            self.assertEqual(line["replicated_fallbacks"], {})

    def test_holds_for_pipeline_stages_beside_all_other_axes(self):
        self.holds(*TINY_GPT, "--tie", "--sequence-parallel", "--zero", "3", "--dropout", "0.1", "--mesh",
                   "pp=2,dp_shard=2,tp=2")
        self.holds("--model", "cnn", "--mesh", "pp=3,dp=2", "--steps", "2")
        self.holds("--model", "resnet", "--mesh", "pp=2,tp=2", "--steps", "2")

    def test_holds_for_every_schedule_in_micro_batches(self):
        for schedule in ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zbv", "dualpipev"):
            self.holds(*TINY_GPT, "--layers", "4", "--batch", "8", "--tie", "--mesh", "pp=2,dp=2", "--schedule", schedule,
                       "--microbatches", "4")
        self.holds("--model", "cnn", "--mesh", "pp=2,tp=2", "--schedule", "zb-h1", "--microbatches", "4")
        self.holds(*TINY_GPT, "--tie", "--dropout", "0.1", "--sequence-parallel", "--zero", "3", "--recompute", "full",
                   "--mesh", "pp=2,dp_shard=2,tp=2", "--microbatches", "3")

    def test_refuses_more_stages_than_the_model_has_parts(self):
        result = run("verify", *TINY_GPT, "--mesh", "pp=16")
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("16 stages", result.stderr)

    def test_holds_for_every_stage_of_zero(self):
        for stage in "123":
            self.holds(*TINY_GPT, "--zero", stage, "--meshes", "all:4")

    def test_holds_for_sequence_and_vocabulary_parallelism_with_zero_and_dropout(self):
        for mesh in ("tp=2", "dp=2,tp=2"):
            self.holds(*TINY_GPT, "--sequence-parallel", "--mesh", mesh)
        self.holds(*TINY_GPT, "--sequence-parallel", "--zero", "3", "--dropout", "0.1", "--mesh", "dp_shard=2,tp=2")

    def test_holds_for_batch_norm_over_a_sharded_batch(self):
        for mesh in ("dp=2", "tp=2", "dp=2,tp=2"):
            self.holds("--model", "resnet", "--channels", "4", "--blocks", "3", "--batch", "6", "--mesh", mesh)


class Numerics(unittest.TestCase):
    def steps(self, *arguments: str) -> list[dict]:
        result = run("train", *TINY_GPT, "--steps", "4", "--lr", "0.01", "--json", "-", *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        return [line for line in json_lines(result.stdout) if "loss" in line]

    def test_micro_batches_train_as_one_batch_and_send_as_much(self):
        whole = self.steps("--mesh", "dp=2")
        parts = self.steps("--mesh", "dp=2", "--microbatches", "2")
        for ours, reference in zip(parts, whole, strict=True):
            self.assertAlmostEqual(ours["loss"], reference["loss"], delta=1e-4)
            # Of each micro-batch the count of its targets.
            self.assertLessEqual(ours["comm_bytes"] - reference["comm_bytes"], 64)

    def test_a_pipeline_trains_as_one_device_and_leaves_a_trace(self):
        alone = self.steps("--microbatches", "4")
        with tempfile.TemporaryDirectory() as folder:
            trace = pathlib.Path(folder) / "trace.json"
            piped = self.steps("--mesh", "pp=2,dp=2", "--microbatches", "4", "--trace", str(trace))
            events = json.loads(trace.read_text())["traceEvents"]
        for ours, reference in zip(piped, alone, strict=True):
            self.assertAlmostEqual(ours["loss"], reference["loss"], delta=1e-4)
        names = [event["name"] for event in events if event["ph"] == "X" and event["pid"] == 1]
        self.assertEqual(names, ["1F0", "1B0", "1F1", "1B1", "1F2", "1B2", "1F3", "1B3"])

    def test_16_bit_precisions_lower_the_loss_and_hold_on_meshes(self):
        exact = self.steps("--mesh", "dp=2,tp=2")
        for precision in ("bf16", "fp16"):
            losses = [line["loss"] for line in self.steps("--mesh", "dp=2,tp=2", "--precision", precision,
                                                         "--loss-scale", "1024")]
            self.assertNotEqual(losses[0], exact[0]["loss"])
            self.assertAlmostEqual(losses[-1], exact[-1]["loss"], delta=0.05)
            result = run("verify", *TINY_GPT, "--mesh", "dp=2,tp=2", "--precision", precision, "--json", "-")
            self.assertEqual(result.returncode, 0, result.stdout)
            self.assertLess(json_lines(result.stdout)[0]["max_grad_deviation"], 0.05)

    def test_check_finite_names_parameter_and_rank(self):
        result = run("train", *TINY_GPT, "--mesh", "dp=2", "--optimizer", "sgd", "--lr", "1e30", "--check-finite")
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertRegex(result.stderr, r"(parameter|gradient of) [a-z0-9.]+ is not finite on rank [01] of 2")


class Simulate(unittest.TestCase):
    FIELDS = {"schedule", "ranks", "chunks", "microbatches", "costs", "transfer", "makespan", "bubble",
              "bubble_per_rank", "idle_inside_per_rank", "peak_activations"}

    def lines(self, *arguments: str) -> list[dict]:
        result = run("simulate", *arguments, "--json", "-")
        self.assertEqual(result.returncode, 0, result.stderr)
        return json_lines(result.stdout)

    def test_writes_one_json_object_per_schedule(self):
        (line,) = self.lines("--mesh", "pp=4", "--schedule", "1f1b", "--microbatches", "8")
        self.assertEqual(set(line), self.FIELDS)
        self.assertEqual((line["ranks"], line["chunks"], line["microbatches"]), (4, 1, 8))
        self.assertAlmostEqual(line["makespan"], 33)
        self.assertAlmostEqual(line["bubble"], 9 / 33)
        self.assertEqual(line["peak_activations"], [4, 3, 2, 1])
        everything = self.lines("--mesh", "pp=4", "--schedule", "all", "--microbatches", "8")
        self.assertEqual({line["schedule"]: line["makespan"] for line in everything},
                         {"gpipe": 33, "1f1b": 33, "interleaved": 28.5, "zb-h1": 27, "zb-h2": 27, "zbv": 25.5,
                          "dualpipev": 25.5})

    def test_compares_what_the_micro_batches_allow(self):
        result = run("simulate", "--mesh", "pp=4", "--schedule", "all", "--microbatches", "4")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout, r"dualpipev +needs 8 micro-batches")

    def test_gives_a_rank_two_micro_batches_unless_told_otherwise(self):
        (line,) = self.lines("--mesh", "pp=3,tp=2")
        self.assertEqual((line["ranks"], line["microbatches"]), (3, 6))

    def test_keeps_lines_within_the_width_and_says_what_is_cut(self):
        result = run("simulate", "--mesh", "pp=4", "--microbatches", "64", "--width", "80")
        self.assertEqual(max(map(len, result.stdout.splitlines())), 80)
        self.assertIn("(cut: 72 of 201 columns; all of them need a width of 209)", result.stdout)

    def test_takes_back_the_text_that_it_printed(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "mine.txt"
            text = run("simulate", "--mesh", "pp=3", "--schedule", "zbv", "--schedule-text").stdout
            file.write_text(text, encoding="utf-8")
            (mine,) = self.lines("--schedule", f"file:{file}")
            (original,) = self.lines("--mesh", "pp=3", "--schedule", "zbv")
            self.assertEqual({**mine, "schedule": "zbv"}, original)


class BadInput(unittest.TestCase):
    def test_a_planned_output_along_a_dim_that_is_not_there_is_named(self):
        with tempfile.TemporaryDirectory() as folder:
            plan = os.path.join(folder, "plan.toml")
            with open(plan, "w", encoding="utf-8") as file:
                file.write('[[parameters]]\nmatch = "*tok.weight"\noutput.tp = "shard(7)"\n')
            result = run("train", *TINY_GPT, "--mesh", "tp=2", "--plan", plan, "--steps", "1")
            self.assertEqual(result.returncode, 1)
            self.assertIn("shard(7)", result.stderr)
            self.assertIn("3 dims", result.stderr)

    """(arguments, exit code, words that the one line must hold)"""

    CASES = [
        (["train", "--mesh", "ttp=2"], 2, ["\"ttp\"", "allowed", "\"tp\""]),
        (["train", "--mesh", "dp=2,dp=2"], 2, ["dp_replicate", "twice"]),
        (["train", "--mesh", "tp=0"], 2, ["tp=0"]),
        (["train", "--mesh", "tp="], 2, ["AXIS=SIZE"]),
        (["train", "--model", "gpt", "--mesh", "tp=3"], 2, ["heads = 4", "tp=3"]),
        (["train", "--batch", "10", "--mesh", "dp=4"], 2, ["batch = 10", "multiple of 4"]),
        (["train", "--batch", "2", "--microbatches", "3"], 2, ["microbatches", "batch = 2", "3 micro-batches", "1 to 2"]),
        (["train", "--batch", "4", "--microbatches", "2", "--mesh", "dp=4"], 2, ["batch = 4", "microbatches = 2", "of 8"]),
        (["train", "--mesh", "pp=2", "--schedule", "zvb", "--microbatches", "4"], 2, ["zvb", "zbv"]),
        (["train", "--mesh", "pp=2", "--schedule", "zbv", "--chunks", "3", "--microbatches", "4"], 2, ["zbv", "3", "2"]),
        (["train", "--mesh", "pp=4", "--schedule", "dualpipev", "--microbatches", "4"], 2, ["dualpipev", "micro-batches", "8"]),
        (["train", "--precision", "fp8"], 2, ["fp8", "bf16", "fp16"]),
        (["train", "--precision", "fp16", "--check-finite"], 2, ["check_finite", "bf16"]),
        (["train", "--batch", "many"], 2, ["--batch", "many", "integer"]),
        (["train", "--bacth", "4"], 2, ["--bacth", "--batch"]),
        (["trian"], 2, ["trian", "train"]),
        (["train", "--model", "gtp"], 2, ["gtp", "gpt"]),
        (["train", "--set", "optimizer.lrr=1"], 2, ["optimizer.lrr", "optimizer.lr"]),
        (["train", "--set", "mesh.tensor_model_parallel_size=2"], 2, ["tensor_model_parallel_size"]),
        (["train", "/nonexistent.toml"], 2, ["/nonexistent.toml"]),
        (["train", "--data", "text:/nonexistent"], 1, ["/nonexistent"]),
        (["train", "--data", f"text:{sys.executable}"], 1, ["NUL", "text"]),
        (["train", "--weights", "/nonexistent"], 1, ["/nonexistent"]),
        (["train", "--plan", "/nonexistent"], 1, ["plan /nonexistent", "TOML"]),
        (["train", "--mesh", "dp=2", "--data", "text:/nonexistent"], 1, ["ranks 0-1 of 2", "/nonexistent"]),
        (["verify", "--meshes", "all:x"], 2, ["all:x", "all:8"]),
        (["verify", "--model", "mlp", "--tolerance", "-1"], 2, ["--tolerance", "-1", "from 0"]),
        (["verify", "--model", "mlp", "--tolerance", "nan"], 2, ["--tolerance", "nan", "from 0"]),
        (["train", *TINY_GPT, "--mesh", "dp_shard=2", "--zero", "4"], 2, ["zero", "4", "3"]),
        (["train", *TINY_GPT, "--mesh", "dp=2", "--zero", "3"], 2, ["zero", "dp_shard", "dp=2"]),
        (["train", "--model", "mlp", "--mesh", "tp=2", "--sequence-parallel"], 2, ["sequence_parallel", "output.tp"]),
        (["train", "--model", "resnet", "--blocks", "2"], 2, ["blocks", "2", "3"]),
        (["verify", "--meshes", "all:2", "--ranks", "processes"], 2, ["threads"]),
        (["simulate"], 2, ["--mesh", "pp=4"]),
        (["simulate", "--mesh", "dp=2"], 2, ["dp=2", "no axis pp"]),
        (["simulate", "--mesh", "pp=0"], 2, ["pp=0", "at least 1"]),
        (["simulate", "--mesh", "pp=65"], 2, ["pp=65", "65 stages", "up to 64"]),
        (["simulate", "--mesh", "pp=33", "--schedule", "zbv"], 2, ["pp=33", "66 stages", "or chunks"]),
        (["simulate", "--mesh", "pp=2,pp=2"], 2, ["pp", "twice"]),
        (["simulate", "--mesh", "pp=2,tq=2"], 2, ["\"tq\"", "\"tp\""]),
        (["simulate", "--mesh", "pp=2", "--schedule", "1f1"], 2, ["\"1f1\"", "did you mean \"1f1b\""]),
        (["simulate", "--mesh", "pp=2", "--chunks", "2"], 2, ["1f1b", "2 chunks", "allowed: 1"]),
        (["simulate", "--mesh", "pp=2", "--chunks", "-1"], 2, ["--chunks -1"]),
        (["simulate", "--mesh", "pp=2", "--microbatches", "-1"], 2, ["--microbatches -1"]),
        (["simulate", "--mesh", "pp=4", "--schedule", "dualpipev", "--microbatches", "4"], 2,
         ["4 micro-batches", "8 or more"]),
        (["simulate", "--mesh", "pp=2", "--costs", "1,1"], 2, ["--costs \"1,1\"", "1,1,1"]),
        (["simulate", "--mesh", "pp=2", "--costs", "1,x,1"], 2, ["--costs \"1,x,1\""]),
        (["simulate", "--mesh", "pp=2", "--transfer", "-1"], 2, ["transfer", "0 or more"]),
        (["simulate", "--mesh", "pp=2", "--schedule", "file:/nonexistent"], 2, ["/nonexistent"]),
        (["simulate", "--mesh", "pp=2", "--schedule", "all", "--schedule-text"], 2, ["--schedule-text", "gpipe"]),
        (["run", "--nproc", "2"], 2, ["--"]),
        (["run", "--nproc", "2", "--", "/nonexistent"], 2, ["/nonexistent"]),
        (["run", "--nproc", "0", "--", "/bin/true"], 2, ["--nproc"]),
        (["run", "--nproc", "2", "--", "/bin/false"], 1, ["exited with code 1"]),
        (["run", "--nnodes", "2", "--", "/bin/true"], 2, ["torchrun"]),
    ]

    def expect(self, result: subprocess.CompletedProcess, code: int, words: list[str]) -> None:
        self.assertEqual(result.returncode, code, result.stderr)
        errors = [line for line in result.stderr.splitlines() if line.startswith("tessera: error: ")]
        self.assertEqual(len(errors), 1, result.stderr)
        for word in words:
            self.assertIn(word, errors[0])
        for trace in ("frame #", "terminate called", "Success"):
            self.assertNotIn(trace, result.stderr)

    def test_is_refused_in_one_line_with_the_remedy(self):
        for arguments, code, words in self.CASES:
            with self.subTest(" ".join(arguments)):
                self.expect(run(*arguments, timeout=60), code, words)

    def test_in_a_plan_is_refused_with_file_and_line(self):
        cases = {
            "[[parameters]]\nmatch = \"nothing*\"\ntp = \"colwise\"\n": ["nothing*", "matches no parameter"],
            "[[parameters]]\nmatch = \"*\"\ntp = \"columns\"\n": ["columns", "shard(DIM)"],
            "[[parameters]]\nmatch = \"*\"\nttp = \"colwise\"\n": ["plan.toml:1", "\"tp\""],
            "what = \n": ["plan.toml:1"],
        }
        with tempfile.TemporaryDirectory() as folder:
            plan = pathlib.Path(folder) / "plan.toml"
            for text, words in cases.items():
                plan.write_text(text)
                with self.subTest(text):
                    self.expect(run("train", "--plan", str(plan), "--mesh", "tp=2", "--steps", "1"), 2, words)

    def test_ends_the_json_with_an_error_line(self):
        result = run("train", "--mesh", "dp=2", "--data", "text:/nonexistent", "--json", "-")
        error = json_lines(result.stdout)[-1]["error"]
        self.assertEqual(set(error), {"kind", "rank", "message", "where"})
        self.assertEqual(error["kind"], "file")


class ARankThatDies(unittest.TestCase):
    def ranks_of(self, launcher: int) -> list[int]:
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True)
        return [int(pid) for pid in listed.stdout.split()]

    def test_takes_the_job_down_with_its_name_and_leaves_nothing(self):
        job = subprocess.Popen([TESSERA, "train", *TINY_GPT, "--steps", "1000000", "--mesh", "dp=3", "--batch", "6"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        ranks: list[int] = []
        for _ in range(200):
            ranks = self.ranks_of(job.pid)
            if len(ranks) == 3:
                break
            time.sleep(0.05)
        self.assertEqual(len(ranks), 3)
        time.sleep(2.0)  # into the steps
        os.kill(ranks[1], signal.SIGKILL)
        _, errors = job.communicate(timeout=30)
        self.assertEqual(job.returncode, 1, errors)
        self.assertRegex(errors, r"rank \d of 3 \(pid \d+\).*SIGKILL")
        for pid in ranks:
            self.assertFalse(os.path.exists(f"/proc/{pid}"), f"rank {pid} is left over")


if __name__ == "__main__":
    TESSERA = sys.argv.pop(1)
    unittest.main(verbosity=1)
