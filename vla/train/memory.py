# SPDX-License-Identifier: Apache-2.0
"""`vla train --dry-run`: parameters by part, and which batch fits into which GPU, before anything is trained.

Weights, gradients, the two moments of AdamW and the averaged weights are 4 bytes each. What a sample keeps for the way
back is measured: one training step of a few samples on this machine, summed over all tensors that autograd saves.
"""

from typing import Any

import torch

GPUS_GB = (24, 80, 141)
"""RTX 4090, A100 and H100, H200."""
RESERVE = 0.9
"""Share of a GPU's memory that may be used: the rest is fragments, kernels and the driver's."""
SAMPLES = 2


def dry_run(s: Any, say: Any = print) -> dict[str, Any]:
    """One step of a few samples. Returns and says {"parameters", "trainable", "parts", "fixed_bytes", "sample_bytes",
    "fits"}: bytes that do not depend on the batch, bytes a sample, and the batch that fits into each of GPUS_GB."""
    parts = s.model.parameters_by_part()
    trainable = sum(p.numel() for p in s.model.parameters() if p.requires_grad)
    total = sum(parts.values())
    fixed = 4 * total + 4 * total + 12 * trainable  # weights, averages; gradients and moments
    sample = _saved_bytes(s) / SAMPLES
    fits = {gb: max(0, int((RESERVE * gb * 1e9 - fixed) // sample)) for gb in GPUS_GB}
    say(f"{total / 1e6:.1f} M parameters, {trainable / 1e6:.1f} M of them trainable")
    for name, count in sorted(parts.items(), key=lambda part: -part[1]):
        if count:
            say(f"  {name:<16} {count / 1e6:9.3f} M")
    say(f"weights, averages, gradients, moments: {fixed / 1e9:.2f} GB; activations: {sample / 1e6:.1f} MB a sample")
    for gb, batch in fits.items():
        wants = s.recipe.batch_size
        parts_needed = (
            "" if batch >= wants else f" (the recipe's {wants}: accumulate over {-(-wants // max(batch, 1))})"
        )
        say(f"  {gb:>4} GB: {f'a batch of {batch}{parts_needed}' if batch else 'does not fit'}")
    return {
        "parameters": total,
        "trainable": trainable,
        "parts": parts,
        "fixed_bytes": fixed,
        "sample_bytes": sample,
        "fits": fits,
    }


def _saved_bytes(s: Any) -> float:
    """Bytes that autograd keeps for a step of SAMPLES samples, parameters left out."""
    weights = {p.untyped_storage().data_ptr() for p in s.model.parameters()}
    kept: dict[int, int] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    every = max(1, s.recipe.batch_size // SAMPLES)
    batch = s.batches.batch(0)
    warm = s.recipe.queries.policy_warmup_steps
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss = s.losses(batch, max(warm, 0), None, (0, every))["loss"]
    loss.backward()
    s.optimiser.zero_grad(set_to_none=True)
    return float(sum(kept.values()))
