"""The networks: build one by its name, start it from weights, tell features from head, save it for anyone to load."""

# Imported here and not when a name is looked up: `kpipe.models.alexnet` must be the function at any time.
from kpipe.models.alexnet import alexnet
from kpipe.models.building import build_model
from kpipe.models.go import go_policy
from kpipe.models.googlenet import googlenet
from kpipe.models.lenet import lenet5
from kpipe.models.mlp import mlp
from kpipe.models.portable import load_portable_weights, save_portable
from kpipe.models.preprocessing import NAMED, Normalization, check_whitening, load_normalization, save_normalization
from kpipe.models.pretrained import Pretrained, Reuse, find_reuse, initialize_from, load_pretrained
from kpipe.models.speech import speech_cnn
from kpipe.models.structure import FeaturesAndHead, features_and_head
from kpipe.models.text import text_cnn
from kpipe.models.vgg import vgg11, vgg13, vgg16, vgg16_c, vgg19
from kpipe.models.zfnet import zfnet

__all__ = [
    "NAMED",
    "FeaturesAndHead",
    "Normalization",
    "Pretrained",
    "Reuse",
    "alexnet",
    "build_model",
    "check_whitening",
    "features_and_head",
    "find_reuse",
    "go_policy",
    "googlenet",
    "initialize_from",
    "lenet5",
    "load_normalization",
    "load_portable_weights",
    "load_pretrained",
    "mlp",
    "save_normalization",
    "save_portable",
    "speech_cnn",
    "text_cnn",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg16_c",
    "vgg19",
    "zfnet",
]
