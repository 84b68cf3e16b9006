# SPDX-License-Identifier: Apache-2.0
"""The comparison of two versions of LeRobot. The commands themselves: `make test-lerobot`."""

from benchmarks.lerobot_commands import changes


def test_what_changed_between_two_versions_is_said():
    row = {"id": "resume", "passes": True, "note": "bits"}
    before = {"versions": {"lerobot": "0.6.1", "torch": "2.11"}, "rows": [row]}
    after = {"versions": {"lerobot": "0.7.0", "torch": "2.11"}, "rows": [row | {"passes": False}]}
    assert changes(before, after) == ["lerobot: 0.6.1 -> 0.7.0", "resume: passes -> FAILS (bits)"]
    assert changes(before, before) == ["nothing changed"]
