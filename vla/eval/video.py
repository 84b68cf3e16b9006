# SPDX-License-Identifier: Apache-2.0
"""Frames to a small mp4 that every browser plays (h264, yuv420p, index in front)."""

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np


def write_video(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Encode frames, uint8 (H, W, 3) with even H and W, to `path`; the file appears whole or not at all."""
    import av

    if not frames or frames[0].shape[0] % 2 or frames[0].shape[1] % 2:
        raise ValueError("expected at least one frame of even height and width")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("." + path.name)  # the suffix tells the container
    height, width, _ = frames[0].shape
    with av.open(str(temporary), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "23", "preset": "veryfast"}
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    os.replace(temporary, path)
