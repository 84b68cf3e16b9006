# SPDX-License-Identifier: Apache-2.0
"""A policy behind a socket, in the protocol of openpi's clients.

`codec` is the wire format, `server` offers a policy, `client` asks one, `executor` acts while the next answer is on its
way. Nothing is imported here: a robot that only asks needs neither torch nor a checkpoint.
"""
