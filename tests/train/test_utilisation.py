# SPDX-License-Identifier: Apache-2.0
"""Operations of a step are those of its products, three times for a forward and a backward pass."""

from types import SimpleNamespace

import torch

from vla.train.metrics import Metrics
from vla.train.utilisation import measured_rate, step_operations


def test_operations_are_counted_and_told_as_a_share_of_the_best(tmp_path):
    a, b = torch.randn(4, 8), torch.randn(8, 16)
    asked = []

    def losses(batch, step, model):
        asked.append(model)
        return {"loss": (a @ b).sum()}

    recipe = SimpleNamespace(compile=False)
    session = SimpleNamespace(sharded=False, recipe=recipe, averaged="averaged", losses=losses)
    assert step_operations(session, {}, 0) == 3 * 2 * 4 * 8 * 16
    recipe.compile = True
    step_operations(session, {}, 0)
    assert asked == [None, "averaged"]
    session.sharded = True
    assert step_operations(session, {}, 0) == 0 and len(asked) == 2
    assert measured_rate(torch.device("cpu"), "float32", 0.0) > 1e6

    metrics = Metrics(tmp_path, 10, tensorboard=False)
    metrics.ideal_step_s = 1e-9
    metrics.log(1, 1, loss=1.0)
    metrics.log(2, 1, loss=1.0)
    metrics.close()
    first, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert "mfu" not in first and '"mfu"' in second
