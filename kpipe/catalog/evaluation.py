"""What a trained network is used with: its weights, protocols by name, and how its images become square.

The command line imports it for its help, so it imports nothing.
"""

RESIZES = ("crop", "pad", "squash")
"""Values of `data.resize`, see `kpipe.data.images.Form`."""

WEIGHTS = ("best", "raw", "averaged")
"""Weights of a run that has averaged them: `best` are the better of the two."""

PROTOCOLS = {
    "center": "the center of the kept image, as at the end of a run",
    "ten_crop": "the four corners and the center of the kept image, and their mirror images (AlexNet, section 4.1)",
    "multi_crop": "144 crops at four scales of the whole image (GoogLeNet, section 7)",
    "dense": "all places of the whole image and its mirror image, at one or several scales (VGG, section 3.2)",
}
