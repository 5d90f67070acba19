"""Protocols of evaluation by name: what of an image the network sees."""

PROTOCOLS = {
    "center": "the center of the kept image, as at the end of a run",
    "ten_crop": "the four corners and the center of the kept image, and their mirror images (AlexNet, section 4.1)",
    "multi_crop": "144 crops at four scales of the whole image (GoogLeNet, section 7)",
    "dense": "all places of the whole image and its mirror image, at one or several scales (VGG, section 3.2)",
}
