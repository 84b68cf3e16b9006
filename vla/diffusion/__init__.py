# SPDX-License-Identifier: Apache-2.0
"""What is masked and how it is learnt (`corruption`), how it is filled (`sampler`); `noise` serves both."""

from vla.diffusion.corruption import (
    UNIFORM_MASKING,
    Corrupted,
    CorruptionConfig,
    corrupt,
    denoising_losses,
    digit_losses,
    total_loss,
)
from vla.diffusion.sampler import Sample, Sampling, sample

__all__ = [
    "UNIFORM_MASKING",
    "Corrupted",
    "CorruptionConfig",
    "Sample",
    "Sampling",
    "corrupt",
    "denoising_losses",
    "digit_losses",
    "sample",
    "total_loss",
]
