"""How an image file becomes what an exported network sees: as plain data, in words, and in lines of Python."""

from typing import Any

from kpipe.catalog.data import parse_background
from kpipe.trained import Trained

METHOD = {
    "interpolation": "bilinear",
    "antialias": True,
    "rounding": "nearest, half to even",
    "orientation": "EXIF, applied first",
}
"""What holds for all images that are resized."""


def describe_preparation(trained: Trained) -> dict[str, Any]:
    """Return how an image file becomes what the network sees.

    Args:
        trained: the network as it was loaded.

    Returns:
        `image_size`, [H, W], alone where the network sees no square images of one or three channels. Else also
        `stored_size`, `resize` and `background`, as in `data` of an experiment, `METHOD`, and `code`, lines of Python
        that define `images`, float32 [B, H, W, C].
    """
    (height, width, channels), data = trained.image_shape, trained.data
    described: dict[str, Any] = {"image_size": [height, width]}
    if height != width or channels not in (1, 3):
        return described
    background = data.background if isinstance(data.background, str) else list(data.background)
    described |= {"stored_size": data.stored_size, "resize": data.resize, "background": background, **METHOD}
    return described | {"code": _write_code(described, channels)}


def describe_images(images: dict[str, Any]) -> str:
    """Return in words what `describe_preparation` returned."""
    height, width = images["image_size"]
    if "resize" not in images:
        return f"{height}x{width}, not resized"
    stored = images["stored_size"] or height
    if images["resize"] == "squash":
        how = f"scale both sides to {stored} pixels"
    elif images["resize"] == "pad":
        how = f"scale the longer side to {stored} pixels and fill the rest with black"
    else:
        how = f"scale the shorter side to {stored} pixels and crop the center"
    if stored != height:
        how += f", then crop the center of {height}x{width}"
    background = images["background"]
    return f"{how}; transparent pixels show {background if isinstance(background, str) else tuple(background)}"


def describe_method(images: dict[str, Any]) -> str:
    """Return in words how images are scaled; needs `METHOD`."""
    filtered = "with" if images["antialias"] else "without"
    return (
        f"{images['interpolation']}, {filtered} antialiasing (always so in Pillow, `antialias` in TensorFlow and "
        f"torchvision), after the EXIF orientation; values are rounded ({images['rounding']}); where what is cropped "
        "or filled is odd, the bottom and the right get the odd pixel"
    )


def _write_code(images: dict[str, Any], channels: int) -> list[str]:
    """Return lines of Python that read image files as the network was trained on them. They need NumPy and Pillow."""
    size, wanted = images["stored_size"] or images["image_size"][0], images["image_size"][0]
    side = "max" if images["resize"] == "pad" else "min"
    lines = [
        "image = Image.open(path)",
        f"times = max({side}(image.size) // {2 * size}, 1)  # a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size",
        "ratio = max(each for each in (1, 2, 4, 8) if each <= times)",
        "image.draft(None, (max(image.width // ratio, 1), max(image.height // ratio, 1)))",
        'image = ImageOps.exif_transpose(image).convert("RGBA")',
        f'behind = Image.new("RGBA", image.size, {parse_background(images["background"])})',
        'image = Image.alpha_composite(behind, image).convert("RGB")',
        *(['image = image.convert("L")'] if channels == 1 else []),
        *_write_resizing(images["resize"], size),
    ]
    if wanted != size:
        first = (size - wanted) // 2
        lines.append(f"image = image.crop({(first, first, first + wanted, first + wanted)})")
    lines.append('return np.asarray(image, "float32")' + ("[..., np.newaxis]" if channels == 1 else ""))
    return [
        "import numpy as np",
        "from PIL import Image, ImageOps",
        "",
        "def read_image(path):",
        *(f"    {line}" for line in lines),
        "",
        'images = np.stack([read_image(path) for path in ["photograph.jpg"]])',
    ]


def _write_resizing(resize: str, size: int) -> list[str]:
    """Return the lines that make an image square."""
    if resize == "squash":
        return [f"image = image.resize(({size}, {size}), Image.Resampling.BILINEAR)"]
    side = "longer = max" if resize == "pad" else "shorter = min"
    lines = [
        f"{side}(image.size)",
        f"sides = [max(round(side * {size} / {side.split()[0]}), 1) for side in image.size]",
        "image = image.resize(sides, Image.Resampling.BILINEAR)",
    ]
    if resize == "pad":
        return [
            *lines,
            f"square = Image.new(image.mode, ({size}, {size}))",
            f"square.paste(image, (({size} - image.width) // 2, ({size} - image.height) // 2))",
            "image = square",
        ]
    return [
        *lines,
        f"left, top = (image.width - {size}) // 2, (image.height - {size}) // 2",
        f"image = image.crop((left, top, left + {size}, top + {size}))",
    ]
