# SPDX-License-Identifier: Apache-2.0
"""The same in other words: no sentence of any task, the same referents, and short enough to be read."""

import pytest

from vla.envs import make_env
from vla.envs.metaworld.paraphrases import PARAPHRASES as METAWORLD
from vla.envs.metaworld.tasks import SENTENCES
from vla.envs.metaworld.tasks import SUITES as METAWORLD_SUITES
from vla.envs.tabletop import TabletopEnv
from vla.envs.tabletop.layouts import EXTREMES
from vla.envs.tabletop.paraphrases import PARAPHRASES, paraphrase
from vla.envs.tabletop.scene import COLOURS
from vla.envs.tabletop.tasks import SUITES, TASKS, sample_episode
from vla.tokenizers.text import TextTokenizer


@pytest.mark.parametrize("task", TASKS)
def test_a_paraphrase_is_no_instruction_and_names_the_same_things(task):
    instructions = {sentence for template in TASKS.values() for sentence in template.sentences}
    assert not instructions & set(PARAPHRASES[task]) and len(set(PARAPHRASES[task])) == len(PARAPHRASES[task]) > 1
    said = set()
    for seed in range(30):
        episode = sample_episode(task, seed)
        words, instruction = set(paraphrase(episode).split()), set(episode.instruction.split())
        goal = episode.goal
        named = {episode.colours[block] for block in goal.blocks} if goal.word not in EXTREMES else {goal.word}
        named |= {episode.zone_colours[goal.zone]} if goal.zone >= 0 else set()
        things = {*COLOURS, *EXTREMES}
        assert words & things == named >= instruction & things
        assert words & {"left", "right"} == instruction & {"left", "right"}
        assert not any("{" in word for word in words)
        said.add(" ".join(sorted(words - things)))
    assert set(PARAPHRASES) == set(TASKS) and len(said) == len(PARAPHRASES[task])


def test_the_tabletop_says_the_same_paraphrase_again():
    env = TabletopEnv(render=False)
    with pytest.raises(ValueError, match="call reset"):
        env.paraphrase()
    env.reset(seed=4, options={"task": "stack"})
    first = env.paraphrase()
    env.reset(seed=5)
    env.reset(seed=4)
    assert env.paraphrase() == first == paraphrase(env.episode) != env.task_description


def test_every_metaworld_task_has_two_of_its_own():
    assert set(METAWORLD) == set(SENTENCES)
    own = {sentence.casefold() for sentence in SENTENCES.values()}
    others = [sentence.casefold() for pair in METAWORLD.values() for sentence in pair]
    assert len(set(others)) == 100 and not own & set(others)


def test_metaworld_draws_them_by_task_and_seed():
    pytest.importorskip("metaworld")
    env = make_env("metaworld", task="door-open-v3", render=False)
    said = []
    for seed in (*range(12), 0):
        env.reset(seed=seed)
        said.append(env.paraphrase())
    env.close()
    assert set(said) == set(METAWORLD["door-open-v3"]) and said[0] == said[-1]


@pytest.mark.parametrize("suite", ["demo", "tier2", "all", "routes", "mt10", "mt50"])
def test_a_policy_that_was_trained_on_the_suite_has_room_for_them(suite):
    """Its tokenizer reads a fixed number of tokens and refuses more; words it has never seen take several."""
    if suite in ("mt10", "mt50"):
        known = {SENTENCES[task] for task in METAWORLD_SUITES[suite]}
        asked = [sentence for task in METAWORLD_SUITES[suite] for sentence in METAWORLD[task]]
    else:
        episodes = [sample_episode(task, seed) for task in SUITES[suite] for seed in range(60)]
        known, asked = {e.instruction for e in episodes}, [paraphrase(e) for e in episodes]
    tokenizer = TextTokenizer.train(known)
    assert tokenizer.encode(asked).any(1).all()
