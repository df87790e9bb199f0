"""Positions on three axes: time, height and width.

A text token has its index on all three. A picture lies at the time of its first token, and its tokens spread over
height and width from there; frames of a video share the origin of height and width. What comes behind has its own
index again, so that a token's position never depends on what kind of tokens came before it. Sounds advance like text.

Made on the host, where data is prepared.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Place = tuple[int, int, int]


def mrope_positions(
    length: int, images: Sequence[Place], videos: Sequence[Sequence[Place]] = ()
) -> "NDArray[np.int64]":
    """Positions of one document.

    Args:
        length: T, its tokens.
        images: index of the first token, and rows and columns of the grid of tokens, of each picture.
        videos: the same of the frames of each video, in order; the first frame's index is the video's origin.

    Returns:
        (3, T) int64: time, height, width.

    Raises:
        ValueError: a picture does not fit into the document.
    """
    positions = np.tile(np.arange(length), (3, 1))
    for image in images:
        _put(positions, image, origin=image[0], frame=0)
    for video in videos:
        for frame, image in enumerate(video):
            _put(positions, image, origin=video[0][0], frame=frame)
    return positions


def _put(positions: "NDArray[np.int64]", image: Place, origin: int, frame: int) -> None:
    start, rows, columns = image
    end = start + rows * columns
    if start < 0 or rows < 1 or columns < 1 or end > positions.shape[1]:
        raise ValueError(
            f"a picture of {rows} × {columns} tokens at {start} does not fit into {positions.shape[1]} tokens"
        )
    positions[0, start:end] = origin + frame
    positions[1, start:end] = origin + np.repeat(np.arange(rows), columns)
    positions[2, start:end] = origin + np.tile(np.arange(columns), rows)
