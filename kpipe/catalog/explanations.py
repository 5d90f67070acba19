"""Names of the explanations, and what each of them shows."""

EXPLANATIONS = {
    "filters": "the filters of the first convolution",
    "feature_maps": "feature maps of low, middle and high depth",
    "deconvnet": "what excites feature maps most, back in the pixels",
    "saliency": "where pixels change the score most, and Grad-CAM",
    "occlusion": "what a gray square takes away, part by part",
    "class_models": "images with the highest score, and fooling ones",
    "invariance": "features of a shifted, scaled, rotated image",
    "receptive_fields": "how much of an image each layer sees",
    "heat_map": "classes at all places of a larger image",
}
"""By name, in the order in which they are made."""
