# SPDX-License-Identifier: Apache-2.0
"""What `vla inspect` says of a dataset."""

import io

from rich.console import Console

from vla.canvas.query import QUERIES
from vla.data.inspect import InspectConfig, inspect, problems


def test_a_recording_is_described(tiny_dataset):
    printed = io.StringIO()
    found = inspect(InspectConfig(str(tiny_dataset)), console=Console(file=printed, width=120))
    assert found["cameras"] == ["front"] and found["episodes"] == sum(found["tasks"].values())
    assert found["plans"]["share_of_frames"] == 1 and "action dx" in found["dimensions"]
    assert found["problems"] == {name: 2 * len(query.asked) for name, query in QUERIES.items()}
    assert f"all together     {sum(found['problems'].values())}" in printed.getvalue()


def test_queries_that_lack_something_yield_nothing():
    def yields(*has):
        return {name for name, count in problems(*has).items() if count}

    acting = {"policy", "continuation", "infill"}
    assert yields(False, False, False) == acting
    assert yields(True, False, False) == acting | {"plan", "plan_policy", "joint"}
    assert yields(False, False) == acting | {"waypoints", "waypoint_policy"}
    assert yields(False, True, False) == acting | {"world_model", "inverse", "goal_policy", "label", "joint"}
    assert problems(False, True)["joint"] == 4 and problems(True, True)["joint"] == 6
