"""Names of the explanations, and what each of them shows."""

from collections.abc import Iterable

from kpipe.caller import for_caller
from kpipe.errors import ConfigError, did_you_mean
from kpipe.names import quoted

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


def check_kinds(kinds: Iterable[str]) -> None:
    """Raise ConfigError for the name of an explanation that is not known."""
    for kind in kinds:
        if kind not in EXPLANATIONS:
            where = for_caller("--kind", "kinds")
            nearest = did_you_mean(kind, EXPLANATIONS)
            raise ConfigError(f"{where}: expected known names, got {quoted(kind)}{nearest}")
