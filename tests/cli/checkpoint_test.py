# SPDX-License-Identifier: Apache-2.0
"""Runs that stop and go on, and the commands that look into their checkpoints.

    checkpoint_test.py TESSERA [SUITE] [--schedules N]

--schedules: how many random schedules of kills the suite Kills runs (default 3).
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import unittest

TESSERA = ""
SCHEDULES = 3


def gpt(**changes: str) -> list[str]:
    flags = {"model": "gpt", "layers": "2", "hidden": "16", "heads": "2", "seq-len": "16", "batch": "4", "lr": "0.01",
             **changes}
    return [word for flag, value in flags.items() for word in ("--" + flag, value)]


GPT = gpt()
DROPOUT = ["--dropout", "0.1"]


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen([TESSERA, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))


def run(*arguments: str, timeout: float = 200) -> subprocess.CompletedProcess:
    return subprocess.run([TESSERA, *arguments], capture_output=True, text=True, timeout=timeout)


def tensors_in(path: pathlib.Path) -> dict[str, bytes]:
    """A safetensors file, read by its description alone."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    ends = sorted(tuple(entry["data_offsets"]) for entry in header.values())
    assert ends[0][0] == 0 and ends[-1][1] == len(data) - begin
    assert all(before[1] == after[0] for before, after in zip(ends, ends[1:]))
    return {name: data[begin + entry["data_offsets"][0]:begin + entry["data_offsets"][1]] for name, entry in header.items()}


def losses_of(folder: pathlib.Path) -> dict[int, float]:
    """By step, from the lines of all jobs of a run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


class InAFolder(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.folder = pathlib.Path(self.temporary.name)

    def train(self, name: str, steps: int, *arguments: str) -> dict[int, float]:
        result = run("train", *GPT, "--steps", str(steps), "--out", str(self.folder / name), *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.stderr = result.stderr
        return losses_of(self.folder / name)

    def steps(self, name: str) -> list[str]:
        return sorted(path.name for path in (self.folder / name).iterdir() if path.is_dir())


class Resume(InAFolder):
    def test_is_exact_on_the_same_mesh(self):
        for mesh in ("dp=2", "dp_shard=2,tp=2", "pp=2"):
            with self.subTest(mesh):
                extra = ["--mesh", mesh, *DROPOUT, *(["--zero", "3"] if "shard" in mesh else [])]
                straight = self.train("straight" + mesh, 8, *extra)
                first = self.train("resumed" + mesh, 4, *extra, "--checkpoint-every", "4")
                second = self.train("resumed" + mesh, 8, *extra, "--checkpoint-every", "4", "--resume", "auto")
                self.assertEqual(list(first), [0, 1, 2, 3])
                self.assertEqual(second, straight)

    def test_keeps_the_scale_of_fp16_and_momentum(self):
        extra = ["--mesh", "dp=2", "--precision", "fp16", "--optimizer", "sgd", "--loss-scale", "16777216"]
        straight = self.train("straight", 8, *extra)
        self.train("resumed", 3, *extra, "--checkpoint-every", "3")
        self.assertEqual(self.train("resumed", 8, *extra, "--checkpoint-every", "3", "--resume", "auto"), straight)

    def test_goes_on_over_any_mesh_and_on_one_device(self):
        extra = ["--precision", "fp64"]
        straight = self.train("straight", 6, *extra)
        self.train("start", 3, *extra, "--checkpoint-every", "3")
        for number, over in enumerate(([], ["--mesh", "dp=2"], ["--mesh", "pp=2,tp=2"], ["--mesh", "dp_shard=4", "--zero", "2"])):
            with self.subTest(over):
                resumed = self.train(f"on{number}", 6, *extra, *over, "--resume", str(self.folder / "start"))
                self.assertEqual(sorted(resumed), [3, 4, 5])
                for step, loss in resumed.items():
                    self.assertAlmostEqual(loss, straight[step], delta=1e-12 * abs(straight[step]))

    def test_skips_a_damaged_newest_and_says_so(self):
        straight = self.train("run", 6, *DROPOUT, "--checkpoint-every", "2", "--keep", "0")
        self.assertEqual(self.steps("run"), ["step-2", "step-4", "step-6"])
        for path in (self.folder / "run" / "step-6").glob("*.safetensors"):
            path.write_bytes(path.read_bytes()[:-1])
        (self.folder / "run" / "step-4" / "manifest.json").unlink()
        resumed = self.train("run", 6, *DROPOUT, "--resume", "auto")
        self.assertIn("step-6: ", self.stderr)
        self.assertIn("skipped", self.stderr)
        self.assertIn("goes on after step 2", self.stderr)
        self.assertEqual(resumed, straight)

    def test_keeps_as_many_as_were_asked_for(self):
        self.train("run", 7, "--checkpoint-every", "1", "--keep", "3")
        self.assertEqual(self.steps("run"), ["step-5", "step-6", "step-7"])

    def test_auto_begins_a_run_that_has_no_checkpoint(self):
        self.assertEqual(len(self.train("run", 2, "--resume", "auto")), 2)
        self.assertIn("the run begins", self.stderr)


class Interrupts(InAFolder):
    def interrupted(self, sent: int, *arguments: str) -> subprocess.CompletedProcess:
        job = start("train", *GPT, "--steps", "100000", "--out", str(self.folder / "run"), "--checkpoint-every", "100000",
                    *arguments)
        metrics = self.folder / "run" / "metrics.jsonl"
        deadline = time.time() + 60
        while time.time() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 2):
            time.sleep(0.05)
        job.send_signal(sent)
        output, errors = job.communicate(timeout=60)
        return subprocess.CompletedProcess([], job.returncode, output, errors)

    def test_finish_the_step_save_and_end_with_130(self):
        for sent, arguments in ((signal.SIGINT, ["--mesh", "dp=2"]), (signal.SIGTERM, ["--mesh", "dp=2", "--ranks", "threads"]),
                                (signal.SIGINT, [])):
            with self.subTest(arguments):
                result = self.interrupted(sent, *arguments)
                self.assertEqual(result.returncode, 130, result.stderr)
                self.assertIn("stopped after step", result.stderr)
                (saved,) = self.steps("run")
                done = int(saved.removeprefix("step-"))
                self.assertEqual(max(losses_of(self.folder / "run")) + 1, done)
                resumed = self.train("run", done + 2, *arguments, "--resume", "auto")
                self.assertEqual(list(resumed), list(range(done + 2)))
                for path in (self.folder / "run").iterdir():
                    subprocess.run(["rm", "-rf", str(path)], check=True)


class Readme(InAFolder):
    def test_shows_commands_that_work(self):
        readme = pathlib.Path(__file__).parents[2] / "README.md"
        section = readme.read_text(encoding="utf-8").split("## Stopping and going on\n")[1].split("\n## ")[0]
        commands = section.split("```sh\n")[1].split("```")[0]
        path = f"{pathlib.Path(TESSERA).resolve().parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(["bash", "-ec", commands], cwd=self.folder, env={**os.environ, "PATH": path},
                              capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("goes on after step 20", done.stderr)
        self.assertIn("run/step-30: whole", done.stdout)
        self.assertTrue((self.folder / "model.safetensors").exists())


class Kills(InAFolder):
    """SIGKILL at any moment, again and again: the losses are those of a run that never stopped."""

    def test_never_change_a_loss(self):
        steps = 30
        extra = ["--mesh", "dp=2", *DROPOUT, "--checkpoint-every", "2"]
        straight = self.train("straight", steps, "--mesh", "dp=2", *DROPOUT)
        for schedule in range(SCHEDULES):
            with self.subTest(schedule=schedule):
                chance = random.Random(schedule)
                out = self.folder / f"run{schedule}"
                seen: dict[int, float] = {}
                for attempt in range(40):
                    job = start("train", *GPT, "--steps", str(steps), "--out", str(out), *extra, "--resume", "auto")
                    try:
                        job.communicate(timeout=chance.uniform(0.5, 4.0) if attempt < 6 else 200)
                    except subprocess.TimeoutExpired:
                        job.kill()
                        job.communicate()
                    if (out / "metrics.jsonl").exists():
                        for step, loss in losses_of(out).items():
                            self.assertEqual(seen.setdefault(step, loss), loss, f"step {step} came out differently")
                    if job.returncode == 0:
                        break
                self.assertEqual(job.returncode, 0)
                self.assertEqual(losses_of(out), straight)
                self.assertEqual([name for name in os.listdir(out) if ".tmp-" in name], [])


class Tools(InAFolder):
    def setUp(self):
        super().setUp()
        self.train("run", 4, "--checkpoint-every", "2", "--mesh", "dp_shard=2", "--zero", "3")
        self.first = str(self.folder / "run" / "step-2")
        self.second = str(self.folder / "run" / "step-4")

    def lines(self, *arguments: str, code: int = 0) -> list[dict]:
        result = run("checkpoint", *arguments, "--json", "-")
        self.assertEqual(result.returncode, code, result.stderr)
        return [json.loads(line) for line in result.stdout.splitlines()]

    def test_inspect_shows_what_there_is(self):
        head, *tensors = self.lines("inspect", str(self.folder / "run"), "--digests")
        self.assertEqual((head["step"], head["mesh"], head["files"], head["values"]["samples"]), (4, "dp_shard=2", 2, "16"))
        self.assertEqual(head["tensors"], len(tensors))
        roles = {tensor["role"] for tensor in tensors}
        self.assertEqual(roles, {"parameter", "optimizer"})
        self.assertTrue(all(len(tensor["digest"]) == 32 for tensor in tensors))
        text = run("checkpoint", "inspect", self.second).stdout
        for word in ("dp_shard=2", "exp_avg", "step = 4", "KiB"):
            self.assertIn(word, text)

    def test_digests_do_not_depend_on_the_mesh(self):
        self.train("other", 5, "--mesh", "dp=2", "--resume", self.second, "--checkpoint-every", "5")
        self.train("one", 4, "--mesh", "tp=2", "--resume", self.second, "--checkpoint-every", "4")
        both = [{tensor["name"]: tensor["digest"] for tensor in self.lines("inspect", str(path), "--digests")[1:]}
                for path in (self.second, self.folder / "other" / "step-5")]
        self.assertEqual(both[0].keys(), both[1].keys())

    def test_verify_names_file_tensor_and_block(self):
        (whole,) = self.lines("verify", self.second)
        self.assertTrue(whole["holds"])
        (shard, *_) = sorted(pathlib.Path(self.second).glob("*.safetensors"))
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        (damaged,) = self.lines("verify", self.second, code=1)
        self.assertRegex(damaged["problems"][0], r"shard-00000-of-00002.safetensors: tensor \S+: block 0 of 1")

    def test_diff_says_which_and_by_how_much(self):
        self.assertEqual(self.lines("diff", self.first, self.first), [])
        differences = {line["name"]: line for line in self.lines("diff", self.first, self.second, code=1)}
        self.assertEqual(differences["step"]["difference"], '"2" against "4"')
        weight = next(line for name, line in differences.items() if name.startswith("model.") and name.endswith("weight"))
        self.assertRegex(weight["difference"], r"\d+ of \d+ elements")
        self.assertGreater(weight["largest"], 0)

    def test_other_readers_of_safetensors_see_the_same_bytes(self):
        everything = self.folder / "all.safetensors"
        run("checkpoint", "export", self.second, "--part", "", "--to", str(everything))
        whole = tensors_in(everything)
        shards = [tensors_in(path) for path in sorted(pathlib.Path(self.second).glob("*.safetensors"))]
        names = {key.split("@")[0] for shard in shards for key in shard}
        self.assertEqual(names, set(whole))
        # ZeRO cuts along the first dim, so that chunks in the order of ranks are the tensor.
        for name, content in whole.items():
            chunks = [(int(key.partition("@")[2].split(",")[0] or 0), shard[key])
                      for shard in shards for key in shard if key.split("@")[0] == name]
            self.assertEqual(b"".join(chunk for _, chunk in sorted(chunks)), content, name)

    def test_export_gives_weights_to_start_from(self):
        file = str(self.folder / "model.safetensors")
        self.assertEqual(run("checkpoint", "export", str(self.folder / "run"), "--to", file).returncode, 0)
        result = run("train", *GPT, "--steps", "1", "--weights", file, "--json", "-")
        self.assertEqual(result.returncode, 0, result.stderr)
        everything = str(self.folder / "all.safetensors")
        result = run("checkpoint", "export", self.second, "--part", "", "--to", everything)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertGreater(os.path.getsize(everything), 2 * os.path.getsize(file))

    def test_bad_input_is_refused_in_one_line(self):
        missing = str(self.folder / "missing")
        run_folder = str(self.folder / "run")
        other = str(self.folder / "other")
        cases = [
            (["checkpoint"], 2, ["inspect", "verify"]),
            (["checkpoint", "inspct", run_folder], 2, ["inspct", "inspect"]),
            (["checkpoint", "inspect", missing], 1, [missing, "no such folder"]),
            (["checkpoint", "export", run_folder, "--to", other, "--part", "modell"], 2, ["modell", "model, optimizer"]),
            (["checkpoint", "export", run_folder, "--to", other, "--format", "onnx"], 2, ["onnx", "safetensors"]),
            (["train", *GPT, "--resume", missing], 1, [missing, "name a folder"]),
            (["train", *GPT, "--resume", "auto"], 2, ["resume", "--out"]),
            (["train", *GPT, "--checkpoint-every", "5"], 2, ["checkpoint_every", "--out"]),
            (["train", *GPT, "--keep", "1", "--out", other], 2, ["keep", "2 and above"]),
            (["train", *gpt(batch="8"), "--resume", run_folder], 2, ["batch = 4 in it", "batch = 8 now"]),
            (["train", *gpt(hidden="32"), "--resume", run_folder], 2, ["model.", "[16, ", "[32, "]),
            (["train", *GPT, "--resume", run_folder, "--optimizer", "sgd"], 2, ['"adamw"', '"sgd"']),
            (["train", *gpt(layers="3"), "--resume", run_folder, "--mesh", "dp=2"], 2, ["not in the checkpoint"]),
        ]
        for arguments, code, words in cases:
            with self.subTest(" ".join(arguments)):
                result = run(*arguments)
                self.assertEqual(result.returncode, code, result.stderr)
                errors = [line for line in result.stderr.splitlines() if line.startswith("tessera: error: ")]
                self.assertEqual(len(errors), 1, result.stderr)
                for word in words:
                    self.assertIn(word, errors[0])

    def test_two_jobs_do_not_share_a_run(self):
        first = start("train", *GPT, "--steps", "100000", "--out", str(self.folder / "busy"), "--checkpoint-every", "1",
                      "--keep", "2")
        try:
            deadline = time.time() + 60
            while time.time() < deadline and not list((self.folder / "busy").glob("step-*")):
                time.sleep(0.05)
            second = run("train", *GPT, "--steps", "2", "--out", str(self.folder / "busy"), "--resume", "auto")
            self.assertEqual(second.returncode, 2, second.stderr)
            self.assertIn(f"process {first.pid}", second.stderr)
        finally:
            first.kill()
            first.communicate()


if __name__ == "__main__":
    if "--schedules" in sys.argv:
        position = sys.argv.index("--schedules")
        SCHEDULES = int(sys.argv[position + 1])
        del sys.argv[position:position + 2]
    TESSERA = sys.argv.pop(1)
    unittest.main(verbosity=1)
