# SPDX-License-Identifier: Apache-2.0
"""`vla quantize`: a checkpoint with weights of eight or four bits, and what each layer loses by it.

A masked model works at every mask ratio, and a layer that is harmless when much is known may not be when nothing is. So
each layer is rounded by itself, and the loss of masked digits is measured at several ratios, on the same frames and
masks; a layer that costs more than `keep_above` at any of them stays as it is.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RATIOS = (0.25, 0.5, 0.75, 1.0)
"""Mask ratios at which a layer is asked."""


@dataclass(frozen=True)
class QuantizeConfig:
    """Make a checkpoint's weights integers of few bits."""

    checkpoint: str
    """Checkpoint folder, or the name of a shipped one."""
    dataset: str
    """Frames like those it was trained on, to measure on: folder of a LeRobotDataset, or a hub repository id."""
    out: Path
    """Folder to write; it must not exist."""
    bits: int = 8
    """8 (a scale a row; multiplied as integers where torchao is there) or 4 (a scale for 32 weights; smaller only)."""
    frames: int = 256
    """How many frames the loss is measured on."""
    keep_above: float = 0.02
    """Nats a hidden digit: a layer whose rounding alone costs more, at any mask ratio, stays as it is."""


def quantize(config: QuantizeConfig) -> dict[str, Any]:
    """Write the checkpoint, atomically. Returns {"size_ratio", "layers", "kept", "loss", "loss_after"}.

    `loss`: {mask ratio: nats a masked digit}. Raises ValueError if `out` exists, for a checkpoint that has few bits
    already, or a dataset of another robot; ModuleNotFoundError without torchao.
    """
    import torch
    from rich.console import Console

    from vla import checkpoint
    from vla.model import low_bit
    from vla.policy import Policy

    if config.out.exists():
        raise ValueError(f"the folder '{config.out}' exists; give another --out or delete it")
    source = checkpoint.resolve(config.checkpoint)
    policy = Policy.load(source)
    about = json.loads((source / "config.json").read_text())
    if "low_bit" in about:
        raise ValueError(f"the weights of '{config.checkpoint}' have {about['low_bit']['bits']} bits already")
    model, console = policy.model, Console(highlight=False)
    measure = _Measure(policy, config.dataset, config.frames)
    before, state = measure.losses(), model.state_dict()
    chosen, kept = [], {}
    for layer in low_bit.candidates(model):
        weight = model.get_parameter(f"{layer}.weight")
        exact = weight.detach().clone()
        name = f"{layer}.weight"
        with torch.no_grad():
            weight.copy_(low_bit.unpack(low_bit.pack({name: exact}, [layer], config.bits))[name])
            cost = max(after - loss for after, loss in zip(measure.losses().values(), before.values(), strict=True))
            weight.copy_(exact)
        if cost > config.keep_above:
            kept[layer] = round(cost, 4)
            console.print(f"{layer} stays as it is: it would cost {cost:.3f} nats a digit")
        else:
            chosen.append(layer)
    packed = low_bit.pack(state, chosen, config.bits)
    model.load_state_dict(low_bit.unpack(packed))
    after = measure.losses()

    def fill(folder: Path) -> None:
        policy.write(folder, {key: about[key] for key in ("recipe", "step", "validation") if key in about})
        written = json.loads((folder / "config.json").read_text())
        written["low_bit"] = {"bits": config.bits, "layers": len(chosen), "kept": kept}
        (folder / "config.json").write_text(json.dumps(written, indent=2))
        checkpoint.save_tensors(packed, folder / "model.safetensors")

    folder = checkpoint.write_folder(config.out, fill)
    sizes = [(where / "model.safetensors").stat().st_size for where in (folder, source)]
    result = {
        "size_ratio": sizes[0] / sizes[1],
        "layers": len(chosen),
        "kept": kept,
        "loss": before,
        "loss_after": after,
    }
    worst = max(after[ratio] - before[ratio] for ratio in RATIOS)
    console.print(
        f"'{folder}': {len(chosen)} layers of {config.bits} bits, {len(kept)} kept, {sizes[0] / 1e6:.2f} MB instead of "
        f"{sizes[1] / 1e6:.2f}; the loss of masked digits grows by {worst:.4f} nats at most",
        soft_wrap=True,
    )
    return result


class _Measure:
    """The loss of masked digits at each mask ratio, always of the same frames and masks."""

    def __init__(self, policy: Any, dataset: str, frames: int) -> None:
        """ValueError for a dataset with other actions, states or cameras."""
        import numpy as np
        import torch

        from vla.canvas import Segment
        from vla.data.batches import Batches
        from vla.data.cache import open_cache
        from vla.model import Observed

        cache = open_cache(dataset, image_size=policy.image_size)
        policy.check_names(cache)
        batches = Batches(cache, policy.horizon, min(frames, len(cache)), 0, moments=policy.n_obs_steps)
        batch = batches.batch(0)
        whole = ~batch["is_pad"].any(1) if (~batch["is_pad"].any(1)).any() else np.ones(len(batch["state"]), bool)

        def some(x: Any) -> torch.Tensor:
            return torch.from_numpy(x[whole])

        tokenizers, words_TL = policy.tokenizers, torch.from_numpy(policy.tokenizers.text.encode(cache.tasks))
        executed, known = None, None
        if policy.n_obs_steps > 1:
            executed, known = tokenizers.action.scaled(some(batch["past"])), some(batch["past_known"])
        images = {camera: some(batch["images"][camera]) for camera in cache.cameras}
        observed = Observed(images, tokenizers.state(some(batch["state"])), executed, known)
        words = policy.encoder.vocabulary().tokens(words_TL[some(batch["task_index"])])
        self.model, self.seen = policy.model, {Segment.INSTRUCTION: words, Segment.OBSERVATION: observed}
        self.digits_BNSD = policy.model.config.layout.fold(tokenizers.action.encode(some(batch["actions"])))

    def losses(self) -> dict[float, float]:
        """{mask ratio: mean cross-entropy of the masked digits, nats}."""
        import torch

        from vla import randomness
        from vla.canvas import Segment, unmasked
        from vla.diffusion import Corrupted, digit_losses

        model, digits, action = self.model, self.digits_BNSD, Segment.ACTION
        rank_BNS = randomness.uniform(torch.arange(len(digits)), "quantize", *digits.shape[1:3])
        found = {}
        with torch.inference_mode():
            context = model.read(None, self.seen)
            for ratio in RATIOS:
                masked_BNS = rank_BNS < ratio
                state = unmasked(digits, torch.where(masked_BNS, 0, digits.shape[-1]))
                asked_BNSD = masked_BNS.unsqueeze(-1).expand_as(digits)
                logits = model.head_of(action)(model.decode(context, {action: state})[action], digits)
                by_digit = digit_losses(logits, Corrupted(state, digits, asked_BNSD))
                found[ratio] = float(torch.stack(by_digit).mean())
        return found
