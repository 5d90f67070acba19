"""How much of an image one position of a layer sees: the pixels that its value depends on.

W. Luo et al., "Understanding the Effective Receptive Field", NIPS 2016, call this the theoretical one.

H height, W width, C channels.
"""

from collections.abc import Sequence

import keras
import numpy as np

from kpipe.explaining.feature_maps import list_stages
from kpipe.models.geometry import LayerGeometry, measure

Box = tuple[int, int, int, int]


def find_receptive_fields(model: keras.Model) -> dict[str, Box]:
    """Return what the middle position of each layer sees, see `list_stages`.

    Args:
        model: a network for images [B, H, W, C] of a known size.

    Returns:
        (top, left, height, width) in pixels by the name of the layer; a part may be padding, outside of the image.

    Raises:
        ConfigError: the network has no convolution, or takes images of any size.
    """
    rows = {row.name: row for row in measure(model)}
    return {
        name: find_field(rows[name], [side // 2 for side in rows[name].output[:2]])
        for name in list_stages(model)
        if rows[name].receptive_field
    }


def find_field(row: LayerGeometry, position: Sequence[int]) -> Box:
    """Return the receptive field of a position (row, column) of a layer, as `find_receptive_fields`."""
    top, left = (row.receptive_start[axis] + position[axis] * row.total_stride[axis] for axis in (0, 1))
    return top, left, *row.receptive_field


def cut_out(row: LayerGeometry, positions: np.ndarray, sides: Sequence[int], *stacks: np.ndarray) -> list[np.ndarray]:
    """Cut what positions of a layer see out of images.

    Args:
        row: geometry of the layer.
        positions: (row, column), int [M, n, 2].
        sides: height h and width w of the cut, at most those of the images; it stays inside of them.
        stacks: images [M, n, H, W, C] each.

    Returns:
        [M, n, h, w, C] each. Of a layer without positions, the middle of the images.
    """
    height, width = stacks[0].shape[2:4]
    cut_height, cut_width = min(sides[0], height), min(sides[1], width)
    cut = [np.empty((*stack.shape[:2], cut_height, cut_width, stack.shape[-1]), stack.dtype) for stack in stacks]
    for place in np.ndindex(positions.shape[:2]):
        field = find_field(row, positions[place]) if row.receptive_field else (0, 0, height, width)
        middle = [field[axis] + field[axis + 2] // 2 for axis in (0, 1)]
        top = int(np.clip(middle[0] - cut_height // 2, 0, height - cut_height))
        left = int(np.clip(middle[1] - cut_width // 2, 0, width - cut_width))
        for part, stack in zip(cut, stacks, strict=True):
            part[place] = stack[place][top : top + cut_height, left : left + cut_width]
    return cut
