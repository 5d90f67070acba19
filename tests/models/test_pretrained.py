"""Weights of other systems and of kpipe itself, against the systems that wrote them, and what is wrong with files."""

import hashlib
import os
import pickle
import re
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from kpipe.catalog.networks import MODELS
from kpipe.catalog.weights import absolute_weights, check_weights_file, init_from_conflicts
from kpipe.errors import ConfigError
from kpipe.files import write_names
from kpipe.models.building import build_model, deferred_initialization, discard_variables
from kpipe.models.portable import save_portable
from kpipe.models.preprocessing import NAMED, Normalization
from kpipe.models.pretrained import find_reuse, initialize_from, load_pretrained
from kpipe.models.structure import features_and_head

# Keras 3.15 reads TensorFlow's variables with NumPy 2 in a way that NumPy warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

GRAY = (28, 28, 1)
LENET_LAYERS = ("c1", "c3", "c5", "f6", "logits")


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch reads .pth files; it comes with the extra `bench`")


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype("float32")


def randomize(model):
    """Give every weight another value, so that none is where a fresh model has it."""
    random = np.random.default_rng(1)
    for layer in model.layers:
        layer.set_weights([each + 0.1 * random.random(each.shape, "float32") for each in layer.get_weights()])
    return model


def build(network, options, shape, classes, normalization=NAMED["unit"]):
    return build_model(network, options, input_shape=shape, classes=classes, normalization=normalization)


def lenet(classes=10, **options):
    return randomize(build("lenet5", options, GRAY, classes))


def equal_weights(ours, theirs):
    return len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))


def save_run(folder, model, network, options, normalization=NAMED["unit"], names=None):
    """Write what a finished run has of its model."""
    folder.mkdir(parents=True)
    classes = model.outputs[0].shape[-1]
    shape = {"input_shape": model.input_shape[1:], "classes": classes}
    save_portable(model, folder / "model.keras", name=network, options=options, normalization=normalization, **shape)
    write_names(folder / "classes.txt", names or [f"class {number}" for number in range(classes)])
    (folder / "config.yaml").write_text("name: run\n")
    return folder


def problem_of(source, network="lenet5", options=None):
    """Return what is said about weights, without the path."""
    with pytest.raises(ConfigError) as caught:
        load_pretrained(str(source), network, options or {})
    start, _, problem = str(caught.value).partition(f"{source}: ")
    assert start == "model.init_from: "
    return problem


# --- torchvision ------------------------------------------------------------------------------------------------


def torch_vgg(torch, stages, *, batch_norm, side, width, classes):
    """Torchvision's VGG, whose layers are counted through `features` and `classifier`."""
    nn, layers, channels = torch.nn, [], 3
    for filters, count in zip((64, 128, 256, 512, 512), stages, strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(channels, filters, 3, padding=1)]
            layers += [nn.BatchNorm2d(filters)] if batch_norm else []
            layers += [nn.ReLU()]
            channels = filters
        layers += [nn.MaxPool2d(2, 2)]
    classifier = [nn.Linear(512 * side * side, width), nn.ReLU(), nn.Dropout(), nn.Linear(width, width), nn.ReLU()]
    classifier += [nn.Dropout(), nn.Linear(width, classes)]
    return torch_classifier(torch, layers, classifier)


def torch_alexnet(torch, *, side, width, classes):
    nn = torch.nn
    layers = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1)]
    layers += [nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)]
    classifier = [nn.Dropout(), nn.Linear(256 * side * side, width), nn.ReLU(), nn.Dropout(), nn.Linear(width, width)]
    return torch_classifier(torch, layers, [*classifier, nn.ReLU(), nn.Linear(width, classes)])


def torch_classifier(torch, features, classifier):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.features = torch.nn.Sequential(*features)
            self.classifier = torch.nn.Sequential(*classifier)

        def forward(self, x):
            return self.classifier(torch.flatten(self.features(x), 1))

    return Network()


def torch_googlenet(torch, *, classes):
    """Torchvision's GoogLeNet, with auxiliary heads that its forward pass does not use."""
    nn = torch.nn

    class Convolution(nn.Module):
        def __init__(self, *sizes, **options):
            super().__init__()
            self.conv = nn.Conv2d(*sizes, bias=False, **options)
            self.bn = nn.BatchNorm2d(sizes[1], eps=0.001)

        def forward(self, x):
            return torch.relu(self.bn(self.conv(x)))

    class Inception(nn.Module):
        def __init__(self, inputs, one, reduce_three, three, reduce_five, five, pooled):
            super().__init__()
            self.branch1 = Convolution(inputs, one, 1)
            self.branch2 = nn.Sequential(
                Convolution(inputs, reduce_three, 1), Convolution(reduce_three, three, 3, padding=1)
            )
            self.branch3 = nn.Sequential(
                Convolution(inputs, reduce_five, 1), Convolution(reduce_five, five, 3, padding=1)
            )
            self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), Convolution(inputs, pooled, 1))

        def forward(self, x):
            return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)

    class Auxiliary(nn.Module):
        def __init__(self, inputs):
            super().__init__()
            self.conv, self.fc1, self.fc2 = Convolution(inputs, 128, 1), nn.Linear(2048, 1024), nn.Linear(1024, classes)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = Convolution(3, 64, 7, stride=2, padding=3)
            self.conv2, self.conv3 = Convolution(64, 64, 1), Convolution(64, 192, 3, padding=1)
            self.inception3a = Inception(192, 64, 96, 128, 16, 32, 32)
            self.inception3b = Inception(256, 128, 128, 192, 32, 96, 64)
            self.inception4a = Inception(480, 192, 96, 208, 16, 48, 64)
            self.inception4b = Inception(512, 160, 112, 224, 24, 64, 64)
            self.inception4c = Inception(512, 128, 128, 256, 24, 64, 64)
            self.inception4d = Inception(512, 112, 144, 288, 32, 64, 64)
            self.inception4e = Inception(528, 256, 160, 320, 32, 128, 128)
            self.inception5a = Inception(832, 256, 160, 320, 32, 128, 128)
            self.inception5b = Inception(832, 384, 192, 384, 48, 128, 128)
            self.aux1, self.aux2 = Auxiliary(512), Auxiliary(528)
            self.fc = nn.Linear(1024, classes)

        def forward(self, x):
            def pool(x, size=3):
                return nn.functional.max_pool2d(x, size, 2, ceil_mode=True)

            x = pool(self.conv3(self.conv2(pool(self.conv1(x)))))
            x = pool(self.inception3b(self.inception3a(x)))
            for block in "abcde":
                x = getattr(self, f"inception4{block}")(x)
            x = self.inception5b(self.inception5a(pool(x, 2)))
            return self.fc(x.mean((2, 3)))

    return Network()


def randomize_torch(torch, network):
    """Draw biases and the statistics of batch normalization, which are 0 and 1 at first."""
    torch.manual_seed(0)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.ndim == 1:
            positive = name.endswith("running_var") or name.endswith("weight")
            torch.nn.init.uniform_(tensor, 0.5 if positive else -0.1, 1.5 if positive else 0.1)
        elif tensor.ndim > 1:
            torch.nn.init.kaiming_normal_(tensor)
    return network.eval()


TORCH_NETWORKS = [
    ("vgg11", {"width": 8}, 64, lambda torch: torch_vgg(
        torch, (1, 1, 2, 2, 2), batch_norm=False, side=2, width=8, classes=5)),
    ("vgg13", {"width": 8, "batch_norm": True}, 64, lambda torch: torch_vgg(
        torch, (2, 2, 2, 2, 2), batch_norm=True, side=2, width=8, classes=5)),
    ("alexnet", {"width": 8, "variant": "one_weird_trick"}, 96, lambda torch: torch_alexnet(
        torch, side=2, width=8, classes=5)),
    pytest.param("googlenet", {"variant": "batch_norm"}, 64, lambda torch: torch_googlenet(torch, classes=5),
                 marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(
    ("network", "options", "side", "make"), TORCH_NETWORKS, ids=["vgg11", "vgg13", "alexnet", "googlenet"]
)
def test_logits_of_a_state_dict_are_those_of_pytorch(torch, tmp_path, network, options, side, make):
    theirs = randomize_torch(torch, make(torch))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    pretrained = load_pretrained(str(tmp_path / "weights.pth"), network, options)
    model = build(network, options, (side, side, 3), 5, pretrained.normalization)
    reuse = initialize_from(model, pretrained, network, options)
    assert not reuse.new
    rules = {"googlenet": {"the network has no auxiliary heads", "it counts batches"}, "vgg13": {"it counts batches"}}
    assert set(reuse.left_out.values()) == rules.get(network, set())
    images = random_images(2, side, side, 3)
    if network == "googlenet":
        inputs = images / 127.5 - 1
    else:
        inputs = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        expected = theirs(torch.tensor(inputs.transpose(0, 3, 1, 2), dtype=torch.float32)).numpy()
    assert np.abs(expected[0] - expected[1]).max() > 0.1  # the logits are more than the biases
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-4)


def torchvision_names(network, batch_norm):
    """Return torchvision's numbers of the layers that a VGG network has weights in, as they are published."""
    return {
        ("vgg11", False): [0, 3, 6, 8, 11, 13, 16, 18],
        ("vgg16", False): [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28],
        ("vgg16", True): [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40],
        ("vgg19", False): [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34],
        ("vgg19", True): [0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49],
    }[network, batch_norm]


def state_dict(model, batch_norm=False):
    """Return a state dict in torchvision's names with the weights of a VGG network of kpipe, its inputs of 1x1."""
    tensors, name = {}, model.name
    convolutions = [layer for layer in model.layers if layer.name.startswith("conv")]
    for place, layer in zip(torchvision_names(name, batch_norm), convolutions, strict=True):
        kernel, bias = layer.get_weights()
        tensors[f"features.{place}.weight"], tensors[f"features.{place}.bias"] = kernel.transpose(3, 2, 0, 1), bias
        if batch_norm:
            arrays = model.get_layer(layer.name.replace("conv", "bn")).get_weights()
            for key, array in zip(("weight", "bias", "running_mean", "running_var"), arrays, strict=True):
                tensors[f"features.{place + 1}.{key}"] = array
            tensors[f"features.{place + 1}.num_batches_tracked"] = np.int64(7)
    for place, layer in ((0, "fc6"), (3, "fc7"), (6, "logits")):
        kernel, bias = model.get_layer(layer).get_weights()
        tensors[f"classifier.{place}.weight"], tensors[f"classifier.{place}.bias"] = kernel.T, bias
    return {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}


@pytest.fixture(scope="module")
def net_a():
    keras.utils.set_random_seed(0)
    return randomize(build("vgg11", {"width": 8}, (32, 32, 3), 5))


@pytest.fixture(scope="module")
def net_a_tensors(net_a):
    return state_dict(net_a)


def save_tensors(path, tensors):
    save_file({name: np.asarray(tensor) for name, tensor in tensors.items()}, path)
    return path


SMALL = {"width": 8}


def test_a_prefix_that_all_names_share_is_stripped(net_a, net_a_tensors, tmp_path):
    tensors = {f"module._orig_mod.{name}": tensor for name, tensor in net_a_tensors.items()}
    pretrained = load_pretrained(str(save_tensors(tmp_path / "a.safetensors", tensors)), "vgg11", SMALL)
    assert pretrained.kind == "torchvision's vgg11, its names without 'module._orig_mod.'"
    assert list(pretrained.layers)[-3:] == ["fc6", "fc7", "logits"]
    assert all(
        equal_weights(pretrained.layers[name], net_a.get_layer(name).get_weights()) for name in pretrained.layers
    )
    assert pretrained.sha256 == hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    others = {"module.neck.weight": np.zeros(3, "float32"), "module.features.0.bias": np.zeros(64, "float32")}
    assert problem_of(save_tensors(tmp_path / "b.safetensors", others), "vgg11", SMALL) == (
        "expected the tensors of torchvision's vgg11 under its names, got 'module.neck.weight' that it has not and no "
        "'module.features.0.weight', 'module.features.3.weight', 'module.features.3.bias' and 12 more. All names begin "
        "with 'module.', and without that they do not fit either."
    )


def test_lower_precision_becomes_float32(net_a, net_a_tensors, tmp_path):
    for dtype in ("float16", np.dtype("bfloat16")):
        tensors = {name: tensor.astype(dtype) for name, tensor in net_a_tensors.items()}
        layers = load_pretrained(str(save_tensors(tmp_path / "a.safetensors", tensors)), "vgg11", SMALL).layers
        assert {array.dtype for arrays in layers.values() for array in arrays} == {np.dtype("float32")}
        np.testing.assert_allclose(layers["conv3_1"][0], net_a.get_layer("conv3_1").get_weights()[0], atol=5e-3)


def test_bfloat16_in_a_keras_file_becomes_float32(tmp_path):
    keras.config.set_dtype_policy("bfloat16")
    model = build("lenet5", {}, GRAY, 10)
    keras.config.set_dtype_policy("float32")
    model.save_weights(tmp_path / "a.weights.h5")
    model.save(tmp_path / "a.keras")
    for name in ("a.weights.h5", "a.keras"):
        layers = load_pretrained(str(tmp_path / name), "lenet5", {}).layers
        for layer in LENET_LAYERS:
            expected = [array.astype("float32") for array in model.get_layer(layer).get_weights()]
            assert layers[layer][0].dtype == np.float32 and equal_weights(layers[layer], expected)


def test_a_state_dict_of_another_network_is_named(net_a_tensors, tmp_path):
    source = save_tensors(tmp_path / "a.safetensors", net_a_tensors)
    assert problem_of(source, "alexnet", {"variant": "one_weird_trick"}) == (
        "expected weights of alexnet with variant: one_weird_trick, got those of vgg11. Choose the network vgg11, or "
        "give weights of alexnet with variant: one_weird_trick."
    )
    assert problem_of(source, "vgg11", SMALL | {"batch_norm": True}) == (
        "expected weights of vgg11 with batch_norm, got those of vgg11. Choose the network vgg11, or give weights of "
        "vgg11 with batch_norm."
    )


def test_tensors_that_do_not_fit_are_named(net_a_tensors, tmp_path):
    source = tmp_path / "a.safetensors"
    without_bias = {name: tensor for name, tensor in net_a_tensors.items() if name != "classifier.3.bias"}
    save_tensors(source, without_bias)
    assert problem_of(source, "vgg11", SMALL) == (
        "expected all tensors of classifier.3, got none called 'classifier.3.bias'."
    )
    save_tensors(source, net_a_tensors | {"features.0.weight": np.zeros((64, 3), "float32")})
    assert problem_of(source, "vgg11", SMALL) == (
        "features.0.weight: expected a tensor with the axes of torchvision's, got 64x3."
    )
    save_tensors(source, net_a_tensors | {"features.0.bias": np.zeros(64, "int32")})
    assert problem_of(source, "vgg11", SMALL) == "conv1_1: expected floating-point weights, got int32."
    save_tensors(source, net_a_tensors | {"features.0.bias": np.full(64, np.nan, "float32")})
    assert problem_of(source, "vgg11", SMALL) == (
        "conv1_1: expected finite weights, got 64 of 64 that are infinite or not a number. Take weights from before "
        "that training diverged."
    )
    features = {name: tensor for name, tensor in net_a_tensors.items() if name.startswith("features.")}
    del features["features.3.bias"]
    assert problem_of(save_tensors(source, features), "vgg11", SMALL) == (
        "expected the tensors of torchvision's vgg11 under its names, got no 'features.3.bias'."
    )
    save_tensors(source, net_a_tensors | {"neck.weight": np.zeros(3, "float32")})
    assert problem_of(source, "vgg11", SMALL) == (
        "expected the tensors of torchvision's vgg11 under its names, got 'neck.weight' that it has not."
    )


def test_a_classifier_of_another_form_is_left_out(net_a_tensors, tmp_path):
    source = save_tensors(
        tmp_path / "a.safetensors", net_a_tensors | {"classifier.8.weight": np.zeros((2, 5), "float32")}
    )
    model = build("vgg11", SMALL, (32, 32, 3), 5)
    reuse = initialize_from(model, load_pretrained(str(source), "vgg11", SMALL), "vgg11", SMALL)
    assert reuse.new == ("fc6", "fc7", "logits")
    assert reuse.left_out == dict.fromkeys(
        ("classifier.8.weight", "fc6", "fc7", "logits"), "the classifier has other layers"
    )


def test_deeper_nets_start_from_net_a(net_a, net_a_tensors, tmp_path):
    options = SMALL | {"batch_norm": False}
    run = save_run(tmp_path / "run", net_a, "vgg11", SMALL)
    copied = {"conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "logits"}
    deep = build("vgg16", options, (32, 32, 3), 5)
    before = {layer.name: layer.get_weights() for layer in deep.layers}
    for source in (run, save_tensors(tmp_path / "a.safetensors", net_a_tensors)):
        deep.get_layer("conv1_1").set_weights(before["conv1_1"])
        pretrained = load_pretrained(str(source), "vgg16", options)
        reuse = initialize_from(deep, pretrained, "vgg16", options)
        assert set(reuse.reused) == copied
        assert reuse.new == (
            "conv1_2", "conv2_2", "conv3_3", "conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3"
        )  # fmt: skip
        rule = "a deeper net takes the first convolutions and the dense layers of net A only"
        assert reuse.left_out == dict.fromkeys(("conv4_1", "conv4_2", "conv5_1", "conv5_2"), rule)
        for layer in deep.layers:
            expected = net_a.get_layer(layer.name).get_weights() if layer.name in copied else before[layer.name]
            assert equal_weights(layer.get_weights(), expected), layer.name
    assert problem_of(run, "lenet5") == (
        "expected weights of lenet5, got those of vgg11. Choose the network vgg11, or give weights of lenet5."
    )


@pytest.mark.parametrize(("network", "batch_norm"), [("vgg16", True), ("vgg19", False), ("vgg19", True)])
@pytest.mark.slow  # 20 million weights each
def test_the_places_of_the_larger_nets_are_torchvision_s(tmp_path, network, batch_norm):
    options = SMALL | {"batch_norm": batch_norm}
    theirs, ours = (build(network, options, (32, 32, 3), 5) for _ in range(2))
    source = save_tensors(tmp_path / "a.safetensors", state_dict(randomize(theirs), batch_norm))
    assert not initialize_from(ours, load_pretrained(str(source), network, options), network, options).new
    assert equal_weights(ours.get_weights(), theirs.get_weights())


def test_a_checkpoint_around_the_state_dict_is_unwrapped(torch, net_a_tensors, tmp_path):
    tensors = {name: torch.tensor(tensor, dtype=torch.bfloat16) for name, tensor in net_a_tensors.items()}
    for key in ("state_dict", "model"):
        torch.save({key: tensors, "epoch": 3}, tmp_path / "a.pth")
        assert load_pretrained(str(tmp_path / "a.pth"), "vgg11", SMALL).kind == "torchvision's vgg11"
    torch.save({"weights": tensors, "epoch": 3}, tmp_path / "a.pth")
    assert problem_of(tmp_path / "a.pth", "vgg11", SMALL) == (
        "expected a state dict, names with their tensors, got a dictionary with 'weights', 'epoch'. Save it alone."
    )
    torch.save(torch.zeros(3), tmp_path / "a.pth")
    assert problem_of(tmp_path / "a.pth", "vgg11", SMALL) == (
        "expected a state dict, names with their tensors, got something else. Save it alone."
    )


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_that_wants_to_run_code_is_refused(torch, tmp_path):
    said = (
        "expected tensors alone, got a pickle that wants to run code{}, which is never done. Where it was trained, "
        "save a state dict: torch.save(model.state_dict(), 'weights.pth')."
    )
    torch.save({"features.0.weight": RunsCode(str(tmp_path / "ran"))}, tmp_path / "a.pth")
    assert problem_of(tmp_path / "a.pth", "vgg11") == said.format(" (posix.mkdir)")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(RunsCode(str(tmp_path / "ran"))))
    assert re.fullmatch(re.escape(said).replace(r"\{\}", ".*"), problem_of(tmp_path / "b.pth", "vgg11"))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "c.pth")
    assert problem_of(tmp_path / "c.pth", "vgg11") == said.format(" (torch.nn.modules.linear.Linear)")
    assert not (tmp_path / "ran").exists()


def test_without_pytorch_a_message_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        file.writestr("archive/data.pkl", b"")
    assert problem_of(tmp_path / "a.pth", "vgg11") == (
        "expected PyTorch to read this file with, got none. `pip install torch` installs it; a .safetensors file needs "
        "none."
    )


# --- keras.applications -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def application():
    keras.utils.set_random_seed(0)
    return randomize(keras.applications.VGG16(weights=None, include_top=False, input_shape=(32, 32, 3)))


GAP = {"head": "gap"}


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_features_of_keras_applications_are_reused(application, tmp_path, ending):
    path = tmp_path / f"a{ending}"
    (application.save if ending == ".keras" else application.save_weights)(path)
    pretrained = load_pretrained(str(path), "vgg16", GAP)
    assert pretrained.kind == "keras.applications' VGG16"
    assert pretrained.normalization is NAMED["caffe"]
    model = build("vgg16", GAP, (32, 32, 3), 2, pretrained.normalization)
    reuse = initialize_from(model, pretrained, "vgg16", GAP, ["cat", "dog"])
    assert reuse.new == ("logits",) and len(reuse.reused) == 13 and not reuse.left_out
    images = random_images(1, 32, 32, 3)
    expected = application(keras.applications.vgg16.preprocess_input(images.copy()))
    ours = keras.Model(model.input, features_and_head(model, "vgg16", GAP).output)(images)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def write_older_h5(path, layers):
    """Write weights in the format of the files that keras.applications downloads."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for layer, arrays in layers.items():
            group = file.create_group(layer)
            names = [f"{layer}_{kind}:0" for kind in ("W_1", "b_1")[: len(arrays)]]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, array in zip(names, arrays, strict=True):
                group[name] = array


def test_imagenet_is_the_file_that_keras_downloads(application, tmp_path, monkeypatch):
    asked = []

    def get_file(name, url, **options):
        asked.append((name, url, options["cache_subdir"]))
        return str(tmp_path / "a.h5")

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    layers = {layer.name: layer.get_weights() for layer in application.layers}
    random = np.random.default_rng(0)
    layers |= {name: [random.random((4, 4), "float32"), np.ones(4, "float32")] for name in ("fc1", "fc2")}
    layers["predictions"] = [np.ones((512, 7), "float32"), np.ones(7, "float32")]
    write_older_h5(tmp_path / "a.h5", layers)
    for options in (GAP, {"width": 512}, {}):
        pretrained = load_pretrained("imagenet", "vgg16", options)
        assert pretrained.normalization is NAMED["caffe"]
    file = "vgg16_weights_tf_dim_ordering_tf_kernels"
    assert [name for name, *_ in asked] == [f"{file}_notop.h5", f"{file}_notop.h5", f"{file}.h5"]
    assert asked[0][1:] == (
        f"https://storage.googleapis.com/tensorflow/keras-applications/vgg16/{file}_notop.h5", "models"
    )  # fmt: skip
    assert equal_weights(pretrained.layers["fc7"], layers["fc2"])
    assert equal_weights(pretrained.layers["conv5_3"], layers["block5_conv3"])
    model = build("vgg16", GAP, (32, 32, 3), 7)
    reuse = find_reuse(model, pretrained, "vgg16", GAP)
    # Our logits have the same shape, but do not come after the same layers.
    assert reuse.new == ("logits",)
    assert reuse.left_out == dict.fromkeys(("fc6", "fc7", "logits"), "the classifier has other layers")


def test_without_a_connection_a_message_says_which_file_to_put_where(tmp_path, monkeypatch):
    def no_network(*arguments):
        raise OSError("Name or service not known")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    file = "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
    url = f"https://storage.googleapis.com/tensorflow/keras-applications/vgg19/{file}"
    assert problem_of("imagenet", "vgg19", GAP) == (
        f"expected {file} in {tmp_path}/models or a connection to download it, got 'Name or service not known'. "
        f"Download {url} where there is a connection, and put the file there."
    )


def test_other_convolutions_of_keras_applications_are_named(application, tmp_path):
    layers = {layer.name: layer.get_weights() for layer in application.layers}
    write_older_h5(tmp_path / "a.h5", layers)
    assert problem_of(tmp_path / "a.h5", "vgg19") == (
        "expected weights of vgg19, got those of vgg16. Choose the network vgg16, or give weights of vgg19."
    )
    del layers["block1_conv2"]
    write_older_h5(tmp_path / "a.h5", {name: arrays for name, arrays in layers.items() if name < "block2"})
    assert problem_of(tmp_path / "a.h5", "vgg16") == (
        "expected the convolutions of keras.applications' VGG16 or VGG19, got others of such names: 'block1_conv1'."
    )


# --- kpipe ------------------------------------------------------------------------------------------------------


def test_a_run_gives_its_weights_normalization_and_classes(tmp_path):
    model, names = lenet(), [f"digit {number}" for number in range(10)]
    run = save_run(tmp_path / "run", model, "lenet5", {}, names=names)
    for source in (run, run / "model.keras"):
        pretrained = load_pretrained(str(source), "lenet5", {})
        assert (pretrained.kind, pretrained.class_names) == ("kpipe's lenet5", tuple(names))
        assert pretrained.sha256 == hashlib.sha256((run / "model.keras").read_bytes()).hexdigest()
        assert pretrained.normalization.equals(NAMED["unit"])
        ours = lenet()
        reuse = initialize_from(ours, pretrained, "lenet5", {}, names)
        assert (reuse.reused, reuse.new, reuse.left_out) == (LENET_LAYERS, (), {})
        assert equal_weights(ours.get_weights(), model.get_weights())


def test_the_last_layer_is_new_where_the_classes_are_others(tmp_path):
    model = lenet()
    pretrained = load_pretrained(str(save_run(tmp_path / "run", model, "lenet5", {})), "lenet5", {})
    ours = build("lenet5", {}, GRAY, 10)
    before = ours.get_layer("logits").get_weights()
    reuse = initialize_from(ours, pretrained, "lenet5", {}, [f"letter {number}" for number in range(10)])
    assert (reuse.reused, reuse.new) == (LENET_LAYERS[:4], ("logits",))
    assert reuse.left_out == {"logits": "it tells other classes apart"}
    assert equal_weights(ours.get_layer("logits").get_weights(), before)
    assert equal_weights(ours.get_layer("f6").get_weights(), model.get_layer("f6").get_weights())


def test_the_classifier_is_new_from_the_first_other_shape_on(tmp_path):
    lenet().save_weights(tmp_path / "a.weights.h5")
    pretrained = load_pretrained(str(tmp_path / "a.weights.h5"), "lenet5", {})
    with deferred_initialization():  # as for a plan, without values
        model = build("lenet5", {}, (36, 36, 1), 10)
        reuse = find_reuse(model, pretrained, "lenet5", {})
    discard_variables()
    assert reuse.reused == ("c1", "c3")
    assert reuse.left_out == {
        "c5": "its shape is 400x120, the network needs 576x120",
        "f6": "it follows c5, which is new",
        "logits": "it follows c5, which is new",
    }


def test_auxiliary_heads_may_be_on_either_side(tmp_path):
    with_heads, without = {"auxiliary_heads": True}, {}
    theirs = build("googlenet", with_heads, (32, 32, 3), 5)
    theirs.save_weights(tmp_path / "a.weights.h5")
    ours = build("googlenet", without, (32, 32, 3), 5)
    reuse = initialize_from(
        ours, load_pretrained(str(tmp_path / "a.weights.h5"), "googlenet", without), "googlenet", without
    )
    heads = {f"auxiliary_{place}_{layer}" for place in ("4a", "4d") for layer in ("1x1", "fc", "logits")}
    assert not reuse.new
    assert reuse.left_out == dict.fromkeys(heads, "the network has no auxiliary heads")
    ours.save_weights(tmp_path / "b.weights.h5")
    reuse = find_reuse(
        theirs, load_pretrained(str(tmp_path / "b.weights.h5"), "googlenet", with_heads), "googlenet", with_heads
    )
    assert set(reuse.new) == heads and not reuse.left_out


RANDOM = np.random.default_rng(0).random
NORMALIZATIONS = {
    "affine": ((8, 8, 3), Normalization("affine", [120.5, 110.25, 100.0], [60.0, 55.5, 70.0])),
    "none": ((8, 8, 1), NAMED["none"]),
    "caffe": ((8, 8, 3), NAMED["caffe"]),
    "mean_image": ((8, 8, 1), Normalization("mean_image", RANDOM((8, 8, 1), "float32"))),
    "whiten": ((8, 8, 1), Normalization("whiten", RANDOM(64, "float32"), matrix=RANDOM((64, 9), "float32"))),
}


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_a_model_gives_its_normalization(tmp_path, kind):
    shape, normalization = NORMALIZATIONS[kind]
    options = {"depth": 1, "width": 4}
    run = save_run(tmp_path / "run", build("mlp", options, shape, 3, normalization), "mlp", options, normalization)
    pretrained = load_pretrained(str(run), "mlp", options)
    assert pretrained.normalization.equals(normalization)
    rule = "it belongs to the preprocessing, which the network has already"
    assert pretrained.left_out == ({kind: rule} if kind in ("mean_image", "whiten") else {})
    other = Normalization(
        normalization.kind, np.asarray(normalization.mean) + 1e-3, normalization.std, normalization.matrix
    )
    assert not pretrained.normalization.equals(other)


def test_normalizations_are_compared_by_what_they_compute():
    one, each = Normalization("affine", 0.0, 255.0), Normalization("affine", [0.0] * 3, [255.0] * 3)
    assert one.equals(each) and each.equals(one) and not one.equals(NAMED["none"])
    assert not each.equals(Normalization("affine", [0.0] * 2, [255.0] * 2))
    assert not one.equals(Normalization("caffe", 0.0, 255.0))


def keras_vgg(*front):
    """Return a tiny model with the given layers before the first that has weights."""
    return keras.Sequential([keras.Input((4, 4, 3)), *front, keras.layers.Dense(2, name="d"), keras.layers.Flatten()])


def normalization_of(model, path):
    model.save(path)
    return load_pretrained(str(path), "lenet5", {}).normalization


def test_normalizations_of_other_models_are_known_or_not(tmp_path):
    path, layers = tmp_path / "a.keras", keras.layers
    scaled = layers.Rescaling([1 / 60, 1 / 55, 1 / 70], [-2.0, -1.0, -0.5])
    expected = Normalization("affine", [120.0, 55.0, 35.0], [60.0, 55.0, 70.0])
    assert normalization_of(keras_vgg(scaled), path).equals(expected)
    adapted = layers.Normalization()
    adapted.adapt(random_images(5, 4, 4, 3))
    images = random_images(5, 4, 4, 3)
    expected = Normalization("affine", images.mean((0, 1, 2)), images.std((0, 1, 2)))
    assert normalization_of(keras_vgg(adapted), path).equals(expected)
    assert normalization_of(keras_vgg(), path).equals(NAMED["none"])
    assert normalization_of(keras_vgg(layers.Rescaling(1 / 255), layers.Rescaling(2.0)), path) is None
    assert normalization_of(keras_vgg(layers.Activation("tanh")), path) is None
    assert normalization_of(keras.Sequential([keras.Input((4, 4, 3)), keras_vgg(scaled)]), path) is None


def test_features_that_differ_are_named(tmp_path):
    path = str(tmp_path / "a.weights.h5")
    lenet().save_weights(path)

    def problem(network, options, shape):
        with pytest.raises(ConfigError) as caught:
            find_reuse(build(network, options, shape, 10), load_pretrained(path, network, options), network, options)
        return str(caught.value).removeprefix(f"model.init_from: {path}: ")

    assert problem("lenet5", {}, (28, 28, 3)) == (
        "expected weights of the layer c1 of shape 5x5x3x6, got them of shape 5x5x1x6. They are for images of 1 "
        "channel: set data.channels=1."
    )
    assert problem("lenet5", {"variant": "concept"}, GRAY) == (
        "expected weights of the layer c1 of shape 5x5x1x3, got them of shape 5x5x1x6. Give the model the options with "
        "which the weights were trained."
    )
    assert problem("zfnet", {"width": 8}, (32, 32, 3)) == (
        "expected only layers that zfnet has with these options, got 'c1', 'c3' too. Give the model the options with "
        "which the weights were trained."
    )
    options = {"depth": 2, "width": 4}
    build("mlp", options | {"depth": 1}, GRAY, 10).save_weights(path)
    assert problem("mlp", options, GRAY) == (
        "expected weights of the layer fc2 of shape 4x4, got none. Give the model the options with which the weights "
        "were trained."
    )


def test_after_an_error_nothing_is_assigned(tmp_path):
    path = tmp_path / "a.weights.h5"
    build("mlp", {"depth": 2, "width": 4}, GRAY, 10).save_weights(path)
    options = {"depth": 2, "width": 4}
    pretrained = load_pretrained(str(path), "mlp", options)
    pretrained.layers["fc2"] = [np.zeros((3, 4), "float32"), np.zeros(4, "float32")]
    model = build("mlp", options, GRAY, 10)
    before = model.get_weights()
    with pytest.raises(ConfigError, match="expected weights of the layer fc2 of shape 4x4, got them of shape 3x4"):
        initialize_from(model, pretrained, "mlp", options)
    assert equal_weights(model.get_weights(), before)


# --- files that are not what they should be ---------------------------------------------------------------------


DAMAGED = "expected a whole file, got one that is damaged or cut short"


@pytest.mark.parametrize("ending", [".keras", ".weights.h5", ".safetensors", ".pth"])
def test_a_file_that_is_cut_short_is_reported(request, net_a_tensors, tmp_path, ending):
    path, network = tmp_path / f"a{ending}", "vgg11"
    if ending == ".safetensors":
        save_tensors(path, {"features.0.weight": net_a_tensors["features.0.weight"]})
    elif ending == ".pth":
        torch = request.getfixturevalue("torch")
        torch.save({"features.0.weight": torch.zeros(1000)}, path)
    else:
        lenet().save(path) if ending == ".keras" else lenet().save_weights(path)
        network = "lenet5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    problem = problem_of(path, network)
    assert problem.startswith(DAMAGED) and problem.endswith(". Download or copy it again.")


def test_damaged_weights_within_a_keras_file_are_reported(tmp_path):
    lenet().save(tmp_path / "a.keras")
    content = bytearray((tmp_path / "a.keras").read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 2000, 7):
        content[place] ^= 0xFF
    (tmp_path / "a.keras").write_bytes(content)
    assert problem_of(tmp_path / "a.keras").startswith(DAMAGED)


@pytest.mark.parametrize("ending", [".keras", ".weights.h5", ".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "an empty file. Download or copy it again."),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n",
         "the pointer that Git LFS keeps in its place. `git lfs pull` fetches the file itself."),
        (b"\n<!DOCTYPE html><title>Sign in</title>",
         "a web page. Download the file itself, not the page that shows it."),
    ],
)  # fmt: skip
def test_what_is_no_weights_at_all_is_said(tmp_path, ending, content, got):
    names = {".keras": "a Keras model", ".weights.h5": "Keras weights", ".safetensors": "tensors"}
    (tmp_path / f"a{ending}").write_bytes(content)
    expected = f"expected {names.get(ending, 'a PyTorch state dict')} ({ending}), got "
    assert problem_of(tmp_path / f"a{ending}", "vgg11") == expected + got


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "a.keras").write_bytes(b"\x89HDF\r\n")
    assert problem_of(tmp_path / "a.keras") == (
        "expected a Keras model (.keras), got a file of another kind. Check its name, or download it again."
    )
    (tmp_path / "a.bin").write_bytes(b"PK")
    assert problem_of(tmp_path / "a.bin") == (
        "expected imagenet, a run directory or a file ending in .keras, .h5, .pth, .pt, .safetensors."
    )


def test_layers_that_need_code_are_refused(tmp_path):
    remedy = (
        ". Where it was trained, save the weights alone with model.save_weights('model.weights.h5'), and give that "
        "file."
    )
    path = tmp_path / "a.keras"
    images = keras.Input(GRAY)
    keras.Model(images, keras.layers.Lambda(lambda x: 2 * x)(images)).save(path)
    assert problem_of(path) == "expected layers of Keras and kpipe, got a Lambda layer, whose code is not run" + remedy

    class Unknown(keras.layers.Layer):
        def call(self, x):
            return x

    keras.Model(images, Unknown()(images)).save(path)
    assert problem_of(path) == "expected layers of Keras and kpipe, got 'Unknown', which Keras does not know" + remedy


def test_weights_without_the_names_of_their_layers_are_refused(tmp_path):
    path = tmp_path / "a.weights.h5"
    lenet().save_weights(path)
    with h5py.File(path, "r+") as file:
        del file["layers/conv2d/vars"].attrs["name"]
    assert problem_of(path) == (
        "expected the names of the layers, got weights of 'conv2d' without a name: older versions of Keras wrote none. "
        f"Save the weights again with Keras {keras.__version__}."
    )


def test_what_a_training_adds_to_its_weights_is_left_out(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="logits")])
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    model.save_weights(path := tmp_path / "a.weights.h5")
    pretrained = load_pretrained(str(path), "mlp", {})
    assert list(pretrained.layers) == ["logits"]
    assert pretrained.left_out == {"optimizer/vars": "it is the state of the training"}


def test_two_layers_of_one_name_are_refused(tmp_path):
    def dense():
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="fc1")])

    keras.Sequential([keras.Input((4,)), dense(), dense()]).save(tmp_path / "a.keras")
    assert problem_of(tmp_path / "a.keras", "mlp") == "expected layers with names of their own, got two called 'fc1'."


def test_a_run_that_never_finished_is_said_with_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs" / "a run").mkdir(parents=True)
    (tmp_path / "logs" / "a run" / "config.yaml").write_text("name: a\n")
    assert problem_of(tmp_path / "logs" / "a run") == (
        "expected a finished run, got one that never finished and therefore has no model.keras. `kpipe finish "
        "'logs/a run'` finishes it as it stands."
    )
    no_run = "expected a run directory with a model.keras, got a folder without it."
    assert problem_of(tmp_path / "logs") == no_run
    (tmp_path / "logs" / "a run" / "model.keras").touch()
    assert problem_of(tmp_path / "logs") == f"{no_run} The newest run in it is {tmp_path}/logs/a run."


def test_weights_that_are_not_there_are_said_with_the_nearest_name(tmp_path):
    assert problem_of(tmp_path / "vgg16.keras") == "expected weights, got no such file or directory."
    (tmp_path / "vgg16.keras").touch()
    assert problem_of(tmp_path / "vg16.keras") == (
        "expected weights, got no such file or directory, did you mean 'vgg16.keras'?"
    )
    with pytest.raises(ConfigError, match=r"a\.keras/b: expected a file that can be read, got 'Not a directory'\.$"):
        (tmp_path / "a.keras").touch()
        check_weights_file(str(tmp_path / "a.keras" / "b"))


# --- the key of an experiment -----------------------------------------------------------------------------------


def test_paths_of_weights_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/her")
    monkeypatch.setenv("WEIGHTS", "/data")
    assert absolute_weights("imagenet") == "imagenet"
    assert absolute_weights("./imagenet") == str(tmp_path / "imagenet")
    assert absolute_weights("~/a.keras") == "/home/her/a.keras"
    assert absolute_weights("$WEIGHTS/a.pth") == "/data/a.pth"
    with pytest.raises(ConfigError, match="^expected a path, got nothing$"):
        absolute_weights("")


@pytest.mark.parametrize(
    ("source", "network", "options", "message"),
    [
        ("imagenet", "vgg16", {"head": "gap"}, None),
        ("imagenet", "vgg16", {"batch_norm": True},
         "imagenet holds weights for vgg16 with batch_norm: false, got true"),
        ("imagenet", "vgg19", {"activation": "maxout"},
         "imagenet holds weights for vgg19 with activation: relu, got maxout"),
        ("imagenet", "lenet5", {},
         "imagenet holds weights for vgg16, vgg19, got the network 'lenet5'. Give a run directory or a Keras file of "
         "it"),
        ("/a.pth", "vgg16", {"batch_norm": True}, None),
        ("/a.pth", "vgg16_c", {}, None),
        ("/a.pth", "vgg11", {"lrn": True}, "PyTorch's weights are read for vgg11 with lrn: false, got true"),
        ("/a.safetensors", "alexnet", {},
         "PyTorch's weights are read for alexnet with variant: one_weird_trick, got paper"),
        ("/a.pt", "googlenet", {}, "PyTorch's weights are read for googlenet with variant: batch_norm, got paper"),
        ("/a.pth", "mlp", {}, "PyTorch's weights are read for alexnet, googlenet, vgg11, vgg13, vgg16, vgg19, got the "
         "network 'mlp'. Give a run directory or a Keras file of it"),
        ("/a.keras", "mlp", {}, None),
        ("/runs/lr=0.1", "alexnet", {}, None),
    ],
)  # fmt: skip
def test_networks_that_cannot_start_from_weights_are_known_beforehand(source, network, options, message):
    found = list(init_from_conflicts(source, network, MODELS[network].options(**options)))
    assert found == ([message] if message else [])
