"""Names of the explanations, and what each of them shows."""

EXPLANATIONS = {
    "filters": "the filters of the first convolution",
    "feature_maps": "what layers of low, middle and high depth compute of an image",
    "deconvnet": "what excites a feature map most, projected back to the pixels",
    "saliency": "where a pixel changes the score most, and Grad-CAM",
    "occlusion": "the class's probability while a gray square covers one part after the other",
    "class_models": "images that the network scores highest for a class, and such ones that fool it",
    "invariance": "how far the features move while an image is shifted, scaled or rotated",
    "receptive_fields": "how much of an image one position of each layer sees",
}
"""By name, in the order in which they are made."""
