# SPDX-License-Identifier: Apache-2.0
"""`base` on a GPU: a decision as one CUDA graph against the floor of launch and bytes, and training against the best
product of the machine. Where there is no GPU the rows say so."""

from typing import Any

import torch

from vla import randomness, recipes
from vla.bench import speed_floor
from vla.bench.results import Row
from vla.bench.speed_networks import SIZES, given, in_turns, make, seen
from vla.canvas import Segment
from vla.model import Observed
from vla.policy import Policy
from vla.train.queries import QueryLoss, Rows
from vla.train.utilisation import BACKWARD, measured_rate

GOALS = {
    "gpu_p50_ms": ("ms", 5.0),
    "gpu_p99_ms": ("ms", 8.0),
    "gpu_floor_ratio": ("times", 2.0),
    "gpu_train_mfu": ("fraction", 0.5),
}
"""Row -> (unit, goal): at most that, of utilisation at least."""
ROUNDS, STEPS, BATCH = 500, 30, 64


def gpu_rows(config: Any) -> list[Row]:
    """`config`: a SpeedConfig."""
    if not torch.cuda.is_available():
        return [row(id, float("nan"), None, "not measured: there is no GPU here") for id in GOALS]
    size, device = SIZES["nano" if config.quick else "base"], torch.device("cuda")
    rounds, steps = (5, 2) if config.quick else (ROUNDS, STEPS)
    return [*decisions(make(size), device, rounds), training(make(size), device, BATCH, steps)]


def row(id: str, value: float, n: int | None, note: str) -> Row:
    """One of GOALS."""
    unit, goal = GOALS[id]
    most = id != "gpu_train_mfu"
    passes = None if value != value else value <= goal if most else value >= goal
    return Row(id, value, unit, n, goal=f"{'<=' if most else '>='} {goal:g}", passes=passes, note=note)


def decisions(policy: Policy, device: torch.device, rounds: int, backend: str = "inductor") -> list[Row]:
    """The whole path, one observation in and actions out, bfloat16."""
    policy.model.to(device)
    observation, name = seen(policy, 0), _name(device)
    with torch.autocast(device.type, torch.bfloat16):
        operations = speed_floor.count(policy, lambda: policy.act([observation], [(0, 0)]))
        policy.compile(backend=backend)
        taken = in_turns({"act": lambda n: policy.act([observation], [(0, max(n, 0))])}, rounds, warm=20)["act"]
    long = torch.ones(64_000_000 if device.type == "cuda" else 1_000_000, device=device)
    best = speed_floor.Machine(
        measured_rate(device, "bfloat16"), 4 * len(long) / speed_floor.best_seconds(long.sum, device=device)
    )
    one = torch.ones(1, device=device)
    launch = speed_floor.best_seconds(lambda: one + one, device=device)
    least = speed_floor.floor(policy, operations, best).ms + 1e3 * launch
    p50, p99 = (float(torch.tensor(taken).quantile(q)) for q in (0.5, 0.99))
    note = f"{operations / 1e9:.1f} GFLOP, {best.bytes_per_s / 1e9:.0f} GB/s; launch and floor {least:.2f} ms"
    return [
        row("gpu_p50_ms", p50, rounds, name),
        row("gpu_p99_ms", p99, rounds, name),
        row("gpu_floor_ratio", p50 / least, rounds, note),
    ]


def training(policy: Policy, device: torch.device, batch: int, steps: int) -> Row:
    """Steps of the policy's objective on noise, bfloat16: operations a second over those of a large product."""
    model, recipe = policy.model.to(device).train(), recipes.get("tabletop_nano")
    action, everywhere = policy.tokenizers.action, torch.ones(batch, dtype=torch.bool, device=device)
    low, high = torch.tensor(action.low), torch.tensor(action.high)
    actions_BHA = (low + (high - low) * torch.rand(batch, policy.horizon, len(low))).to(device)
    segments, words = given(policy, batch), policy.encoder.vocabulary()
    observed, told = segments[Segment.OBSERVATION], policy.encoder.words([seen(policy, 0).instruction] * batch)
    assert isinstance(observed, Observed)
    ended_BH = torch.zeros(batch, policy.horizon, dtype=torch.bool, device=device)
    rows = Rows(observed, told, actions_BHA, actions_BHA, ended_BH, everywhere, everywhere)
    objective = QueryLoss(model, policy.tokenizers, words, recipe, policy.trained)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")

    def loss(step: int) -> torch.Tensor:
        key_B = randomness.fold(0, step, torch.arange(batch)).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            return objective(rows, key_B, 10**6 + step)["loss"]

    def trained(step: int) -> None:
        optimiser.zero_grad()
        loss(step).backward()
        optimiser.step()

    operations = (1 + BACKWARD) * speed_floor.count(policy, lambda: loss(0))
    if device.type == "cuda":
        for part in (*model.layers, *model.vision.values()):
            part.compile()
    for step in range(3):
        trained(step)
    seconds = speed_floor.best_seconds(lambda: [trained(3 + step) for step in range(steps)], 1, device) / steps
    rate = measured_rate(device, "bfloat16")
    note = f"{_name(device)}: batches of {batch}, {1 / seconds:.1f} steps/s, {rate / 1e12:.2f} TFLOP/s at best"
    return row("gpu_train_mfu", operations / seconds / rate, steps, note)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
