"""The squares that the Square Attack tries: their sides, places, signs and patterns."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..rng import Rng

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After these queries the share of the pixels that a square covers is halved."""

BLOCK = 100
"""The squares of so many queries are drawn at once."""


Window = tuple[slice, slice, slice, slice]
"""An index: all images, all channels, some rows, some columns."""


class Draw(NamedTuple):
    """What is drawn for one query, the same for all images."""

    query: int
    window: Window  # of the pixels that change
    other: Window  # ℓ2: of the pixels that give up their change
    up: Tensor  # (C, 1, 1) bool: the sign in each channel
    turned: bool  # ℓ2: the halves of the pattern stand side by side
    before: int  # the last query with the same square, -1 if there was none


def side_of_square(query: int, height: int, width: int, norm: str, p_init: float = 0.8) -> int:
    """Side of the square of a query, in pixels: it covers a share p of the image, halved on schedule.

    Args:
        query: counted from 0.
        height, width: of the image; the side is at most the smaller.
        norm: under ℓ2 squares have an odd side of at least 3, unless the image is smaller.
        p_init: the share of the first squares.
    """
    p = p_init / 2 ** bisect.bisect_left(HALVINGS, query)
    side = max(round(math.sqrt(p * height * width)), 1)
    if norm == "l2":
        side = max(side, 3) // 2 * 2 + 1
    return min(side, height, width)


def draw_squares(rng: Rng, x: Tensor, norm: str, queries: int, p_init: float) -> Iterator[Draw]:
    """The squares of a run, one for each query. The first ones are the same however many there are.

    Args:
        rng: the stream.
        x: (R, C, H, W): the images' shape and device.
        norm: of the threat.
        queries: how many.
        p_init: share of the pixels that the first squares cover.
    """
    channels, height, width = x.shape[1:]
    latest: dict[tuple[int, ...], int] = {}
    for query in range(queries):
        place = query % BLOCK
        if place == 0:  # on the CPU, for the host must know the windows; the signs go to the device in one piece
            stream = rng.child("squares", query // BLOCK)
            uniform = stream.uniform(torch.empty(BLOCK, 4, dtype=torch.float64, device="cpu"), 0, 1).tolist()
            bits = stream.integers(0, 2, (BLOCK, channels + 1)).bool()
            ups, rows = bits[:, :-1].reshape(BLOCK, channels, 1, 1).to(x.device).unbind(), bits.tolist()
        side = side_of_square(query, height, width, norm, p_init)
        room = (height - side + 1, width - side + 1) * 2
        row, column, top, left = (int(share * places) for share, places in zip(uniform[place], room, strict=True))
        *signs, turned = rows[place]
        key = (side, row, column, *signs)
        here, there = _window(row, column, side), _window(top, left, side)
        yield Draw(query, here, there, ups[place], turned, latest.get(key, -1))
        latest[key] = query


def _window(row: int, column: int, side: int) -> Window:
    return slice(None), slice(None), slice(row, row + side), slice(column, column + side)


def pattern_of_square(side: int, like: Tensor) -> Tensor:
    """The change of a square under ℓ2 (the paper's η), of length 1: a bump above, its negative below.

    Args:
        side: of the square, in pixels.
        like: whose dtype and device it should have.
    """
    halves = []
    for height, sign in ((side // 2, 1.0), (side - side // 2, -1.0)):
        row, column = torch.arange(height) - height // 2, torch.arange(side) - side // 2
        distance = torch.maximum(row.abs()[:, None], column.abs()[None])  # rings around the middle
        rings = torch.arange(1, max(height, side) // 2 + 2, dtype=torch.float64) ** -2.0
        bump = rings.flip(0).cumsum(0).flip(0)[distance]
        halves.append(sign * bump / bump.norm())
    whole = torch.cat(halves)
    return whole.div(whole.norm()).to(like)
