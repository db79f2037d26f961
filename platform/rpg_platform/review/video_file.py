"""Pictures as an mp4 file that browsers and MLflow's artifact pane play: H.264, small, quick to seek in."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from rpg_platform.review.episode import Picture

EXTRA = "video"
"""The extra that installs the encoder."""
_MOST_WIDTH, _MOST_HEIGHT = 960, 400
_QUALITY = "30"  # x264's constant rate factor
_CAPTION_HEIGHT, _GAP = 26, 4
_DARK, _LIGHT = "#1f2430", "white"


def write_mp4(pictures: Iterator[Picture], out: Path, fps: float) -> tuple[int, int]:
    """Writes a video; a large one is made smaller.

    Args:
        pictures: all of one size, at least one.
        out: the file.
        fps: pictures a second.

    Returns:
        Its width and height.
    """
    import av

    first = next(pictures)
    height, width = first.shape[:2]
    scale = min(1.0, _MOST_WIDTH / width, _MOST_HEIGHT / height)
    size = (max(2, round(scale * width / 2) * 2), max(2, round(scale * height / 2) * 2))  # yuv420p: even
    with av.open(str(out), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = max(1, round(fps))  # a whole picture a second, to seek from
        stream.options = {"crf": _QUALITY, "preset": "veryfast", "threads": "1"}
        for picture in _with_first(first, pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame.reformat(*size, format="yuv420p")))
        container.mux(stream.encode(None))
    return size


def _with_first(first: Picture, rest: Iterator[Picture]) -> Iterator[Picture]:
    yield first
    yield from rest


def captioned(pictures: Iterator[Picture], text: str) -> Iterator[Picture]:
    """The pictures with a line of text above them."""
    strip: Picture | None = None
    for picture in pictures:
        if strip is None:
            strip = _strip(text, picture.shape[1])
        yield np.concatenate([strip, picture])


def _strip(text: str, width: int) -> Picture:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, _CAPTION_HEIGHT / 100), dpi=100, facecolor=_DARK)
    canvas: Any = FigureCanvasAgg(figure)
    figure.text(8 / width, 0.5, text, color=_LIGHT, fontsize=9, va="center", parse_math=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def side_by_side(left: Iterator[Picture], right: Iterator[Picture]) -> Iterator[Picture]:
    """Two videos as one; the one that ends first stays as it was."""
    last: list[Picture] = []
    for pair in zip_longest(left, right):
        last = [before if new is None else new for new, before in zip_longest(pair, last)]
        gap = np.full((len(last[0]), _GAP, 3), 0x1F, np.uint8)
        yield np.concatenate([last[0], gap, last[1]], axis=1)
