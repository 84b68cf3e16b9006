# SPDX-License-Identifier: Apache-2.0
"""What was sampled, in units: actions of the dataset, pictures, texts."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla.canvas import Segment
from vla.canvas.query import FIELDS, PartialActions, Question
from vla.diffusion.domain import Domain, settle
from vla.diffusion.lengths import Written
from vla.diffusion.sampler import Sample, Samples, Sampling
from vla.model import LatticeModel
from vla.policy.types import Answer, SegmentOutput
from vla.tokenizers import BinTokenizer, Tokenizers


def answer(
    model: LatticeModel,
    tokenizers: Tokenizers,
    sampling: Sampling,
    found: Samples,
    questions: Sequence[Question],
    domain: Domain | None,
) -> Answer:
    """What was asked of `questions`, in the dataset's units."""
    outputs: dict[str, Any] = {}
    for segment, sample in found.segments.items():
        if segment is Segment.ACTION:
            outputs |= _actions(model, tokenizers, sampling, sample, questions, domain)
        elif segment is Segment.WAYPOINTS:
            assert tokenizers.waypoints is not None
            offset = sample.offset_BNS if sampling.expectation else None
            values = tokenizers.waypoints.decode(sample.state.digits_BNSD, offset).cpu().numpy()
            outputs["waypoints"] = SegmentOutput(
                values, _numpy(sample.state.digits_BNSD), _numpy(sample.confidence_BNS)
            )
        else:
            seen = tokenizers.pictures(sample.state.digits_BNSD[:, :, 0], model.config.cameras)
            pictures = {camera: picture.cpu().numpy() for camera, picture in seen.items()}
            tokens, confidence = _numpy(sample.state.digits_BNSD), _numpy(sample.confidence_BNS[..., 0])
            outputs["future_image"] = SegmentOutput(pictures, tokens, confidence)
    for segment, text in found.texts.items():
        outputs[FIELDS[segment]] = _text(tokenizers, text)
    return Answer(**outputs, steps=found.steps)


def _actions(
    model: LatticeModel,
    tokenizers: Tokenizers,
    sampling: Sampling,
    sample: Sample,
    questions: Sequence[Question],
    domain: Domain | None,
) -> dict[str, Any]:
    layout, tokenizer = model.config.layout, tokenizers.action
    digits_BHAD = layout.unfold(sample.state.digits_BNSD)
    offset = layout.unfold(sample.offset_BNS) if sampling.expectation else None
    actions_BHA = tokenizer.decode(digits_BHAD, offset)
    if domain is not None and offset is not None:
        more = layout.dims - actions_BHA.shape[-1]
        exact_BHA = tokenizer.decode(digits_BHAD)
        both = (torch.nn.functional.pad(x, (0, more)) for x in (exact_BHA, actions_BHA))
        actions_BHA = settle(*both, domain)[..., : actions_BHA.shape[-1]]
    values = actions_BHA.cpu().numpy()
    for row, question in enumerate(questions):  # what was given whole comes back as it was, not as the nearest bin
        if isinstance(question.actions, PartialActions):
            whole = question.actions.levels(layout.digits) >= layout.digits
            values[row] = np.where(whole, np.asarray(question.actions.values, np.float32), values[row])
    lengths = _numpy(chunk_lengths(tokenizer, digits_BHAD, values.shape[1]))
    confidence = _numpy(action_confidence(model, tokenizers, sample))
    return {
        "actions": SegmentOutput(values, _numpy(sample.state.digits_BNSD), confidence),
        "lengths": lengths,
    }


def action_confidence(model: LatticeModel, tokenizers: Tokenizers, sample: Sample) -> Tensor:
    """`Chunk.confidence_BHA` of decided tokens."""
    layout, tokenizer = model.config.layout, tokenizers.action
    if tokenizer.time_aligned:
        return layout.unfold(sample.near_BNS)[..., : tokenizer.dims]
    confidence_BHA = layout.unfold(sample.confidence_BNS)  # a token speaks about all steps: one for all of them
    shape = (len(confidence_BHA), tokenizer.chunk_steps(layout.horizon), len(tokenizer.names))
    return confidence_BHA.mean((1, 2), keepdim=True).expand(shape)


def chunk_lengths(tokenizer: Any, digits_BHSD: Tensor, horizon: int) -> Tensor:
    """int64 (B,): the steps of chunks before STOP."""
    if not isinstance(tokenizer, BinTokenizer) or not tokenizer.stops:
        return torch.full((len(digits_BHSD),), horizon, device=digits_BHSD.device)
    return (tokenizer.ended(digits_BHSD).long().cumsum(1) == 0).sum(1)


def _text(tokenizers: Tokenizers, text: Written) -> SegmentOutput:
    texts = [tokenizers.text.decode(ids) for ids in text.ids_BN.tolist()]
    return SegmentOutput(texts, _numpy(text.ids_BN), _numpy(text.confidence_BN), text.used)


def _numpy(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy() if x.is_floating_point() else x.cpu().numpy()


def joined(parts: Sequence[tuple[Answer, int]]) -> Answer:
    """Answers to parts of a list of questions, of each its first rows, as one."""
    found: dict[str, Any] = {}
    for f in fields(Answer):
        outputs = [(getattr(answer, f.name), rows) for answer, rows in parts]
        first = outputs[0][0]
        if isinstance(first, np.ndarray):
            found[f.name] = np.concatenate([x[:rows] for x, rows in outputs])
        elif f.name == "steps":
            found["steps"] = first
        elif first is not None:
            if isinstance(first.values, dict):
                values: Any = {c: np.concatenate([o.values[c][:rows] for o, rows in outputs]) for c in first.values}
            elif isinstance(first.values, list):
                values = [text for o, rows in outputs for text in o.values[:rows]]
            else:
                values = np.concatenate([o.values[:rows] for o, rows in outputs])
            arrays = {
                n: np.concatenate([getattr(o, n)[:rows] for o, rows in outputs]) for n in ("tokens", "confidence")
            }
            used = float(np.average([o.used for o, _ in outputs], weights=[rows for _, rows in outputs]))
            found[f.name] = replace(first, values=values, used=used, **arrays)
    return Answer(**found)
