# SPDX-License-Identifier: Apache-2.0
"""Every state that corruption and sampling can reach decodes, whatever tokenizer wrote it."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.canvas import all_masked, remask, unmask
from vla.tokenizers import WordNumerals, build_action_tokenizer

GENERATOR = np.random.default_rng(0)
ACTIONS = np.concatenate([GENERATOR.normal(size=(400, 2)).cumsum(0), GENERATOR.choice([-1.0, 1.0], (400, 1))], 1)
EPISODES = (np.arange(0, 400, 40), np.arange(40, 440, 40))
TOKENIZERS = {k: build_action_tokenizer(k, ACTIONS, *EPISODES, ["x", "y", "grip"], 8) for k in ("bins", "dct", "rvq")}
WORDS = WordNumerals.fit(GENERATOR.normal(size=(50, 4)))


def walk(shape, depth, base, seed, steps=6):
    """A random walk on the lattice from nothing known: show random digits, mask some; then fill what is left."""
    generator = torch.Generator().manual_seed(seed)
    state = all_masked(shape, depth)
    for _ in range(steps):
        tokens = torch.randint(0, base, (*shape, depth), generator=generator)
        state = unmask(state, tokens, torch.randint(0, depth + 1, shape, generator=generator))
        state = remask(state, torch.randint(0, depth + 1, shape, generator=generator))
    state = unmask(state, torch.randint(0, base, (*shape, depth), generator=generator), torch.full(shape, depth))
    assert bool((state.known_BNS == depth).all())
    return state.digits_BNSD


@given(st.sampled_from(sorted(TOKENIZERS)), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_every_reachable_state_of_actions_decodes_within_the_limits(kind, seed):
    tokenizer = TOKENIZERS[kind]
    actions = tokenizer.decode(walk((2, *tokenizer.grid(8)), tokenizer.digits, tokenizer.base, seed))
    low, high = torch.tensor(tokenizer.low), torch.tensor(tokenizer.high)
    assert actions.shape == (2, 8, 3) and bool(((actions >= low - 1e-6) & (actions <= high + 1e-6)).all())


@given(st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_every_reachable_state_of_words_decodes_to_a_word(seed):
    ids = WORDS.decode(walk((2, 5, 1), 2, WORDS.base, seed))
    assert bool(((ids >= 0) & (ids < 50)).all())
