# SPDX-License-Identifier: Apache-2.0
"""What is corrupted (`programs`), how it is learnt (`loss`), how it is filled (`sampler`); `noise` serves all three."""

from vla.diffusion.loss import digit_losses, losses, quality_loss, total_loss
from vla.diffusion.programs import PLAIN, Corrupted, Programs, corrupt
from vla.diffusion.sampler import Sample, Sampling, sample

__all__ = [
    "PLAIN",
    "Corrupted",
    "Programs",
    "Sample",
    "Sampling",
    "corrupt",
    "digit_losses",
    "losses",
    "quality_loss",
    "sample",
    "total_loss",
]
