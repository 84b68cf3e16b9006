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
SHOWN = {
    "demo": {
        "success": "demo: success of the policy that `make demo` trains (reach and push)",
        "swapped_success": "demo: told about another block, judged by the first",
        "random_success": "demo: random actions",
        "minutes": "demo: everything",
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
        "robustness_distractors_difference": "shipped checkpoint: what other things on the table cost",
        "robustness_held_out_positions_difference": "shipped checkpoint: objects where training placed none",
        "robustness_paraphrase_difference": "shipped checkpoint: told the same in other words",
        "robustness_light_difference": "shipped checkpoint: in other light",
        "robustness_camera_shift_difference": "shipped checkpoint: a camera moved by 2-3 cm and 2-3 degrees",
    },
    "rivals_tabletop": {
        "tabletop_ours": "reach and push, seven minutes of training on one core each: ours",
        "tabletop_vs_single_mask": "ours minus our network with single-mask diffusion, 8 evaluations",
        "tabletop_vs_autoregressive": "ours minus our network, autoregressive",
        "tabletop_vs_regression": "ours minus our network with L1 regression",
        "tabletop_vs_act": "ours minus LeRobot's ACT, from scratch",
        "tabletop_vs_diffusion": "ours minus LeRobot's Diffusion Policy, from scratch",
        "tabletop_vs_vqbet": "ours minus LeRobot's VQ-BeT, from scratch",
        "tabletop_vs_multi_task_dit": "ours minus LeRobot's multi-task DiT, from scratch",
    },
    "metaworld_mt10_small": {
        "mt10_success": "Meta-World MT10, one network, 50 demonstrations a task",
        "mt10_minutes": "the same: recording and training",
    },
    "rivals_mt10": {
        "mt10_ours": "MT10, fifteen minutes of training on one core each: ours",
        "mt10_vs_single_mask": "ours minus our network with single-mask diffusion, 8 evaluations",
        "mt10_vs_autoregressive": "ours minus our network, autoregressive",
        "mt10_vs_regression": "ours minus our network with L1 regression",
        "mt10_vs_act": "ours minus LeRobot's ACT, from scratch",
        "mt10_vs_diffusion": "ours minus LeRobot's Diffusion Policy, from scratch",
        "mt10_vs_vqbet": "ours minus LeRobot's VQ-BeT, from scratch",
        "mt10_vs_multi_task_dit": "ours minus LeRobot's multi-task DiT, from scratch",
    },
    "eval_throughput": {
        "eval_throughput_ratio": "evaluation on Meta-World against lerobot-eval, environment steps a second",
    },
    "lerobot": {
        "eval": "inside LeRobot: lerobot-eval, reach and push, the shipped checkpoint",
        "resume": "inside LeRobot: weights that a resumed lerobot-train has otherwise",
        "roundtrip_bit_identical": "inside LeRobot: action values that differ after vla convert there and back",
        "rollout_rtc": "inside LeRobot: lerobot-rollout with real-time chunking, simulated robot at 10 Hz",
    },
    "data": {
        "cache_fps_96": "frames of 96 px into batches: our cache, 55 MB that a processor may hold",
        "lerobot_video_fps_96": "the same: LeRobot's video",
        "ratio_96": "the same: our cache against LeRobot's video",
        "cache_build_fps": "LeRobot's video decoded into the cache, once",
    },
    "queries": {
        "queries_beating_prior": "one checkpoint, eight questions: those answered better than without a network",
        "unified_success": "the same checkpoint in closed loop, reach and push, actions alone",
        "joint_minus_sequential": "plan, future image and actions together, minus one after the other",
        "evaluations_saved": "chunks executed for as long as they are sure: decisions saved",
        "delay_4_drop": "success lost to a delay of four control steps",
        "label_accuracy": "instructions of held-out episodes found, among the 30 that are known",
        "label_in_own_words": "the same in its own words, with nothing to choose from",
        "inverse_error_ratio": "inverse dynamics: error against a network that learns nothing else",
        "plan_effective_ratio": "plans: positions evaluated that became words",
        "future_image_gain": "what learning future images adds to acting",
        "low_data_ratio": "100 demonstrations: success with all questions against actions alone",
        "low_data_video_ratio": "the same, all questions having 900 more without actions, and acting on waypoints",
        "limit_violations": "limits broken in 100,000 sampled chunks",
        "prefix_bit_exact": "committed actions that come back bit by bit",
    },
    "speed": {
        "nano_graph_p50_ms": "a decision of the tabletop's network (1 M parameters), observation to actions, one graph",
        "small_graph_p50_ms": "the same with 30 M parameters, two cameras of 96 px",
        "served_graph_p50_ms": "what a robot waits for vla serve --compile on its machine, twenty times a second",
        "cache_speedup": "the exact prefix cache, 8 evaluations, a prefix of 512 words: times as fast",
        "latency_ratio_to_ar_nano": "the same network one token after the other: ours takes, of its time, 32 tokens",
        "latency_ratio_to_ar_small": "the same with 30 M, 64 tokens",
        "latency_ratio_to_ar_base": "the same with 136 M, 200 tokens",
        "speculative_speedup": "self-speculation, 16 evaluations, the same tokens: passes saved, times",
        "student_success_ratio": "a student of 1 evaluation: success over that of its teacher of 8, all 15 templates",
        "student_mode_coverage": "the same on a bimodal task: modes kept",
        "int8_size_ratio_nano": "weights of eight bits: size of the shipped checkpoint's file",
        "int8_success_loss": "the same: success lost",
    },
    "rivals_speed": {
        "latency_ratio_to_act": "a chunk of ours, as one graph, of the time of LeRobot's ACT with no more parameters",
        "latency_ratio_to_diffusion": "the same of Diffusion Policy, DDIM with ten evaluations",
        "latency_ratio_to_multi_task_dit": "the same of multi-task DiT, DDIM with ten evaluations",
        "latency_ratio_to_vqbet": "the same of VQ-BeT",
    },
    "survival": {
        "decoder_frames": "random and mutated frames into the server's decoder",
        "server_frames": "the same by websocket into a real server",
        "crashes": "processes that died of it",
        "uncaught": "frames that raised or were answered as they should not",
        "train_kills": "trainings killed at random instants, also while saving, and resumed",
        "train_kills_bit_identical": "of these, with the losses and weights of one that nobody killed, bit by bit",
        "record_eval_kills": "recordings and evaluations killed and resumed",
        "episodes_lost": "episodes lost by it",
        "episodes_duplicated": "episodes that were run twice",
        "disconnects": "connections cut at random points",
        "clients": "clients at once, all answered right",
        "server_overhead_p50_ms": "what the server costs beside bare inference, three cameras of 224 px, p50",
        "server_overhead_p95_ms": "the same, p95",
        "server_beside_policy_p50_ms": "what a client waits beside the network's own time in the server, p50",
        "soak_p99_drift": "an hour of requests: how much slower the slowest hundredth became",
        "soak_rss_growth_mb": "the same: memory grown",
    },
    "openpi_client": {
        "openpi_websockets_old": "openpi's unmodified client, with an old websockets: checks passed of 13",
        "openpi_websockets_newest": "the same with the newest websockets",
    },
    "lattice": {
        "bimodal_joint_1nfe": "two-mode task, one evaluation: whole chunks right, with the noise index",
        "bimodal_joint_1nfe_single_mask": "the same with one mask",
        "success_nfe_2": "tabletop from state, lattice, 2 evaluations",
        "single_mask_nfe_2": "tabletop from state, one mask, 2 evaluations",
        "single_mask_nfe_8": "tabletop from state, one mask, 8 evaluations",
        "quality_auroc": "quality head on 15 % false tokens, AUROC",
        "repair_rate": "false tokens mended in two more evaluations",
    },
}
DIFFERENCES = "_difference", "_vs_", "_minus_", "_gain", "_drop"
"""Ids of rows that are a difference of two rates."""


def cell(row: dict[str, Any]) -> str:
    if row["unit"] in ("fraction", "success") and row["interval"]:
        low, high = (f"{100 * end:.1f}" for end in row["interval"])
        between = f"{low}-{high}" if row["interval"][0] >= 0 else f"{low} to {high}"
        sign = "points" if any(word in row["id"] for word in DIFFERENCES) else "%"
        return f"{100 * row['value']:.1f} {sign} ({between}, n = {row['n']})"
    if row["unit"] in ("fraction", "success"):
        return f"{100 * row['value']:.1f} %"
    if row["value"] is None:
        return f"not measured ({row['note']})"
    unit = {"1/s": "frames/s", "parameters": "", "x": "times", "ratio": ""}.get(row["unit"], row["unit"])
    value = row["value"]
    return f"{round(value) if abs(value) >= 1000 or value == round(value) else round(value, 2):,} {unit}".rstrip()


def goal(row: dict[str, Any]) -> str:
    text = row.get("goal", "")
    return f"{text} (**not met**)" if row.get("passes") is False else text


def commits(results: dict[str, Any]) -> str:
    """With which it was measured: each part that was measured by itself has its own."""
    parts = [part["commit"] for part in results.get("parts", {}).values()] or [results["commit"]]
    short = dict.fromkeys(str(commit)[:7] for commit in parts)
    return f"commit{'s' if len(short) > 1 else ''} {' '.join(short)}"


def figures() -> str:
    """The Markdown between the markers."""
    lines, sources = ["| measured | value | goal |", "|---|---|---|"], dict[str, list[str]]()
    for bench, shown in SHOWN.items():
        path = ROOT / "benchmarks" / "results" / f"{bench}.json"
        if not path.exists():
            continue
        results = json.loads(path.read_text())
        rows = {row["id"]: row for row in results["rows"]}
        sources.setdefault(results["machine"], []).append(f"{path.name} ({commits(results)})")
        lines += [f"| {text} | {cell(rows[i])} | {goal(rows[i])} |" for i, text in shown.items() if i in rows]
    files = "; ".join(f"on {machine}: {', '.join(names)}" for machine, names in sources.items())
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
