"""A box found in the network's input lies where the image has it, whatever was resized and cut."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from trp_export.inputs.pictures import bring_to_size
from trp_export.inputs.placement import place
from trp_export.inputs.preprocessing import Preprocessing, parse_resize

RESIZES = ("40", "64x48", "letterbox:64x48", "letterbox:64x64:114:corner", "cover:48x64", "multiple:16")


@given(
    st.tuples(st.integers(40, 120), st.integers(40, 120)),
    st.sampled_from([None, *RESIZES]),
    st.sampled_from([None, (32, 24), (30, 30)]),
    st.tuples(st.floats(0.2, 0.5), st.floats(0.2, 0.5)),
)
def test_a_bright_rectangle_is_found_where_it_was_drawn(
    size: tuple[int, int], resize: str | None, crop: tuple[int, int] | None, start: tuple[float, float]
) -> None:
    height, width = size
    top, left = int(start[0] * height), int(start[1] * width)
    bottom, right = top + height // 4, left + width // 4
    steps = Preprocessing(resize=parse_resize(resize) if resize else None, crop=crop)
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[top:bottom, left:right] = 255
    fed = np.asarray(bring_to_size(Image.fromarray(pixels), steps, "image"))
    fed = np.where(fed == 114, 0, fed)  # The bars of the letterbox.
    rows, columns = np.flatnonzero(fed.max(axis=1) > 127), np.flatnonzero(fed.max(axis=0) > 127)
    inside = len(rows) and len(columns) and rows[0] > 0 and columns[0] > 0
    assume(inside and rows[-1] < fed.shape[0] - 1 and columns[-1] < fed.shape[1] - 1)
    found = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]])
    placement = place(size, steps)
    pixel = 1.5 / min(placement.scale_x, placement.scale_y)
    assert np.abs(placement.to_image(found) - [[left, top, right, bottom]]).max() <= pixel


def test_boxes_are_cut_at_the_borders_of_the_image() -> None:
    placement = place((10, 20), Preprocessing())
    assert placement.to_image(np.array([[-5.0, -5, 30, 30]])).tolist() == [[0, 0, 20, 10]]
