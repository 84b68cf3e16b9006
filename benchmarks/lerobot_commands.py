# SPDX-License-Identifier: Apache-2.0
"""Does policy type `lattice` work inside LeRobot, unpatched? Its real commands, on datasets made on the spot.

    python benchmarks/lerobot_commands.py                      (about ten minutes on 2 cores; `make test-lerobot`)
    python benchmarks/lerobot_commands.py --only train resume

Every row is one or more commands of LeRobot's, run as a user would, and what is looked at afterwards:
  train          lerobot-train on a dataset of `vla record`: the loss falls
  resume         half of it, then --resume: the same weights as without an interruption, bit for bit
  finetune       --policy.path, on other tasks: begins below where a new policy begins, and falls
  train_images   a dataset of LeRobot's own writer: pictures, two cameras of different sizes, --dataset.episodes, and a
                 loss of held-out episodes; the same one streamed; and with plans in LeRobot's language columns
  eval           lerobot-eval on our tabletop, the shipped checkpoint
  eval_metaworld lerobot-eval on our Meta-World and on LeRobot's own
  rollout_*      lerobot-rollout with our simulated robot: actions come at the rate asked for, and blocks are reached
  roundtrip_bit_identical  LeRobot's checkpoint, made ours, and back: the same actions from all three
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vla.bench.results import Row, results, show, write
from vla.eval.statistics import wilson_interval

STEPS, BATCH, FPS, SECONDS = 80, 16, 10, 20
SENTENCE = "reach the red block"
BIN = Path(sys.executable).parent
DEMO_TASKS, EPISODES = ("reach", "push-left"), 130
"""More frames than STEPS * BATCH: a resumed run has the same order of samples within the first pass over the data."""


class Commands:
    """Runs commands in an environment of their own; keeps what they print in `folder`/logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        private = {"HF_HOME": folder / "hf", "VLA_CACHE": folder / "cache", "HF_LEROBOT_HOME": folder / "hf/lerobot"}
        fixed = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "SVT_LOG": "1", "MUJOCO_GL": "egl"}
        self.environment = os.environ | fixed | {key: str(value) for key, value in private.items()}

    def __call__(self, name: str, program: str, *arguments: str, **options: Any) -> str:
        """Run BIN/program with --options ("__" is "."), return its output. RuntimeError with its end if it fails."""
        said = [f"--{key.replace('__', '.')}={value}" for key, value in options.items()]
        command = [str(BIN / program), *arguments, *said]
        log = self.folder / "logs" / f"{name}.txt"
        with log.open("w") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=self.environment).returncode
        output = log.read_text(errors="replace")
        if code:
            raise RuntimeError(f"{' '.join(command)}\nended with exit code {code}:\n{output[-3000:]}")
        return output


class Bench:
    """What the rows share: datasets and checkpoints, made when first asked for."""

    def __init__(self, folder: Path, metaworld: str | None) -> None:
        self.folder, self.run, self._metaworld = folder, Commands(folder), metaworld

    # --- what is made on the spot -----------------------------------------------------------------------------------
    def dataset(self, name: str, tasks: Sequence[str], env: str = "tabletop", episodes: int = 40) -> dict[str, Any]:
        """LeRobot's options for a dataset of `vla record`."""
        root = self.folder / f"data-{name}"
        if not (root / "meta/info.json").exists():
            where = ["--env", env, "--tasks", *tasks, "--episodes", str(episodes), "--out", str(root)]
            self.run(f"record-{name}", "vla", "record", *where)
        return {"dataset__repo_id": f"lattice/{name}", "dataset__root": root, "dataset__video_backend": "pyav"}

    def shipped(self) -> Path:
        """The shipped checkpoint as LeRobot's."""
        out = self.folder / "shipped"
        if not out.exists():
            self.run("convert", "vla", "convert", "tabletop_nano", "--out", str(out))
        return out

    def metaworld(self) -> Path:
        """A policy for Meta-World as LeRobot's: the one given, or one that was trained for seconds."""
        out = self.folder / "metaworld"
        if not out.exists():
            source = self._metaworld
            if source is None:
                root = self.dataset("metaworld", ["drawer-close-v3"], "metaworld", 4)["dataset__root"]
                run = self.folder / "run-metaworld"
                recipe = ["--recipe", "metaworld_mt10_small", "--set", "steps=20", "layers=1", "--no-tensorboard"]
                self.run("train-metaworld", "vla", "train", "--dataset", str(root), "--out", str(run), *recipe)
                source = str(run / "checkpoints/last")
            self.run("convert-metaworld", "vla", "convert", source, "--out", str(out))
        return out

    def train(self, name: str, *arguments: str, steps: int = STEPS, **options: Any) -> tuple[Path, list[float]]:
        """`lerobot-train`; returns its folder and the losses it told."""
        out = self.folder / f"run-{name}"
        fixed = {"policy__push_to_hub": "false", "policy__device": "cpu", "num_workers": 0, "seed": 0}
        fixed |= {"batch_size": BATCH, "steps": steps, "save_freq": steps // 2, "log_freq": 10, "output_dir": out}
        output = self.run(f"train-{name}", "lerobot-train", *arguments, **fixed | options)
        losses = [float(loss) for loss in re.findall(r"\bloss:([\d.]+)", output)]
        if len(losses) < 2:
            raise RuntimeError(f"expected lerobot-train to tell losses, got {losses}; it printed\n{output[-2000:]}")
        return out, losses

    def first_run(self) -> tuple[Path, list[float]]:
        """The training that other rows go on from."""
        out, kept = self.folder / "run-train", self.folder / "losses.json"
        if not kept.exists():
            shutil.rmtree(out, ignore_errors=True)
            how = {"policy__type": "lattice", "policy__overrides": '["full_steps=20","warmup=10"]'}
            _, losses = self.train("train", **self.dataset("demo", DEMO_TASKS, episodes=EPISODES), **how)
            kept.write_text(json.dumps(losses))
        return out, json.loads(kept.read_text())

    # --- rows -------------------------------------------------------------------------------------------------------
    def row_train(self) -> list[Row]:
        """lerobot-train --policy.type=lattice"""
        _, losses = self.first_run()
        note = f"{losses[0]:.2f} after 10 steps, {losses[-1]:.2f} after {STEPS}, batches of {BATCH}"
        return [Row("train", losses[-1], "loss", STEPS, goal="falls by a fifth", passes=losses[-1] < 0.8 * losses[0],
                    note=note)]  # fmt: skip

    def row_resume(self) -> list[Row]:
        """The first half again, then --resume."""
        from safetensors.torch import load_file

        run, _ = self.first_run()
        half, copy = f"{STEPS // 2:06d}", self.folder / "run-resume"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run / "checkpoints" / half, copy / "checkpoints" / half)
        config = copy / "checkpoints" / half / "pretrained_model/train_config.json"
        self.run("resume", "lerobot-train", config_path=config, resume="true", output_dir=copy)
        last = f"checkpoints/{STEPS:06d}/pretrained_model/model.safetensors"
        one, other = load_file(run / last), load_file(copy / last)
        differing = sum(not one[name].equal(other[name]) for name in one)
        passes = differing == 0 and one.keys() == other.keys()
        note = "tensors that differ from the run that was not interrupted; within one pass over the data"
        return [Row("resume", differing, "tensors", len(one), goal="0", passes=passes, note=note)]

    def row_finetune(self) -> list[Row]:
        """--policy.path, on tasks that the checkpoint has not seen."""
        run, from_scratch = self.first_run()
        data = self.dataset("lift", ["lift"])
        path = run / f"checkpoints/{STEPS:06d}/pretrained_model"
        shutil.rmtree(self.folder / "run-finetune", ignore_errors=True)
        _, losses = self.train("finetune", f"--policy.path={path}", steps=STEPS // 2, **data)
        passes = losses[0] < from_scratch[0] and losses[-1] < losses[0]
        note = f"begins at {losses[0]:.2f}, a new policy at {from_scratch[0]:.2f}"
        return [Row("finetune", losses[-1], "loss", STEPS // 2, goal="begins lower, falls", passes=passes, note=note)]

    def row_train_images(self) -> list[Row]:
        """A dataset of LeRobot's own writer; a part of it; streamed."""
        root = self.folder / "data-images"
        if not root.exists():
            write_images(root)
        how = {"policy__type": "lattice", "policy__recipe": "tabletop_test", "log_freq": 2, "batch_size": 8}
        how |= {"dataset__repo_id": "lattice/images", "dataset__root": root}
        annotated = self.folder / "data-annotated"
        if not annotated.exists():
            shutil.copytree(root, annotated)
            annotate(annotated)
        rows = []
        held_out = {"dataset__episodes": "[0,1,3,5]", "dataset__eval_split": 0.25, "eval_steps": 4}
        for name, options, note in (
            ("train_images", held_out, "images, two cameras of 48 and 64 px, 4 of 6 episodes, one held out"),
            ("train_streaming", {"dataset__streaming": "true", "num_workers": 1}, "the same, streamed from its folder"),
            ("train_language", {"dataset__root": annotated}, "the same with plans and subtasks in language columns"),
        ):
            shutil.rmtree(self.folder / f"run-{name}", ignore_errors=True)
            _, losses = self.train(name, steps=8, **how | options)
            rows.append(Row(name, losses[-1], "loss", 8, goal="finite", passes=bool(np.isfinite(losses).all()),
                            note=note))  # fmt: skip
        return rows

    def evaluate(self, name: str, policy: Path, episodes: int, *arguments: str, **options: Any) -> tuple[int, int]:
        """`lerobot-eval`; returns (successes, episodes)."""
        out = self.folder / f"eval-{name}"
        fixed = {"policy__path": policy, "policy__device": "cpu", "eval__n_episodes": episodes, "output_dir": out}
        self.run(f"eval-{name}", "lerobot-eval", *arguments, **fixed | options)
        overall = json.loads((out / "eval_info.json").read_text())["overall"]
        return round(overall["pc_success"] * overall["n_episodes"] / 100), overall["n_episodes"]

    def row_eval(self) -> list[Row]:
        """The shipped checkpoint on the tasks of the demo."""
        env = {"env__type": "tabletop", "env__task": "demo", "eval__batch_size": 10}
        wins, n = self.evaluate("tabletop", self.shipped(), 10, **env)
        return [Row("eval", wins / n, "success", n, wilson_interval(wins, n), goal=">= 0.9", passes=wins >= 0.9 * n,
                    note="lerobot-eval --env.type=tabletop --env.task=demo, the shipped checkpoint")]  # fmt: skip

    def row_eval_metaworld(self) -> list[Row]:
        """One task of Meta-World, through our environment and through LeRobot's."""
        rows, task = [], {"env__task": "drawer-close-v3", "eval__batch_size": 1}
        renamed = '--rename_map={"observation.image": "observation.images.corner2_mt50"}'
        for name, type_, arguments in (("metaworld_lattice", "metaworld_lattice", ()),
                                       ("metaworld_stock", "metaworld", (renamed,))):  # fmt: skip
            wins, n = self.evaluate(name, self.metaworld(), 2, *arguments, env__type=type_, **task)
            trained = ", the policy that --metaworld gave" if self._metaworld else ", a policy of 20 steps"
            rows.append(Row(f"eval_{name}", wins / n, "success", n, wilson_interval(wins, n), goal="runs", passes=True,
                            note=f"lerobot-eval --env.type={type_} --env.task=drawer-close-v3{trained}"))  # fmt: skip
        return rows

    def rollout(self, engine: str) -> list[Row]:
        """The shipped checkpoint drives the simulated robot."""
        outcome = self.folder / f"{engine}.json"
        robot = {"robot__type": "tabletop", "robot__instruction": SENTENCE, "robot__outcome": outcome}
        how = {"policy__path": self.shipped(), "inference__type": engine, "task": SENTENCE, "fps": FPS}
        how |= {"duration": SECONDS, "return_to_initial_position": "false", "play_sounds": "false", "device": "cpu"}
        self.run(f"rollout-{engine}", "lerobot-rollout", **robot | how)
        happened = json.loads(outcome.read_text())
        rate = happened["actions"] / SECONDS
        passes = rate > 0.9 * FPS and happened["successes"] > 0
        note = f"reached {happened['successes']} of {happened['episodes']}, longest gap {happened['longest_gap_s']} s"
        return [Row(f"rollout_{engine}", rate, "actions/s", happened["actions"], goal=f"{FPS}, and blocks reached",
                    passes=passes, note=note)]  # fmt: skip

    def row_rollout_sync(self) -> list[Row]:
        """lerobot-rollout --inference.type=sync"""
        return self.rollout("sync")

    def row_rollout_rtc(self) -> list[Row]:
        """lerobot-rollout --inference.type=rtc"""
        return self.rollout("rtc")

    def row_roundtrip_bit_identical(self) -> list[Row]:
        """What lerobot-train wrote acts the same as LeRobot's, as ours, and as LeRobot's again."""
        import torch

        import lerobot_policy_lattice  # noqa: F401 (registers the policy)
        from vla import randomness
        from vla.data.cache import open_cache
        from vla.lerobot.modeling_lattice import LatticePolicy
        from vla.policy import Observation, Policy

        run, _ = self.first_run()
        source = run / f"checkpoints/{STEPS:06d}/pretrained_model"
        ours, back = self.folder / "ours", self.folder / "back"
        for from_, to in ((source, ours), (ours, back)):
            shutil.rmtree(to, ignore_errors=True)
            self.run(f"convert-{to.name}", "vla", "convert", str(from_), "--out", str(to))
        cache = open_cache(self.folder / "data-demo", 64, self.folder / "cache")
        frames = np.linspace(0, len(cache) - 1, 16).astype(int)
        images, state = cache.frames["front"][frames], cache.state[frames]
        sentences = [cache.tasks[i] for i in cache.task_index[frames]]
        observations = [Observation({"front": images[i]}, state[i], sentences[i]) for i in range(len(frames))]
        pictures = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        batch = {"observation.images.front": pictures, "observation.state": torch.from_numpy(state), "task": sentences}
        chunks = []
        for folder in (source, back):
            policy = LatticePolicy.from_pretrained(folder)
            chunks.append(policy.predict_action_chunk(batch).numpy())
        keys = [(int(randomness.fold(policy._episode, row)), 0) for row in range(len(frames))]
        chunks.append(Policy.load(ours).act(observations, keys))
        differing = int(sum((chunk != chunks[0]).sum() for chunk in chunks[1:]))
        note = "action values that differ between LeRobot's checkpoint, ours made of it, and back"
        passes = differing == 0
        return [Row("roundtrip_bit_identical", differing, "values", chunks[0].size, goal="0", passes=passes, note=note)]


def write_images(root: Path) -> None:
    """A dataset as LeRobot writes it: pictures in the tables, two cameras, no names for the numbers."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    rng, sizes = np.random.default_rng(0), {"top": 48, "side": 64}
    pictures = {f"observation.images.{name}": {"dtype": "image", "shape": (size, size, 3),
                                               "names": ["height", "width", "channels"]}
                for name, size in sizes.items()}  # fmt: skip
    vectors = {name: {"dtype": "float32", "shape": (size,), "names": None}
               for name, size in (("observation.state", 5), ("action", 3))}  # fmt: skip
    dataset = LeRobotDataset.create("lattice/images", 20, pictures | vectors, root=root, use_videos=False)
    for episode in range(6):
        for _ in range(12):
            frame = {f"observation.images.{name}": rng.integers(0, 256, (size, size, 3), np.uint8)
                     for name, size in sizes.items()}  # fmt: skip
            numbers = {"observation.state": rng.normal(size=5), "action": rng.uniform(-1, 1, 3)}
            dataset.add_frame(frame | {k: v.astype(np.float32) for k, v in numbers.items()}
                              | {"task": f"sort the parts, tray {episode % 2}"})  # fmt: skip
        dataset.save_episode()
    dataset.finalize()


def annotate(root: Path) -> None:
    """Plans and subtasks in the columns that LeRobot has for them, by its own writer."""
    from lerobot.annotations.steerable_pipeline.executor import Executor
    from lerobot.annotations.steerable_pipeline.reader import iter_episodes
    from lerobot.annotations.steerable_pipeline.staging import EpisodeStaging
    from lerobot.annotations.steerable_pipeline.writer import LanguageColumnsWriter

    episodes = list(iter_episodes(root))
    with tempfile.TemporaryDirectory() as staging:
        for episode in episodes:
            said = {"role": "assistant", "timestamp": 0.0}
            rows = [{**said, "style": style, "content": f"{style}: take a part"} for style in ("plan", "subtask")]
            EpisodeStaging(Path(staging), episode.episode_index).write("plan", rows)
        LanguageColumnsWriter().write_all(episodes, Path(staging), root)
    Executor._ensure_annotation_metadata_in_info(root)


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is different between two results files: versions of packages, and rows that pass no more, or again."""
    versions = before["versions"], now["versions"]
    lines = [
        f"{name}: {versions[0].get(name, 'none')} -> {versions[1].get(name, 'none')}"
        for name in sorted(versions[0].keys() | versions[1].keys())
        if versions[0].get(name) != versions[1].get(name)
    ]
    passed, words = {row["id"]: row["passes"] for row in before["rows"]}, {True: "passes", False: "FAILS", None: "-"}
    for row in now["rows"]:
        if (was := passed.get(row["id"])) != row["passes"]:
            lines.append(f"{row['id']}: {words[was]} -> {words[row['passes']]} ({row['note']})")
    return lines or ["nothing changed"]


def main() -> int:
    rows = {name.removeprefix("row_"): name for name in vars(Bench) if name.startswith("row_")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=rows, default=list(rows), help="these rows only")
    parser.add_argument("--out", type=Path, help="keep what is made on the way here, and use what is there already")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results/lerobot.json")
    parser.add_argument("--against", type=Path, help="results of another version of LeRobot: say what changed")
    parser.add_argument("--metaworld", help="checkpoint for the Meta-World rows; none: one is trained for seconds")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench((arguments.out or Path(temporary)).resolve(), arguments.metaworld)
        measured: list[Row] = []
        for name in arguments.only:
            row: Callable[[], list[Row]] = getattr(bench, rows[name])
            console.print(f"[bold]{name}[/bold]: {row.__doc__}")
            began = time.perf_counter()
            try:
                measured += row()
            except Exception:
                console.print(traceback.format_exc(), markup=False)
                measured.append(Row(name, float("nan"), "", goal="runs", passes=False, note="failed: see the output"))
            console.print(f"  {time.perf_counter() - began:.0f} s")
    content = results("lerobot", measured, [0])
    if len(arguments.only) == len(rows):  # some of the rows must not replace the figures of all
        write(content, arguments.results)
    show(content, console)
    if arguments.against:
        for line in changes(json.loads(arguments.against.read_text()), content):
            console.print(line, markup=False)
    return int(any(row.passes is False for row in measured))


if __name__ == "__main__":
    sys.exit(main())
