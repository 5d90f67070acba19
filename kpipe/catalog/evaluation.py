"""What a trained network is used with: its weights, protocols by name, and how its images become square.

The command line imports it for its help, so it imports nothing.
"""

ON_ERROR = ("fail", "skip")
"""Values of `data.on_error`: what is done with an image that cannot be read."""

RESIZES = ("crop", "pad", "squash")
"""Values of `data.resize`, see `kpipe.data.images.Form`."""

WEIGHTS = ("best", "raw", "averaged")
"""Weights of a run that has averaged them: `best` are the better of the two."""

PROTOCOLS = {
    "center": "the center of the kept image, as at the end of a run",
    "ten_crop": "four corners and center, and their mirror images (AlexNet)",
    "multi_crop": "144 crops at four scales of the whole image (GoogLeNet)",
    "dense": "all positions of the whole image and its mirror image (VGG)",
}
"""Which views of an image are scored."""
