"""How much of an image one position of a layer sees: the pixels that its value depends on.

W. Luo et al., "Understanding the Effective Receptive Field", NIPS 2016, call this the theoretical one.

H height, W width.
"""

from collections.abc import Sequence

import keras

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
