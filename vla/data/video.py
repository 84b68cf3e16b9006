# SPDX-License-Identifier: Apache-2.0
"""Camera streams as mp4 files, through PyAV: many episodes one after the other in one file, each at known
times.

One file for hundreds of episodes costs a hundredth of the open, flush and seek work of a file each. Encoding
is bit-exact: the same frames give the same file, so that an interrupted recording can end up identical to one
that was not.
"""

import os
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

MAX_SECONDS = 900.0
"""A file starts no episode later than this. LeRobot compares times in float32 with a tolerance of 1e-4 s, and
float32 stops resolving that at 1024 s."""


class VideoWriter:
    """Encodes frames of one camera as h264.

    `path`: the mp4. `height`, `width`: even, pixels. `pix_fmt`: "yuv420p" plays everywhere but keeps one
    colour for 2 x 2 pixels; "yuv444p" keeps every pixel's. `crf`: 0 (lossless) to 51.
    """

    def __init__(self, path: Path, height: int, width: int, fps: int, pix_fmt: str = "yuv420p", crf: int = 18) -> None:
        if height % 2 or width % 2:
            raise ValueError(f"expected an even image height and width (h264 needs it), got {height} x {width}")
        self.path, self.fps, self.frames = path, fps, 0
        self._shape, self._pix_fmt = (height, width, 3), pix_fmt
        # faststart: the index goes to the front, so that a browser can play it while loading.
        self._container = av.open(str(path), "w", options={"movflags": "faststart"})
        stream = self._container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        # One thread: the cores are busy with simulators, and threads would cost the bit-exactness.
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, fps)
        stream.options = {"preset": "ultrafast", "crf": str(crf), "g": "12", "forced-idr": "1"}
        self._stream = stream

    def write_episode(self, images_THWC: np.ndarray) -> tuple[float, float]:
        """Append uint8 (T, H, W, 3) frames. Returns where they are, (from, to) in seconds of the file."""
        assert images_THWC.shape[1:] == self._shape and images_THWC.dtype == np.uint8
        began = self.frames
        for image in images_THWC:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            # The mean of 2 x 2 pixels: of the filters tried, the one that smears coloured edges least.
            frame = frame.reformat(format=self._pix_fmt, interpolation="AREA")
            frame.pts, frame.time_base = self.frames, Fraction(1, self.fps)
            if self.frames == began:  # a key frame: no episode needs another one's frames to be decoded
                frame.pict_type = av.video.frame.PictureType.I
            self._container.mux(self._stream.encode(frame))
            self.frames += 1
        return began / self.fps, self.frames / self.fps

    def close(self) -> None:
        """Write what is buffered, and wait until it is on the disk."""
        if self.frames:
            self._container.mux(self._stream.encode())
        self._container.close()
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_frames(path: Path, threads: int = 1) -> Generator[tuple[float, "av.VideoFrame"]]:
    """Decode a video from its beginning. Yields (time in s, frame), in the order of time.

    `threads`: of the decoder; 1 is the most efficient where several files are read at once. ValueError for a
    file that cannot be decoded.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = threads
            if threads > 1:
                stream.thread_type = "AUTO"
            scale = float(stream.time_base)
            for frame in container.decode(stream):
                if frame.pts is not None:
                    yield frame.pts * scale, frame
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"cannot decode the video '{path}': {error}; fetch or record it again") from error


def to_rgb(frame: "av.VideoFrame", size: int | None = None) -> np.ndarray:
    """The frame as uint8 (H, W, 3), or resized to (size, size, 3): means of pixels to shrink, bicubic to
    enlarge."""
    if size is None or (frame.width == size and frame.height == size):
        return frame.to_ndarray(format="rgb24")
    shrink = frame.width >= size and frame.height >= size
    return frame.to_ndarray(format="rgb24", width=size, height=size, interpolation="AREA" if shrink else "BICUBIC")
