"""Saliency and occlusion beside captum's, on the same network in PyTorch."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kpipe.explaining.gradients import grad_cam, saliency
from kpipe.explaining.occlusion import occlude

# PyTorch looks for a GPU before it computes a gradient.
pytestmark = pytest.mark.filterwarnings("ignore:CUDA initialization")

RANDOM = np.random.default_rng(4)
LABEL = 2


@pytest.fixture(scope="module")
def torch():
    """PyTorch, whose import takes seconds: only where these tests run."""
    return pytest.importorskip("torch", reason="PyTorch comes with the extra `bench`")


@pytest.fixture(scope="module")
def captum(torch):
    return pytest.importorskip("captum.attr", reason="captum comes with the extra `bench`")


@pytest.fixture(scope="module")
def twins(torch):
    """A network with two convolutions, a pooling and two dense layers; in Keras and in PyTorch."""
    keras.utils.set_random_seed(3)
    images = keras.Input((12, 12, 3))
    x = layers.Rescaling(1 / 255)(images)
    x = layers.Conv2D(6, 3, activation="relu", name="conv1")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(8, 3, activation="relu", name="conv2")(x)
    x = layers.Flatten()(x)
    model = keras.Model(images, layers.Dense(4, name="logits")(layers.Dense(16, activation="relu", name="hidden")(x)))
    nn = torch.nn
    convolutions = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)
    dense = nn.Linear(72, 16), nn.Linear(16, 4)
    for name, layer in zip(("conv1", "conv2"), convolutions, strict=True):
        kernel, bias = model.get_layer(name).get_weights()
        layer.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1))
        layer.bias.data = torch.tensor(bias)
    for name, layer in zip(("hidden", "logits"), dense, strict=True):
        kernel, bias = model.get_layer(name).get_weights()
        if name == "hidden":  # PyTorch flattens channels first
            kernel = kernel.reshape(3, 3, 8, 16).transpose(2, 0, 1, 3).reshape(72, 16)
        layer.weight.data = torch.tensor(np.ascontiguousarray(kernel.T))
        layer.bias.data = torch.tensor(bias)
    first, second = convolutions
    twin = nn.Sequential(
        first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.Flatten(), dense[0], nn.ReLU(), dense[1]
    )
    return model, twin.eval()


@pytest.fixture(scope="module")
def image():
    return RANDOM.uniform(0, 255, (12, 12, 3)).astype(np.float32)


@pytest.fixture
def torch_image(torch, image):
    return torch.tensor(np.ascontiguousarray(image.transpose(2, 0, 1)[None]) / 255, requires_grad=True)


def test_the_twins_agree(twins, image, torch_image):
    model, twin = twins
    np.testing.assert_allclose(model(image[None]), twin(torch_image).detach(), rtol=1e-4, atol=1e-5)


def test_saliency(captum, twins, image, torch_image):
    model, twin = twins
    found = captum.Saliency(twin).attribute(torch_image, target=LABEL, abs=True)
    expected = found.detach().numpy()[0].max(0) / 255
    np.testing.assert_allclose(saliency(model, image[None], [LABEL])[0], expected, rtol=1e-3, atol=1e-8)


def test_grad_cam(captum, twins, image, torch_image):
    model, twin = twins
    compared = 0
    for label in range(4):
        found = captum.LayerGradCam(twin, twin[4]).attribute(torch_image, target=label, relu_attributions=True)
        heat = found.detach().numpy()[0, 0]
        if heat.max() > 0:
            compared += 1
            expected = tf.image.resize(heat[..., None], (12, 12))[..., 0]
            ours = grad_cam(model, image[None], [label], "conv2")[0]
            np.testing.assert_allclose(ours, expected / tf.reduce_max(expected), rtol=1e-3, atol=1e-5)
    assert compared


def test_occlusion(captum, torch, twins, image, torch_image):
    """captum adds up the fall of the score over all squares that cover a pixel; with squares side by side, one does."""
    model, twin = twins
    method = captum.Occlusion(lambda images: torch.softmax(twin(images), 1))
    squares = {"sliding_window_shapes": (3, 3, 3), "strides": (3, 3, 3), "baselines": 127.5 / 255}
    scores = method.attribute(torch_image.detach(), target=LABEL, **squares)
    expected = scores.numpy()[0, 0, ::3, ::3]
    found = occlude(model, image, LABEL, side=3, stride=3)
    np.testing.assert_allclose(found.whole - found.probabilities, expected, rtol=1e-3, atol=1e-6)
