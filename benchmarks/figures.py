# SPDX-License-Identifier: Apache-2.0
"""Write the README's figures from benchmarks/results/*.json: `python benchmarks/figures.py [--check]`.

--check changes nothing and exits 1 if the README is not what the results say.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
SECOND_EDITION = "2026-11-28T23:00"
"""The redesign of the core: what was measured before was measured on another network."""
WITHOUT_NETWORK = ("data",)
"""Files whose rows no network has a part in."""
SHOWN: dict[str, dict[str, str]] = {
    "heard": {
        "pairs_heard": "pairs of (asked, given) in which what is given is heard: own condition against a swapped one",
        "committed_ratio": "actions after four committed ones that were executed: error told / not told",
        "committed_ratio_push": "the same after a push: error told / not told",
        "committed_ratio_unified": "actions after four committed ones, unified checkpoint: error told / not told",
        "committed_ratio_push_unified": "the same after a push, unified checkpoint: error told / not told",
        "infill_ratio": "two ways round a wall: error with the own last steps / with those of the other way",
        "plan_ratio": "actions given a plan and no instruction: error with the own plan / with another one",
        "future_given_ratio": "actions given the future image: error with the own / with another episode's",
        "future_block_ratio": "actions after a decided future image: error with the own / with another episode's",
        "world_model_ratio": "future image given actions: squared error with the own / with another episode's",
        "world_model_extremes": "future image after all-right and all-left: correlation with the true difference",
        "label_accuracy_cloze": "instruction of an episode by the cloze alone, whole sentence right",
        "delay_gain_8": "delay of eight steps, tiers 2 and 3: success told minus not told",
        "delay_loss_8": "delay of eight steps, tiers 2 and 3: success without a delay minus told",
    },
    "demo": {
        "success": "success of the policy that `make demo` trains (reach and push)",
        "swapped_success": "that policy told about another block, judged by the first",
        "random_success": "random actions",
        "minutes": "`make demo`, everything",
        "record_fps_per_core": "simulate and render at 96 px, a core",
        "loader_fps": "cached frames into training batches at 96 px",
    },
    "checkpoint": {
        "checkpoint_success": "shipped checkpoint: all 15 templates",
        "checkpoint_success_tier1": "shipped checkpoint: tier 1, reach and push",
        "checkpoint_success_tier2": "shipped checkpoint: tier 2, lift and place",
        "checkpoint_success_tier3": "shipped checkpoint: tier 3, stack and relations",
    },
    "robustness": {
        "robustness_distractors_difference": "shipped checkpoint: other things on the table",
        "robustness_held_out_positions_difference": "shipped checkpoint: objects where training placed none",
        "robustness_paraphrase_difference": "shipped checkpoint: told the same in other words",
        "robustness_light_difference": "shipped checkpoint: in other light",
        "robustness_camera_shift_difference": "shipped checkpoint: a camera moved by 2-3 cm and 2-3 degrees",
        "robustness_action_delay_difference": "shipped checkpoint: every action two steps late",
    },
    "rivals_tabletop": {
        "tabletop_ours": "reach and push, seven minutes of training on one core each, one training each: ours",
        "tabletop_vs_single_mask": "ours minus our network with single-mask diffusion, 8 denoising steps",
        "tabletop_vs_autoregressive": "ours minus our network, autoregressive",
        "tabletop_vs_regression": "ours minus our network with L1 regression",
        "tabletop_vs_act": "ours minus LeRobot's ACT, from scratch",
        "tabletop_vs_diffusion": "ours minus LeRobot's Diffusion Policy, from scratch",
        "tabletop_vs_vqbet": "ours minus LeRobot's VQ-BeT, from scratch",
        "tabletop_vs_multi_task_dit": "ours minus LeRobot's multi-task DiT, from scratch",
    },
    "metaworld_mt10_small": {
        "mt10_success": "Meta-World MT10, one network, 50 demonstrations a task",
        "mt10_minutes": "Meta-World MT10: recording and training",
    },
    "rivals_mt10": {
        "mt10_ours": "MT10, fifteen minutes of training on one core each, one training each: ours",
        "mt10_vs_single_mask": "MT10: ours minus our network with single-mask diffusion, 8 denoising steps",
        "mt10_vs_autoregressive": "MT10: ours minus our network, autoregressive, without the mean picture of ours",
        "mt10_vs_regression": "MT10: ours minus our network with L1 regression, without the mean picture of ours",
        "mt10_vs_act": "MT10: ours minus LeRobot's ACT, from scratch",
        "mt10_vs_diffusion": "MT10: ours minus LeRobot's Diffusion Policy, from scratch",
        "mt10_vs_vqbet": "MT10: ours minus LeRobot's VQ-BeT, from scratch",
        "mt10_vs_multi_task_dit": "MT10: ours minus LeRobot's multi-task DiT, from scratch",
    },
    "lattice": {
        "bimodal_joint_1nfe": "two-mode task, one denoising step: whole chunks right, lattice with a noise index",
        "bimodal_joint_1nfe_no_index": "two-mode task, one denoising step: lattice without an index",
        "bimodal_joint_1nfe_single_mask_index": "two-mode task, one denoising step: one mask with a noise index",
        "bimodal_joint_1nfe_single_mask": "two-mode task, one denoising step: one mask without an index",
        "success_nfe_2": "tabletop from state, lattice, 2 denoising steps",
        "single_mask_nfe_2": "tabletop from state, one mask, 2 denoising steps",
        "single_mask_nfe_8": "tabletop from state, one mask, 8 denoising steps",
        "chain_bits": "likelihood of held-out chunks, a token at a time: lattice",
        "single_mask_chain_bits": "likelihood of held-out chunks, a token at a time: one mask",
        "factorisation_gap_ratio_t2": "what deciding in 2 denoising steps costs beyond that: lattice / one mask",
    },
    "speed": {
        "nano_graph_p50_ms": "a decision of the tabletop's network (1 M parameters), observation to actions, one graph",
        "small_graph_p50_ms": "a decision of 30 M parameters, two cameras of 96 px, one graph",
        "served_graph_p50_ms": "end-to-end latency p50, client on the same host, 20 Hz, vla serve --compile",
        "cache_speedup": "the exact cache at 8 denoising steps: times as fast",
        "cache_speedup_long": "the exact cache at 8 denoising steps, an instruction of 512 words: times as fast",
        "latency_ratio_to_ar_nano": "time of ours / of the same network one token after the other, 1 M parameters",
        "latency_ratio_to_ar_small": "time of ours / of the same network one token after the other, 30 M parameters",
        "latency_ratio_to_ar_base": "time of ours / of the same network one token after the other, 100 M parameters",
        "student_minus_teacher": "student of 1 denoising step minus its teacher of 8, all 15 templates",
        "student_minus_teacher_at_1": "student of 1 denoising step minus its teacher in 1, all 15 templates",
        "int8_size_ratio_nano": "weights of eight bits: size of the shipped checkpoint's file",
        "int8_success_loss": "weights of eight bits: success lost",
        "gpu_p50_ms": "a decision of 100 M parameters on a GPU, observation to actions, one graph",
    },
    "rivals_speed": {
        f"latency_ratio_to_{name}{end}": f"a chunk of ours{how} / of {whose}, with no more parameters, eager"
        for end, how in (("_eager", ", eager"), ("", ", compiled"))
        for name, whose in {
            "act": "LeRobot's ACT",
            "diffusion": "Diffusion Policy (DDIM, ten steps)",
            "multi_task_dit": "multi-task DiT (DDIM, ten steps)",
            "vqbet": "VQ-BeT",
        }.items()
    },
    "eval_throughput": {
        "eval_throughput_ratio": "environment steps a second on Meta-World: vla eval (96 px) / lerobot-eval (480 px)",
    },
    "lerobot": {
        "eval": "inside LeRobot: lerobot-eval, reach and push, the shipped checkpoint",
        "resume": "inside LeRobot: weights that a resumed lerobot-train has otherwise",
        "roundtrip_bit_identical": "inside LeRobot: action values that differ after vla convert there and back",
        "rollout_rtc": "inside LeRobot: lerobot-rollout with real-time chunking, simulated robot at 10 Hz",
    },
    "data": {
        "cache_fps_96": "frames of 96 px into batches, our cache, 55 MB that a processor may hold",
        "lerobot_video_fps_96": "frames of 96 px into batches, LeRobot's video",
        "ratio_96": "frames into batches: our cache / LeRobot's video",
        "cache_build_fps": "LeRobot's video decoded into the cache, once",
    },
    "survival": {
        "decoder_frames": "random and mutated frames into the server's decoder",
        "server_frames": "random and mutated frames by websocket into a real server",
        "crashes": "fuzzing: processes that died",
        "uncaught": "fuzzing: unhandled exceptions and wrong answers",
        "train_kills": "trainings killed at random instants, also while saving, and resumed",
        "train_kills_bit_identical": "killed trainings with the losses and weights of one that was not, bit by bit",
        "record_eval_kills": "recordings and evaluations killed and resumed",
        "episodes_lost": "killed recordings and evaluations: episodes lost",
        "episodes_duplicated": "killed recordings and evaluations: episodes that were run twice",
        "disconnects": "connections cut at random points",
        "clients": "clients at once, all answered right",
        "server_beside_policy_p50_ms": "client's time minus the network's own, three cameras of 224 px, p50",
        "server_beside_policy_p95_ms": "client's time minus the network's own, three cameras of 224 px, p95",
        "soak_p99_drift": "an hour of requests: how much slower the slowest hundredth became",
        "soak_rss_growth_mb": "an hour of requests: memory grown",
    },
    "openpi_client": {
        "openpi_websockets_old": "openpi's unmodified client, with an old websockets: checks passed",
        "openpi_websockets_newest": "openpi's unmodified client, with the newest websockets: checks passed",
    },
}
DIFFERENCES = "_difference", "_vs_", "_minus_", "_loss"
"""Ids of rows that are a difference of two rates."""
COUNTED = "pairs", "checks"
"""Units of which there are `n`."""


def cell(row: dict[str, Any]) -> str:
    value, unit, interval = row["value"], row["unit"], row.get("interval")
    if value is None:
        return row["note"] or "not measured"
    if unit in ("fraction", "success"):
        unit, value = "points" if any(word in row["id"] for word in DIFFERENCES) else "%", 100 * value
        interval = interval and [100 * end for end in interval]
        number = "{:.1f}".format
    else:
        unit = {"1/s": "frames/s", "parameters": "", "x": "times", "ratio": "", "correlation": ""}.get(unit, unit)
        number = _number
    of = f" of {row['n']}" if unit in COUNTED else ""
    text = f"{number(value)}{of} {unit}".rstrip()
    if not interval:
        return text
    low, high = map(number, interval)
    between = f"{low}-{high}" if interval[0] >= 0 else f"{low} to {high}"
    return f"{text} ({between}{f', n = {row["n"]}' if row.get('n') else ''})"


def _number(value: float) -> str:
    return f"{round(value) if abs(value) >= 1000 or value == round(value) else round(value, 2):,}"


def goal(row: dict[str, Any]) -> str:
    text = row.get("goal", "")
    return f"{text} (**not met**)" if row.get("passes") is False else text


def edition(results: dict[str, Any]) -> str:
    """ "first edition's network" of what was measured before the redesign, wholly or in part; else ""."""
    parts = results.get("parts", {}).values()
    dates = [part.get("date", "") for part in parts] or [results["date"]]
    if results["bench"] in WITHOUT_NETWORK or min(dates) >= SECOND_EDITION:
        return ""
    return f"{'' if max(dates) < SECOND_EDITION else 'in part '}first edition's network"


def commits(results: dict[str, Any]) -> str:
    """With which it was measured: each part that was measured by itself has its own."""
    parts = [part["commit"] for part in results.get("parts", {}).values()] or [results["commit"]]
    short = dict.fromkeys(str(commit)[:7] for commit in parts)
    return f"commit{'s' if len(short) > 1 else ''} {' '.join(short)}"


def figures() -> str:
    """The Markdown between the markers."""
    lines, machines = ["| measured | value | goal |", "|---|---|---|"], dict[str, list[str]]()
    for bench, shown in SHOWN.items():
        path = ROOT / "benchmarks" / "results" / f"{bench}.json"
        if not path.exists():
            continue
        results = json.loads(path.read_text())
        rows = {row["id"]: row for row in results["rows"]}
        machines.setdefault(results["machine"], []).append(path.name)
        about = "; ".join(filter(None, (commits(results), edition(results))))
        lines.append(f"| **{path.name}** ({about}) | | |")
        lines += [f"| {text} | {cell(rows[i])} | {goal(rows[i])} |" for i, text in shown.items() if i in rows]
    files = "; ".join(f"on {machine}: {', '.join(names)}" for machine, names in machines.items())
    notes = f"Success with 95 % intervals, on seeds that were never recorded. From `benchmarks/results/`, {files}."
    return "\n".join([BEGIN, *lines, "", notes, END])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    new = before + figures() + rest.split(END)[1]
    if arguments.check:
        return int(new != text)
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
