"""What a trained network is evaluated with: its weights, and protocols by name, which say what of an image it sees."""

WEIGHTS = ("best", "raw", "averaged")
"""Weights of a run that has averaged them: `best` are the better of the two."""

PROTOCOLS = {
    "center": "the center of the kept image, as at the end of a run",
    "ten_crop": "the four corners and the center of the kept image, and their mirror images (AlexNet, section 4.1)",
    "multi_crop": "144 crops at four scales of the whole image (GoogLeNet, section 7)",
    "dense": "all places of the whole image and its mirror image, at one or several scales (VGG, section 3.2)",
}
