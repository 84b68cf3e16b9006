# SPDX-License-Identifier: Apache-2.0
"""Demonstrations: recorded as LeRobotDataset v3, decoded once into a memory map, gathered into batches.

`record` simulates experts, `writer` and `video` write the dataset's files, `lerobot_files` reads those of
anybody's LeRobot v3 dataset, `cache` decodes them once, `batches` draws training batches from the cache.
`language` is about what the experts say that they are doing: subtasks and plans, a text a frame.
Nothing is imported here: the simulator processes and `vla record --help` must stay light.
"""
