"""The works whose training steps are measured: a network, a batch, and what a training does besides."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

CLASSES = 10
LEARNING_RATE, MOMENTUM = 1e-3, 0.9
EPOCHS = 1000  # of a training: more than will be measured
LOG_EVERY = 50  # steps


@dataclass(frozen=True)
class Work:
    """One network, trained on one batch again and again.

    Attributes:
        network: a name in `kpipe.catalog.networks.MODELS`.
        image_shape: (H, W, C).
        batch_size: images in a batch.
        steps: of an epoch, which is one turn.
        options: of the network.
        ordinary: whether the training has metrics, a cosine schedule, log lines and a checkpoint at the end of each
            epoch. Otherwise it has a mean loss, where the system keeps one by itself.
        bfloat16: whether the variants in bfloat16 are of interest.
        targets: how many times the wall time and the CPU time of kpipe, in the same precision, a variant should take,
            at least; None: no target.
    """

    network: str
    image_shape: tuple[int, int, int]
    batch_size: int
    steps: int
    options: dict[str, Any] = field(default_factory=dict)
    ordinary: bool = False
    bfloat16: bool = True
    targets: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)


TARGETS = {
    variant + precision: (1.5 if precision and variant.startswith("keras") else 1, None)
    for variant in ("keras_fit", "keras_fit_50", "torch", "torch_compile")
    for precision in ("", "_bfloat16")
}
VGG16_BN = {"batch_norm": True, "width": 512}  # the width that suits images of 32 pixels
WORKS = {
    "fixed": Work(
        network="mlp",
        image_shape=(4, 4, 1),
        batch_size=1,
        steps=2000,
        options={"depth": 1, "width": 16},
        bfloat16=False,
        targets={"keras_fit": (8, 6), "raw": (1 / 1.4, 1 / 1.4)},
    ),
    "lenet5_b32": Work(
        network="lenet5",
        image_shape=(28, 28, 1),
        batch_size=32,
        steps=500,
        ordinary=True,
        targets={"keras_fit": (1.6, 1.3), "torch": (1, None), "torch_compile": (1, None)},
    ),
    "vgg16_bn_32_b32": Work("vgg16", (32, 32, 3), 32, 10, VGG16_BN, targets=TARGETS),
    "vgg16_bn_32_b128": Work("vgg16", (32, 32, 3), 128, 4, VGG16_BN, targets=TARGETS),
    "alexnet_64_b32": Work("alexnet", (64, 64, 3), 32, 20, targets=TARGETS),
    "googlenet_64_b32": Work("googlenet", (64, 64, 3), 32, 20, targets=TARGETS),
}


def make_batch(work: Work) -> tuple[np.ndarray, np.ndarray]:
    """Return random images uint8 [B, H, W, C] and random labels int32 [B]."""
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (work.batch_size, *work.image_shape), np.uint8)
    return images, draws.integers(0, CLASSES, work.batch_size, np.int32)
