# SPDX-License-Identifier: Apache-2.0
"""Action tokenizers side by side: length, bits, error by digit, what a random string decodes to, speed.

Half of the episodes fit, the other half is measured. FAST (arXiv 2501.09747) is the reference from outside: its own
processor where one is given, else `FastReference`, written after the paper. It has no levels and no fixed length.
"""

import contextlib
import io
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, trainers

from vla.tokenizers.action import BinTokenizer, windows
from vla.tokenizers.actions import ActionTokenizer, build_action_tokenizer
from vla.tokenizers.dct import DctTokenizer, dct_basis

_CHUNKS = 5000
"""At most so many held-out chunks; the first _TIMED of them are timed as one batch."""
_TIMED = 256
_BPE_CHUNKS = 10_000
"""FAST's byte pairs are trained on so many: 6 s for 700 coefficients a chunk."""


def tokenizer_table(
    actions_NA: np.ndarray,
    episode_from: np.ndarray,
    episode_to: np.ndarray,
    names: list[str],
    horizon: int = 8,
    fast: str | None = None,
    seed: int = 0,
    n_random: int = 100_000,
) -> list[dict[str, Any]]:
    """One row a tokenizer. `fast`: a folder or the name of a repository with FAST's processor.

    tokenizer      its name
    tokens, bits   of a chunk. A token has several digits in ours; bits are log2 of what a chunk could say
    rmse_by_level  error of held-out chunks when 1, 2, ... D digits are known, in units of each dimension's range (the
                   limits of `bins`), averaged over dimensions
    overlap        fraction of tokens that two chunks one step apart share: token n of the later one against n + 1 of
                   the earlier one if time-aligned, else the same place; of the longer one if lengths differ
    undecodable    of `n_random` random strings, how many raise, give NaN or leave the limits. FAST has no limits: how
                   many do not hold a chunk's number of coefficients
    encode_us, decode_us  of a chunk, in a batch of 256

    ValueError with fewer than two episodes, or as the tokenizers' `fit`.
    """
    first, end = np.asarray(episode_from), np.asarray(episode_to)
    if len(first) < 2:
        raise ValueError(f"expected two episodes or more, half of them to fit and half to measure, got {len(first)}")
    order, actions = np.random.default_rng(seed).permutation(len(first)), np.asarray(actions_NA)
    fit, held = np.sort(order[: len(first) // 2]), np.sort(order[len(first) // 2 :])
    frames_NA = np.concatenate([actions[first[e] : end[e]] for e in fit])
    fit_to = np.cumsum(end[fit] - first[fit])
    fit_from = fit_to - (end[fit] - first[fit])
    given = (frames_NA, fit_from, fit_to, names, horizon)

    # A window of H + 1 frames is a chunk and the one that begins a step later.
    pairs = windows(np.arange(len(actions)), first[held], end[held], horizon + 1, limit=_CHUNKS)
    pairs = pairs[pairs[:, 1] > pairs[:, 0]]
    now_BHA, later_BHA = actions[pairs[:, :-1]], actions[pairs[:, 1:]]

    bins = BinTokenizer.fit(frames_NA, names)
    ours: dict[str, ActionTokenizer] = {"bins": bins, "dct": build_action_tokenizer("dct", *given)}
    if horizon >= 2:
        ours[f"dct, {horizon // 2} of {horizon} bands"] = DctTokenizer.fit(*given, bands=horizon // 2)
    if horizon % 2 == 0:
        ours["rvq"] = build_action_tokenizer("rvq", *given)
    span_A = np.array(bins.high) - np.array(bins.low)
    rows = [_row(name, t, now_BHA, later_BHA, span_A, seed, n_random) for name, t in ours.items()]
    return [
        *rows,
        _fast_row(fast, windows(*given[:3], horizon, limit=_BPE_CHUNKS), now_BHA, later_BHA, span_A, seed, n_random),
    ]


def _row(
    name: str,
    tokenizer: ActionTokenizer,
    now_BHA: np.ndarray,
    later_BHA: np.ndarray,
    span_A: np.ndarray,
    seed: int,
    n_random: int,
) -> dict[str, Any]:
    now, later = torch.from_numpy(now_BHA), torch.from_numpy(later_BHA)
    positions, sub_tokens = tokenizer.grid(now.shape[1])
    digits, digits_later = tokenizer.encode(now), tokenizer.encode(later)
    pair = (digits[:, 1:], digits_later[:, :-1]) if tokenizer.time_aligned else (digits, digits_later)
    errors = [
        _rmse(tokenizer.decode_prefix(digits, levels).numpy(), now_BHA, span_A)
        for levels in range(1, tokenizer.digits + 1)
    ]
    low, high = torch.tensor(tokenizer.low), torch.tensor(tokenizer.high)
    generator = torch.Generator().manual_seed(seed)
    undecodable = 0
    for start in range(0, n_random, 10_000):
        shape = (min(10_000, n_random - start), positions, sub_tokens, tokenizer.digits)
        strings = torch.randint(0, tokenizer.base, shape, generator=generator)
        undecodable += _undecodable(tokenizer.decode, strings, lambda x: ((x >= low) & (x <= high)).flatten(1).all(1))
    few = now[:_TIMED]
    return {
        "tokenizer": name,
        "tokens": positions * sub_tokens,
        "bits": positions * float(tokenizer.allowed_ADV().sum(-1).log2().sum()),
        "rmse_by_level": errors,
        "overlap": float((pair[0] == pair[1]).all(-1).float().mean()),
        "undecodable": undecodable,
        "encode_us": _time_us(lambda: tokenizer.encode(few), len(few)),
        "decode_us": _time_us(lambda: tokenizer.decode(digits[:_TIMED]), len(few)),
    }


def _rmse(decoded_BHA: np.ndarray, true_BHA: np.ndarray, span_A: np.ndarray) -> float:
    return float((np.sqrt(((decoded_BHA - true_BHA) ** 2).mean((0, 1))) / span_A).mean())


def _undecodable(decode: Callable[[Any], Any], strings: Any, good: Callable[[Any], Any]) -> int:
    """How many of the strings raise (found by halving) or decode to something that is not `good`."""
    try:
        values = decode(strings)
    except Exception:
        middle = len(strings) // 2
        halves = (strings[:middle], strings[middle:])
        return sum(_undecodable(decode, half, good) for half in halves) if middle else 1
    return len(strings) - int(good(values).sum())


def _time_us(function: Callable[[], Any], chunks: int) -> float:
    """Microseconds a chunk, the best of three after a warm-up."""
    function()
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return min(seconds) / chunks * 1e6


# --- FAST --------------------------------------------------------------------------------------------------------
def fast_processor(path_or_repo: str) -> Any:
    """FAST's own processor: `processor(chunks)` -> lists of ids, `processor.decode(ids)`. Runs the code that comes
    with it. A folder is read offline; the name of a repository is downloaded. ValueError if it cannot be loaded."""
    try:
        from transformers import AutoProcessor

        local = Path(path_or_repo).is_dir()
        return AutoProcessor.from_pretrained(path_or_repo, trust_remote_code=True, local_files_only=local)
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(
            f"expected FAST's processor, a folder or the name of a repository, at '{path_or_repo}', and transformers "
            f"to load it (pip install 'lerobot_policy_lattice[train]'): {error}"
        ) from error


class FastReference:
    """FAST after the paper: DCT-II over time, times 10 and rounded, low frequencies of all dimensions first, byte-pair
    encoding to 1024 tokens. For actions scaled to [-1, 1] by their 1 % and 99 % quantiles. Called as the processor is.
    """

    scale = 10.0

    def __init__(self, chunks_MHA: np.ndarray, vocabulary: int = 1024) -> None:
        """Train the BPE on `chunks_MHA`. A coefficient outside of those seen there, or beyond vocabulary / 4, is
        clipped: the alphabet must leave room for merges."""
        self.horizon, self.dims = chunks_MHA.shape[1:]
        self.basis_KH = dct_basis(self.horizon)
        numbers = self._numbers(chunks_MHA)
        self.lowest, self.highest = max(numbers.min(), -vocabulary // 4), min(numbers.max(), vocabulary // 4)
        self.bpe = Tokenizer(models.BPE())
        alphabet = [chr(self._ORIGIN + i) for i in range(self.highest - self.lowest + 1)]
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, min_frequency=2, initial_alphabet=alphabet, special_tokens=[], show_progress=False
        )
        self.bpe.train_from_iterator(self._strings(numbers), trainer)
        self.vocab_size = self.bpe.get_vocab_size()
        self._pieces = [self.bpe.id_to_token(i) or "" for i in range(self.vocab_size)]

    _ORIGIN = 0x4E00
    """Letters from here on stand for coefficients: no white space, no combining marks."""

    def _numbers(self, chunks_BHA: np.ndarray) -> np.ndarray:
        coefficients_BKA = np.einsum("kh,bha->bka", self.basis_KH, chunks_BHA)
        return np.rint(coefficients_BKA * self.scale).astype(np.int64).reshape(len(chunks_BHA), -1)

    def _strings(self, numbers: np.ndarray) -> list[str]:
        letters = numbers.clip(self.lowest, self.highest) - self.lowest + self._ORIGIN
        return ["".join(map(chr, row)) for row in letters.tolist()]

    def __call__(self, chunks_BHA: np.ndarray) -> list[list[int]]:
        return [encoding.ids for encoding in self.bpe.encode_batch(self._strings(self._numbers(chunks_BHA)))]

    def decode(self, tokens: Sequence[Sequence[int]], **_: int) -> np.ndarray:
        """float (B, H, A). ValueError if a string does not hold H * A coefficients."""
        strings = ["".join(self._pieces[i] for i in ids) for ids in tokens]
        if wrong := [len(s) for s in strings if len(s) != self.horizon * self.dims]:
            raise ValueError(f"expected {self.horizon * self.dims} coefficients in every string, got {wrong[:5]}")
        letters = np.array([[ord(c) for c in s] for s in strings]) - self._ORIGIN + self.lowest
        return np.einsum("kh,bka->bha", self.basis_KH, letters.reshape(-1, self.horizon, self.dims) / self.scale)


def _fast_row(
    fast: str | None,
    fit_MHA: np.ndarray,
    now_BHA: np.ndarray,
    later_BHA: np.ndarray,
    span_A: np.ndarray,
    seed: int,
    n_random: int,
) -> dict[str, Any]:
    low_A, high_A = np.quantile(fit_MHA, [0.01, 0.99], axis=(0, 1))
    half_A = np.where(high_A > low_A, high_A - low_A, 1.0) / 2
    fit_MHA, scaled, scaled_later = ((x - low_A) / half_A - 1 for x in (fit_MHA, now_BHA, later_BHA))
    processor = FastReference(fit_MHA) if fast is None else fast_processor(fast)
    tokens, tokens_later = _ids(processor(scaled)), _ids(processor(scaled_later))
    shape = {"time_horizon": now_BHA.shape[1], "action_dim": now_BHA.shape[2]}

    def decode(strings: list[list[int]]) -> np.ndarray:
        with contextlib.redirect_stdout(io.StringIO()):  # the published one prints what it cannot read
            return np.asarray(processor.decode(strings, **shape))

    def good(values_BHA: np.ndarray) -> np.ndarray:
        # The published decoder does not raise: what it cannot read becomes a chunk of zeros.
        return np.isfinite(values_BHA).all((1, 2)) & (values_BHA != 0).any((1, 2))

    mean = float(np.mean([len(t) for t in tokens]))
    vocabulary = getattr(processor, "vocab_size", None) or 1 + max(max(t) for t in tokens)
    strings = np.random.default_rng(seed).integers(0, vocabulary, (n_random, round(mean))).tolist()
    parts = [strings[i : i + 1000] for i in range(0, n_random, 1000)]
    shared = [
        sum(a == b for a, b in zip(x, y, strict=False)) / max(len(x), len(y))
        for x, y in zip(tokens, tokens_later, strict=True)
    ]
    return {
        "tokenizer": "fast (after the paper; no processor at hand)" if fast is None else f"fast ({fast})",
        "tokens": mean,
        "bits": mean * math.log2(vocabulary),
        "rmse_by_level": [_rmse((decode(tokens) + 1) * half_A + low_A, now_BHA, span_A)],
        "overlap": float(np.mean(shared)),
        "undecodable": sum(_undecodable(decode, part, good) for part in parts),
        "encode_us": _time_us(lambda: processor(scaled[:_TIMED]), len(scaled[:_TIMED])),
        "decode_us": _time_us(lambda: decode(tokens[:_TIMED]), len(tokens[:_TIMED])),
    }


def _ids(tokens: Any) -> list[list[int]]:
    return [[int(i) for i in ids] for ids in tokens]
