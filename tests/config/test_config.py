"""Experiment files: every mistake named with its line, the one rule for overrides, where each value came from."""

import functools
import inspect
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kpipe.catalog.tables import TABLES
from kpipe.catalog.training import OPTIMIZERS, SCHEDULES
from kpipe.config.loading import json_schema, load_experiment
from kpipe.config.schema import DataConfig, options
from kpipe.errors import ConfigError
from kpipe.files import to_yaml

SHIPPED = sorted(Path(__file__).parents[2].joinpath("experiments").rglob("*.yaml"))
GOOD = """\
data: {source: digits, image_size: 32}
model: {name: vgg16, head: fc, width: 512}
training:
  optimizer: {name: sgd, momentum: 0.9, nesterov: true}
  learning_rate: {schedule: cosine, peak: 1e-3, warmup: {epochs: 2}}
"""


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides):
        path = tmp_path / "exp.yaml"
        path.write_text(text, encoding="utf-8")
        return load_experiment(path, overrides)

    return load


@pytest.fixture
def mistakes(load, tmp_path):
    """The lines of the error, with the folder cut off."""

    def mistakes(text, *overrides):
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return str(caught.value).replace(f"{tmp_path}/", "").splitlines()

    return mistakes


def broken(section, value, text=GOOD):
    """GOOD with one more line, in the section that it belongs to."""
    if section == "top":
        return text + value + "\n"
    return text.replace(f"{section}:\n", f"{section}:\n  {value}\n")


BROKEN = [
    ("top", "nonsense: 3", "exp.yaml:6: nonsense: unknown key (known: chosen, data, logging, logs, model, name, "),
    ("top", "ephocs: 3", "exp.yaml:6: ephocs: unknown key, did you mean 'training.epochs'?"),
    ("top", "batch_size: 3", "exp.yaml:6: batch_size: unknown key, did you mean 'data.batch_size'?"),
    ("top", "sead: 3", "exp.yaml:6: sead: unknown key, did you mean 'seed'?"),
    ("top", "seed: -1", "exp.yaml:6: seed: expected at least 0, got -1"),
    ("top", "seed: 1.5", "exp.yaml:6: seed: expected a whole number, got 1.5"),
    ("top", "seed: true", "exp.yaml:6: seed: expected a whole number, got true"),
    ("top", "seed: 99999999999", "exp.yaml:6: seed: expected less than 2,147,483,648, got 99999999999"),
    ("top", "name: ../up", "exp.yaml:6: name: expected letters, digits, spaces and . , _ + - = @ ( ) only, "),
    ("top", "name: 5", "exp.yaml:6: name: expected text, got 5"),
    ("top", "logs: [a]", "exp.yaml:6: logs: expected text, got ['a']"),
    ("top", "model: {name: lenet5}", "exp.yaml:6: model: stands twice, first in line 2"),
    (
        "top",
        "seed: !!python/object/apply:os.system [id]",
        "exp.yaml:6: seed: tags are not accepted, got !!python/obj",
    ),
    ("top", "seed: !color red", "exp.yaml:6: seed: tags are not accepted, got !color"),
    ("top", "<<: {seed: 1}", "exp.yaml:6: merge keys (<<) are not accepted; write the values out"),
    ("training", "early_stopping: {patience: 2}\n  log_every: {steps: }", "log_every: expected exactly one of steps"),
    ("top", "[1]: 2", "exp.yaml:6: expected a name as key, got a list or mapping"),
    ("training", "ephocs: 3", "exp.yaml:4: training.ephocs: unknown key, did you mean 'epochs'?"),
    ("training", "epochs: 99999999999999", "training.epochs: expected less than 1,000,000,000, got 99999999999999"),
    ("training", "epochs: 0", "exp.yaml:4: training.epochs: expected at least 1, got 0"),
    ("training", "epochs: '3'", "exp.yaml:4: training.epochs: expected a whole number, got '3'"),
    ("training", "epochs: 1e-1", "exp.yaml:4: training.epochs: expected a whole number, got 0.1"),
    ("training", "epochs: 1e30", "exp.yaml:4: training.epochs: expected a whole number, got 1e+30"),
    ("training", "epochs: .inf", "exp.yaml:4: training.epochs: expected a whole number, got inf"),
    ("training", "epochs: '1e3'", "exp.yaml:4: training.epochs: expected a whole number, got '1e3'"),
    ("training", "epochs: -1e1", "exp.yaml:4: training.epochs: expected at least 1, got -10"),
    ("top", 'name: "caf\\udce9"', "exp.yaml:6: name: expected text in UTF-8, got 'caf\\xe9'"),
    ("top", f"name: {'x' * 101}", "exp.yaml:6: name: expected at most 100 characters, got 'xxx"),
    ("top", 'name: "a\\ud800b"', "exp.yaml:6: name: expected text, got 'a\\ud800b', where an escape is half a char"),
    ("training", "epochs: 3.5", "exp.yaml:4: training.epochs: expected a whole number, got 3.5"),
    ("training", "epochs:", "exp.yaml:4: training.epochs: expected a whole number, got nothing"),
    (
        "training",
        "precision: float23",
        "training.precision: expected one of auto, float32, mixed_bfloat16, mixed_fl",
    ),
    ("training", "deterministic: on", "training.deterministic: expected one of auto, true, false, got 'on'"),
    (
        "training",
        "monitor: accuracy",
        "expected one of val_accuracy, val_loss, got 'accuracy', did you mean 'val_ac",
    ),
    ("training", "accumulate: 3", "training.accumulate: expected a number that divides data.batch_size, 32, got 3"),
    ("training", "clip: {norm: 1, value: 1}", "training.clip: expected exactly one of norm, global_norm, value, got"),
    ("training", "clip: {norm: 0}", "training.clip.norm: expected more than 0, got 0"),
    ("training", "average: {decay: 1.0}", "training.average.decay: expected less than 1, got 1.0"),
    ("training", "reused_layers: {rate: 0.1}", "training.reused_layers: needs model.init_from, which says where"),
    ("training", "reused_layers: {rate: 0}", "training.reused_layers.rate: expected more than 0, got 0"),
    ("training", "layers: [{match: 'conv('}]", "layers.0.match: expected a regular expression, got 'conv(': missing )"),
    ("training", "layers: [{rate: 1.0}]", "training.layers.0.match: is required"),
    ("training", "layers: [{match: a, frozen: al}]", "layers.0.frozen: expected one of none, all, got 'al', did you"),
    ("training", "layers: [{match: a, frozen: 3}]", "training.layers.0.frozen: expected one of none, all, got 3"),
    (
        "training",
        "layers: [{match: a, frozen: {epochs: 10}}]",
        "expected a length shorter than the training (10 epochs), got ",
    ),
    (
        "training",
        "layers: [{match: a, frozen: {percent: 100}}]",
        "expected a length shorter than the training (100 percent), g",
    ),
    ("training", "layers: [{match: a, frozen: {hours: 1}}]", "training.layers.0.frozen.hours: unknown key"),
    ("training", "early_stopping: 5", "early_stopping: expected a section, got 5. Write early_stopping: {patience: 5}"),
    ("training", "early_stopping: {}", "training.early_stopping.patience: is required"),
    (
        "training",
        "early_stopping: {patience: 0}",
        "training.early_stopping.patience: expected at least 1, got 0",
    ),
    ("training", "log_every: 50", "training.log_every: expected exactly one of steps, epochs, got 50"),
    (
        "training",
        "checkpoint: {every: 5}",
        "exp.yaml:4: training.checkpoint.every: expected exactly one of steps, minutes,",
    ),
    (
        "training",
        "checkpoint: {every: {hours: 5}}",
        "exp.yaml:4: training.checkpoint.every.hours: unknown key (known: ",
    ),
    ("training", "checkpoint: {every: {minutes: 0}}", "training.checkpoint.every.minutes: expected more than 0, got 0"),
    ("training", "checkpoint: {keep: 0}", "exp.yaml:4: training.checkpoint.keep: expected at least 1, got 0"),
    ("training", "log_every: {}", "training.log_every: expected exactly one of steps, epochs, got {}"),
    ("training", "log_every: {minutes: 1}", "training.log_every.minutes: unknown key (known: epochs, steps)"),
]
REPLACED = [
    ("vgg16", "vgg17",
     "exp.yaml:2: model.name: unknown name 'vgg17', did you mean 'vgg11', 'vgg13', 'vgg16', 'vgg16_c' or 'vgg19'?"),
    ("head: fc", "head: fcc", "exp.yaml:2: model.head: expected one of fc, gap, got 'fcc', did you mean 'fc'?"),
    ("head: fc", "heat: fc", "exp.yaml:2: model.heat: unknown key, did you mean 'head'?"),
    ("width: 512", "init_from: imagenet, activation: tanh",
     "exp.yaml:2: model.init_from: imagenet holds weights for vgg16 with activation: relu, got tanh"),
    ("width: 512", "init_from: x.pth, activation: tanh", "PyTorch's weights are read for vgg16 with activation: relu"),
    ("width: 512", "init_from: 5", "exp.yaml:2: model.init_from: expected text, got 5"),
    ("width: 512", "width: 0", "exp.yaml:2: model.width: expected at least 1, got 0"),
    ("width: 512", "dropout: 1.0", "exp.yaml:2: model.dropout: expected less than 1, got 1.0"),
    ("width: 512", "batch_norm: 1", "exp.yaml:2: model.batch_norm: expected true or false, got 1"),
    ("head: fc", "head: gap", "exp.yaml:2: model.width: applies only when head is 'fc', it is 'gap'"),
    ("{name: vgg16, head: fc, width: 512}", "vgg16",
     "exp.yaml:2: model: expected a section, got 'vgg16'. Write model: {name: vgg16}"),
    ("name: vgg16, ", "", "exp.yaml:2: model: expected a key name"),
    ("momentum: 0.9", "momentun: 0.9", "optimizer.momentun: unknown key, did you mean 'momentum'?"),
    ("momentum: 0.9", "momentum: 1.5", "exp.yaml:4: training.optimizer.momentum: expected less than 1, got 1.5"),
    ("  optimizer:", "  distribution: mirrored\n  xla: 'on'\n  optimizer:",
     "exp.yaml:5: training.xla: XLA cannot compile a step that sums gradients over devices (distribution: mirrored); "
     "leave it at auto"),
    ("momentum: 0.9", "momentum: 0.0", "exp.yaml:4: training.optimizer.nesterov: needs a momentum above 0"),
    ("name: sgd", "name: sdg", "exp.yaml:4: training.optimizer.name: unknown name 'sdg', did you mean 'sgd'?"),
    ("name: sgd", "name: adam", "exp.yaml:4: training.optimizer.momentum: unknown key (known: "),
    ("momentum: 0.9", "weight_decay: 5e-4",
     "optimizer.weight_decay: expected a section, got 0.0005. Write weight_decay: {value: 0.0005}"),
    ("{name: sgd, momentum: 0.9, nesterov: true}", "sgd",
     "exp.yaml:4: training.optimizer: expected a section, got 'sgd'. Write optimizer: {name: sgd}"),
    ("{name: sgd, momentum: 0.9, nesterov: true}", "sdg",
     "exp.yaml:4: training.optimizer: expected a section, got 'sdg'. Write optimizer: {name: NAME} (known: sgd, adagr"),
    ("{schedule: cosine, peak: 1e-3, warmup: {epochs: 2}}", "0.01",
     "exp.yaml:5: training.learning_rate: expected a section, got 0.01. Write learning_rate: {peak: 0.01}"),
    ("vgg16", "resnet50", "exp.yaml:2: model.name: unknown name 'resnet50' (known: lenet5, alexnet, zfnet, googlen"),
    ("momentum: 0.9", "weight_decay: {kind: l2}", "training.optimizer.weight_decay.value: is required"),
    ("schedule: cosine", "schedule: cosinus", "learning_rate.schedule: unknown name 'cosinus', did you mean 'cosine'?"),
    ("peak: 1e-3", "peak: 0", "exp.yaml:5: training.learning_rate.peak: expected more than 0, got 0"),
    ("peak: 1e-3", "peak: .inf", "exp.yaml:5: training.learning_rate.peak: expected a finite number, got inf"),
    ("peak: 1e-3", "peak: 1e-3x", "exp.yaml:5: training.learning_rate.peak: expected a number, got '1e-3x'"),
    ("epochs: 2", "epochs: 2, steps: 3", "warmup: expected exactly one of epochs, steps, images, percent, got"),
    ("epochs: 2", "epochs: 20", "learning_rate.warmup: 20 epochs of warm-up do not fit into 10 epochs of training"),
    ("cosine, peak: 1e-3", "one_cycle", "training.learning_rate.warmup: expected no warm-up, since one_cycle "
     "rises by itself. Say with `rise` how long"),
    ("cosine", "cosine_restarts, first: {epochs: 1}", "training.learning_rate.warmup: 2 epochs of warm-up do not fit "
     "into the first cycle of 1 epoch"),
    ("cosine", "plateau, min_rate: 0.1", "training.learning_rate.min_rate: expected at most the peak, 0.001, got 0.1"),
    ("epochs: 2", "percent: 200", "training.learning_rate.warmup.percent: expected at most 100, got 200"),
    ("digits", "digit", "exp.yaml:1: data.source: unknown source 'digit', did you mean 'digits'?"),
    ("digits", "digits:8", "exp.yaml:1: data.source: expected 'digits' alone, got 'digits:8'"),
    ("digits", '"fol\\nder:x\\e[31m"', r"exp.yaml:1: data.source: unknown source 'fol\nder', did you mean 'folder'?"),
    ("digits", '"digits:\\e[2J\\n"', r"data.source: expected 'digits' alone, got 'digits:\x1b[2J\n'"),
    ("digits", "''", "data.source: unknown source '' (known: digits, synthetic, folder:<path>, tfds:<name>, "),
    ("digits", f"d{'x' * 200}", f"exp.yaml:1: data.source: unknown source 'd{'x' * 55}... (known: "),
    ("digits", "'folder:'", "exp.yaml:1: data.source: expected folder:<path>, got 'folder:'"),
    ("source: digits, ", "", "exp.yaml:1: data.source: is required"),
    ("image_size: 32", "image_size: 16", "exp.yaml:1: data.image_size: vgg16 needs at least 17 pixels, got 16"),
    (", image_size: 32", "", "data.image_size: vgg16 needs at least 17 pixels, the images of 'digits' have 8; set"),
    ("digits, image_size: 32", "folder:/x", "data.image_size: is required with folder: photographs come in many"),
    ("image_size: 32", "image_size: 32, synthetic: {}", "data.synthetic: belongs to the source 'synthetic'"),
    ("image_size: 32", "image_size: 32, normalize: units",
     "expected one of auto, none, unit, mean, mean_image, standardize, pca_whiten, zca, imagenet, caffe, got 'units', "
     "did you mean 'unit'?"),
    ("image_size: 32", "image_size: 32, normalize: caffe",
     "exp.yaml:1: data.normalize: expected images of 3 channels for caffe, got 1"),
    ("digits, image_size: 32", "'folder:x', image_size: 32, channels: 1, normalize: imagenet",
     "exp.yaml:1: data.normalize: expected images of 3 channels for imagenet, got 1"),
    ("digits, image_size: 32", "synthetic, synthetic: {kind: spectrogram}, normalize: imagenet",
     "exp.yaml:1: data.normalize: expected images of 3 channels for imagenet, got 1"),
    ("digits, image_size: 32", "'folder:x', image_size: 40, normalize: zca",
     "exp.yaml:1: data.normalize: expected images of at most 4,096 values to whiten, got 40x40x3 = 4,800. Take a "
     "smaller image_size, or normalize each channel"),
    ("image_size: 32", "image_size: 65, normalize: pca_whiten", "at most 4,096 values to whiten, got 65x65x1 = 4,225"),
    ("image_size: 32", "image_size: 32, normalize: {pca: {components: 9}}",
     "exp.yaml:1: data.normalize: expected the network 'mlp' for pca, whose result is no longer an image, got 'vgg16'"),
    ("32}\nmodel: {name: vgg16, head: fc, width: 512", "65, normalize: {pca: {components: 9}}}\nmodel: {name: mlp",
     "exp.yaml:1: data.normalize: expected images of at most 4,096 values to whiten, got 65x65x1 = 4,225"),
    (", image_size: 32}\nmodel: {name: vgg16, head: fc, width: 512",
     ", normalize: {pca: {components: 65}}}\nmodel: {name: mlp",
     "exp.yaml:1: data.normalize: expected 1 to 64 components for images of 8x8x1, got 65"),
    ("image_size: 32", "image_size: 32, normalize: {pca: {components: 0}}",
     "exp.yaml:1: data.normalize.pca.components: expected at least 1, got 0"),
    ("image_size: 32", "image_size: 32, normalize: {pca: 5}",
     "data.normalize.pca: expected a section, got 5. Write pca: {components: 5}"),
    ("image_size: 32", "image_size: 32, normalize: {pca: {}}", "data.normalize.pca.components: is required"),
    ("image_size: 32", "image_size: 32, normalize: {pca: {components: 5}, mean: [1]}",
     "exp.yaml:1: data.normalize.mean: unknown key (known: pca)"),
    ("image_size: 32", "image_size: 32, normalize: {mean: [1]}", "data.normalize.std: is required"),
    ("image_size: 32", "image_size: 32, normalize: {mean: [1, 2], std: [1]}", "as many values of std as of mean"),
    ("image_size: 32", "image_size: 32, normalize: {mean: [1, 2], std: [1, 2]}",
     "exp.yaml:1: data.normalize: expected 1 mean for images of 1 channel, got 2"),
    ("image_size: 32", "image_size: 32, channels: 3, normalize: {mean: [1, 2], std: [1, 2]}",
     "data.normalize: expected 1 or 3 means for images of 3 channels, got 2"),
    ("image_size: 32", "image_size: 32, split: {test: 1.0}", "data.split.test: expected less than 1, got 1.0"),
    ("image_size: 32", "image_size: 32, stored_size: 30", "data.stored_size: expected at least data.image_size, 32, g"),
    (", image_size: 32", ", stored_size: 30",
     "exp.yaml:1: data.stored_size: expected at least data.image_size, which is missing, got 30"),
    ("image_size: 32", "image_size: 32, resize: stretch", "expected one of crop, pad, squash, got 'stretch'"),
    ("image_size: 32", "image_size: 32, cache: ram", "expected one of auto, memory, disk, none, got 'ram'"),
    ("image_size: 32", "image_size: 32, cache: disk, cache_gigabytes: 3.5",
     "exp.yaml:1: data.cache_gigabytes: applies only when cache is 'auto', it is 'disk'"),
    ("image_size: 32", "image_size: 32, skip_limit: 0.5",
     "exp.yaml:1: data.skip_limit: applies only when on_error is 'skip', it is 'fail'"),
    ("image_size: 32", "image_size: 32, on_error: skip, skip_limit: 1.0", "data.skip_limit: expected less than 1, got"),
    ("image_size: 32", "image_size: 32, class_weights: equal", "expected one of balanced, got 'equal'"),
    ("image_size: 32", "image_size: 32, augment: [flip_horizontal, center_crop]",
     "exp.yaml:1: data.augment.1: expected center_crop as the first entry: it chooses what the others see"),
    ("image_size: 32", "image_size: 32, augment: [random_crop]",
     "exp.yaml:1: data.augment.0: random_crop needs a data.stored_size above data.image_size, 32, got none"),
    (", image_size: 32", ", augment: [random_resized_crop]",
     "exp.yaml:1: data.augment.0: random_resized_crop needs data.image_size, the size of the crop"),
    ("image_size: 32", "image_size: 32, augment: [{scale_jitter: {low: 30}}]",
     "exp.yaml:1: data.augment.0: expected low of at least data.image_size, 32, got 30"),
    ("image_size: 32", "image_size: 32, augment: [{scale_jitter: {low: 60, high: 50}}]",
     "exp.yaml:1: data.augment.0.scale_jitter.low: expected at most high, 50, got 60"),
    ("image_size: 32", "image_size: 32, augment: [{random_resized_crop: {area: [0.9, 0.1]}}]",
     "exp.yaml:1: data.augment.0.random_resized_crop.area: expected [smallest, largest], got [0.9, 0.1]"),
    ("image_size: 32", "image_size: 32, augment: [{random_resized_crop: {area: [0.1, 1.5]}}]",
     "data.augment.0.random_resized_crop.area.1: expected at most 1, got 1.5"),
    ("image_size: 32", "image_size: 32, augment: [{rotate: {degrees: 200}}]", "rotate.degrees: expected at most 180"),
    ("image_size: 32", "image_size: 32, augment: [{rand_augment: {magnitude: 31}}]", "magnitude: expected at most 30"),
    ("image_size: 32", "image_size: 32, augment: [{mixup: {alpha: 0}}]", "mixup.alpha: expected more than 0, got 0"),
    ("image_size: 32", "image_size: 32, augment: [pca_color]",
     "exp.yaml:1: data.augment.0: pca_color needs images of 3 channels, got 1"),
    ("digits, image_size: 32", "synthetic, synthetic: {kind: text}, augment: [grayscale]",
     "exp.yaml:1: data.augment.0: grayscale needs images of 1 or 3 channels, got 27"),
    ("digits, image_size: 32", "synthetic, image_size: 40, synthetic: {kind: spectrogram}, augment: [center_crop]",
     "exp.yaml:1: data.augment.0: center_crop needs square images"),
    ("digits, image_size: 32", "synthetic, image_size: 40, stored_size: 44, synthetic: {kind: spectrogram}",
     "exp.yaml:1: data.stored_size: needs square images"),
    ("image_size: 32", "image_size: 32, augment: [{cutout: {size: 32}}]",
     "exp.yaml:1: data.augment.0: expected size below data.image_size, 32, got 32"),
    ("image_size: 32", "image_size: 32, augment: [{pad_crop: {padding: 40}}]",
     "exp.yaml:1: data.augment.0: expected padding below data.image_size, 32, got 40"),
    ("image_size: 32", "image_size: 32, augment: pad_crop",
     "data.augment: expected a list, got 'pad_crop'. Write augment: [pad_crop]"),
    ("image_size: 32", "image_size: 32, augment: [flip_horizontl]", "unknown 'flip_horizontl', did you mean 'flip_h"),
    ("image_size: 32", "image_size: 32, augment: [{pad_crop: {padding: 0}}]", "0.pad_crop.padding: expected at le"),
    ("image_size: 32", "image_size: 32, augment: [{pad_crop: {pading: 2}}]", "pading: unknown key, did you mean 'p"),
    ("image_size: 32", "image_size: 32, augment: [{pad_crop: {}, translate: {}}]", "expected exactly one of random_"),
    ("digits, image_size: 32", "synthetic, image_size: 32, channels: 1, synthetic: {kind: text}",
     "exp.yaml:1: data.channels: is always 27 for these images; leave it out"),
    ("digits, image_size: 32", "synthetic, image_size: 19, synthetic: {kind: board, classes: 5}",
     "exp.yaml:1: data.synthetic.classes: a board has one class for each point; leave it out"),
    ("digits, image_size: 32", "synthetic, synthetic: {kind: txt}",
     "data.synthetic.kind: expected one of images, board, spectrogram, text, got 'txt', did you mean 'text'?"),
    ("32}\nmodel: {name: vgg16, head: fc, width: 512", "20}\nmodel: {name: speech_cnn",
     "exp.yaml:1: data.image_size: speech_cnn needs at least 29 pixels, got 20"),
    ("vgg16, head: fc, width: 512", "text_cnn", "data.image_size: text_cnn needs at least 123 pixels, got 32"),
    ("vgg16, head: fc, width: 512", "alexnet, variant: notes, lrn: false",
     "exp.yaml:2: model.lrn: applies only when variant is 'paper' or 'single_tower', it is 'notes'"),
    ("vgg16, head: fc, width: 512", "lenet5, variant: original, activation: tanh",
     "exp.yaml:2: model.activation: applies only when variant is 'modern', it is 'original'"),
    ("vgg16, head: fc, width: 512", "lenet5, activation: rely", "model.activation: expected one of relu, leaky_relu,"),
    ("optimizer:", "loss: {name: map, j: 0}\n  optimizer:", "exp.yaml:4: training.loss.j: expected more than 0, got 0"),
    ("optimizer:", "loss: {name: mse}\n  optimizer:", "exp.yaml:4: training.loss.name: unknown name 'mse'"),
    ("image_size: 32", "image_size: &size 32, batch_size: *size", "data.batch_size: aliases (*name) are not accepted"),
]  # fmt: skip

BAD_OVERRIDES = [
    ("foo", "expected an override key=value such as training.epochs=5, got 'foo'"),
    ("a..b=1", "expected an override key=value"),
    (".".join("a" * 10_000) + "=1", "expected an override key=value"),
    (f"data.augment.{'9' * 5_000}=1", "command line: data.augment: expected a list, got a mapping"),
    (
        "training={epochs: 3}",
        "expected a value or a list, got a mapping; name its keys: training.<key>=...",
    ),
    ("training.epochs=!!python/name:os.system", "expected a whole number, got '!!python/name:os.system'"),
    ("training.epochs=[!!python/name:os.system x]", "tags are not accepted"),
    ("data.source=", "data.source: expected text, got nothing"),
    ("training.na\nme={a: 1}", r"override key=value such as training.epochs=5, got 'training.na\nme={a: 1}'"),
    ("model.caf\udce9=1", r"override key=value such as training.epochs=5, got 'model.caf\xe9=1'"),
    ("model.name=\udce9", r"command line: model.name: unknown name '\xe9' (known: lenet5"),
    ("data.source=folder:", "data.source: expected folder:<path>, got 'folder:'"),
    ("data.channels=2", "data.channels: expected 1 (gray) or 3 (color), got 2"),
    ("model.name=VGG19x", "command line: model.name: unknown name 'VGG19x', did you mean 'vgg19'?"),
    (
        "training.epochs=__import__('os')",
        "training.epochs: expected a whole number, got \"__import__('os')\"",
    ),
    ("training.epochs=[1", "command line: training.epochs: not valid YAML: expected a ] that closes the ["),
    ("data.augment.3.pad_crop.padding=1", "command line: data.augment: expected a list, got {'3': "),
    ("data.²=1", "command line: data.²: unknown key"),
    ("model.name=[a]", "command line: model.name: unknown name"),
    ("training.learning_rate.schedule=[x]", "training.learning_rate.schedule: unknown name"),
    ("training.learning_rate.warmup.epochs=", "warmup: expected exactly one of epochs, steps, images, percent, got "),
    ("training.ephocs=3", "command line: training.ephocs: unknown key, did you mean 'epochs'?"),
    ("training.optimizer=sgd", "optimizer: expected a section, got 'sgd'. Write training.optimizer.name=sgd"),
    ("training.learning_rate=0.01", "expected a section, got 0.01. Write training.learning_rate.peak=0.01"),
    (
        "training.optimizer.weight_decay=5e-4",
        "expected a section, got 0.0005. Write training.optimizer.weight_decay.value=0.0005",
    ),
    ("training.epochs=1", "learning_rate.warmup: 2 epochs of warm-up do not fit into 1 epoch of training"),
    ("model=alexnet", "command line: model: expected a section, got 'alexnet'. Write model.name=alexnet"),
    ("training.loss=mse", "got 'mse'. Write training.loss.name=NAME (known: cross_entropy, euclidean, map)"),
    ("training.optimizer=5", "command line: training.optimizer: expected a section, got 5\n"),
    ("training.optimizer=null", "command line: training.optimizer: expected a section, got nothing\n"),
    ("data.augment=rotate", "data.augment: expected a list, got 'rotate'. Write 'data.augment=[rotate]'"),
    (
        "data.source=mnist",
        "<path>, tfds:<name>, python:<FILE.py:function>). A set of TensorFlow Datasets is written tfds:mnist",
    ),
    ("data.source=~/pets", "command line: data.source: unknown source '~/pets'. Write folder:~/pets"),
    ("epochs=5", "command line: epochs: unknown key, did you mean training.epochs=5?"),
    ("batchsize=64", "command line: batchsize: unknown key, did you mean data.batch_size=64?"),
    ("lr=0.1", "command line: lr: unknown key, did you mean training.learning_rate.peak=0.1?"),
    ("learning_rate=0.1", "learning_rate: unknown key, did you mean training.learning_rate.peak=0.1?"),
    ("training.lr=0.1", "training.lr: unknown key, did you mean training.learning_rate.peak=0.1?"),
    ("optimizer.name=adam", "optimizer: unknown key, did you mean training.optimizer.name=adam?"),
    ("loss=map", "command line: loss: unknown key, did you mean training.loss.name=map?"),
    ("trials=5", "command line: trials: unknown key, did you mean search.trials=5?"),
    ("kind=l2", "command line: kind: unknown key (known: chosen, data, logging, logs, "),
    (f"epochs=[{'1, ' * 30}1]", "epochs: unknown key, did you mean training.epochs=...?"),
]


@pytest.mark.parametrize(("section", "line", "message"), BROKEN, ids=[row[1] for row in BROKEN])
def test_an_added_mistake_is_named(mistakes, section, line, message):
    assert any(message in found for found in mistakes(broken(section, line)))


@pytest.mark.parametrize(("old", "new", "message"), REPLACED, ids=[row[1] for row in REPLACED])
def test_a_replaced_value_is_named(mistakes, old, new, message):
    assert any(message in found for found in mistakes(GOOD.replace(old, new, 1)))


def test_all_mistakes_are_reported_together_in_the_order_of_the_file(mistakes):
    found = mistakes(GOOD.replace("digits", "digit").replace("sgd", "sdg"), "training.epochs=0")
    assert [line.partition(": ")[0] for line in found] == ["exp.yaml:1", "exp.yaml:4", "command line"]


TOGETHER = [
    ("image_size: 32, split: {validation: 0, test: 2}", "early_stopping: {patience: 0}",
     ["data.split.test", "training.early_stopping.patience", "training.early_stopping"]),
    ("batch_size: 0, image_size: 16", "ephocs: 3", ["data.batch_size", "data.image_size", "training.ephocs"]),
    ("image_size: 32, normalize: {mean: [1, 2], std: [1], sdt: [2]}", "", ["data.normalize.sdt", "data.normalize"]),
    ("image_size: 32, augment: [{cutout: {size: 40, fil: 1}}, {a: 1}, {5: [5]}, [5], scale_jitter, {3: 3, 4: 4}]", "",
     ["data.augment.0.cutout.fil", "data.augment.1.a", "data.augment.2.5", "data.augment.3", "data.augment.5",
      "data.augment.0", "data.augment.4"]),
    ("synthetic: {kind: board, classes: 5, images: 0}", "", ["data.synthetic.images", "data.synthetic"]),
]  # fmt: skip


@pytest.mark.parametrize(("data", "training", "keys"), TOGETHER, ids=[row[0] for row in TOGETHER])
def test_combinations_are_reported_beside_the_mistakes_of_single_keys(mistakes, data, training, keys):
    found = mistakes(broken("training", training).replace("image_size: 32", data, 1))
    assert [line.split(": ")[1] for line in found] == keys


def test_mistakes_below_a_misspelt_key_are_reported_beside_it(mistakes):
    assert mistakes(GOOD.replace("training:", "trainig:\n  ephocs: 5").replace("0.9", "1.5")) == [
        "exp.yaml:3: trainig: unknown key, did you mean 'training'?",
        "exp.yaml:4: training.ephocs: unknown key, did you mean 'epochs'?",
        "exp.yaml:5: training.optimizer.momentum: expected less than 1, got 1.5",
    ]
    assert mistakes(GOOD.replace("source: digits", "sorce: digits")) == [
        "exp.yaml:1: data.sorce: unknown key, did you mean 'source'?"
    ]
    assert mistakes(GOOD, "trainig.ephocs=5", "trainig.epochs=0") == [
        "command line: trainig: unknown key, did you mean 'training'?",
        "command line: training.ephocs: unknown key, did you mean 'epochs'?",
        "command line: training.epochs: expected at least 1, got 0",
    ]


def test_a_combination_with_a_key_that_has_a_mistake_of_its_own_is_not_judged(mistakes):
    assert len(mistakes(GOOD.replace("0.9", "1.5"))) == 1  # of nesterov, which needs a momentum
    assert len(mistakes(broken("training", "epochs: 0").replace("{epochs: 2}", "{epochs: 20}"))) == 1
    unknown = GOOD.replace("digits", "syntetic").replace("32}", "32, channels: 5, synthetic: {classes: 3}}")
    assert [line.split(": ")[1] for line in mistakes(unknown)] == ["data.source"]


HUGE = "9" * 39


@pytest.mark.parametrize("value", ["{5: 5}", "[[5], {5: 5}]", HUGE, f"-{HUGE}", "1e400", "null", "''", "{}", "[]", "~"])
def test_no_value_is_a_traceback(load, value):
    """At every key, and in the place of every section."""
    data = load(GOOD).experiment.model_dump(mode="json", exclude={"chosen"})

    def paths(section, *above):
        for key, child in section.items():
            yield (*above, key)
            if isinstance(child, dict):
                yield from paths(child, *above, key)

    for path in paths(data):
        changed = json.loads(json.dumps(data))
        section = functools.reduce(dict.__getitem__, path[:-1], changed)
        section[path[-1]] = "VALUE"
        try:
            load(yaml.safe_dump(changed).replace("VALUE", value))
        except ConfigError as error:
            assert "exp.yaml:" in str(error)


def test_files_that_are_no_experiment(tmp_path, mistakes):
    assert "expected a mapping such as" in mistakes("[1, 2]")[0]
    assert mistakes("a: [1")[0].startswith("exp.yaml:1: not valid YAML: expected a ] that closes the [ of this line")
    with pytest.raises(ConfigError, match=r"nope\.yaml: expected an experiment file, found nothing there"):
        load_experiment(tmp_path / "nope.yaml")
    with pytest.raises(ConfigError, match=r"did you mean 'exp\.yaml'\?"):
        load_experiment(tmp_path / "exq.yaml")
    with pytest.raises(ConfigError, match="nor a folder"):
        load_experiment(tmp_path / "gone" / "exp.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: a\nlogs: \xff\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml:2: expected UTF-8 text, got byte 0xff"):
        load_experiment(tmp_path / "latin.yaml")
    (tmp_path / "long.yaml").write_text("# " + "x" * 1_000_001)
    with pytest.raises(ConfigError, match="expected an experiment of a page, got 1,000,003 bytes"):
        load_experiment(tmp_path / "long.yaml")
    with pytest.raises(ConfigError, match="expected an experiment file, got a folder"):
        load_experiment(tmp_path)


def test_an_experiment_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments" / "mine").mkdir(parents=True)
    for name in ("experiments/vgg16", "experiments/mine/best", "here"):
        (tmp_path / f"{name}.yaml").touch()
    meant = {
        "vgg16": "experiments/vgg16.yaml",
        "vgg16.yaml": "experiments/vgg16.yaml",
        "best": "experiments/mine/best.yaml",
        "experiments/vgg16": "experiments/vgg16.yaml",
        "here": "here.yaml",
    }
    for given, path in meant.items():
        with pytest.raises(ConfigError) as caught:
            load_experiment(given)
        assert str(caught.value) == f"{given}: expected an experiment file, found nothing there, did you mean '{path}'?"


def test_numbers_are_read_as_people_write_them(load):
    experiment = load(GOOD.replace("seed", "seed"), "seed=010", "training.learning_rate.peak=1E-2").experiment
    assert (experiment.seed, experiment.training.learning_rate.peak) == (10, 0.01)
    assert load(GOOD).experiment.training.learning_rate.peak == 1e-3


def test_whole_numbers_may_be_written_as_floats(load):
    text = GOOD.replace("32}", "3.2e1, batch_size: 64.0}").replace("training:", "seed: 1e3\ntraining:\n  epochs: 1e3")
    experiment = load(text, "data.augment=[{pad_crop: {padding: 2e0}}]", "training.log_every.steps=1e2").experiment
    data, training = experiment.data, experiment.training
    found = [data.image_size, data.batch_size, data.augment[0].pad_crop.padding, experiment.seed, training.epochs]
    assert found == [32, 64, 2, 1000, 1000] and all(type(number) is int for number in found)
    assert training.log_every.steps == 100
    assert yaml.safe_dump(experiment.identity()).count("1000\n") == 2


def test_a_name_that_comes_from_the_file(tmp_path):
    for name in ("vgg16 (1)", "lr=0.1,wd=5e-4", "кошка", "a@b"):
        (tmp_path / f"{name}.yaml").write_text(GOOD)
        assert load_experiment(tmp_path / f"{name}.yaml").experiment.name == name
    refused = {"a[b]": "'a[b]'", "it's": '"it\'s"', ".x": "'.x'", "a\tb": r"'a\tb'", "\udce9": r"'\xe9'"}
    for name, shown in refused.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(GOOD)
        with pytest.raises(ConfigError) as caught:
            load_experiment(path)
        assert str(caught.value).isprintable()
        cure = "Set another with name: NAME in the file, or name=NAME on the command line"
        assert str(caught.value).endswith(f", got {shown}, the name of the file. {cure}")
        assert load_experiment(path, ["name=x"]).experiment.name == "x"


def test_a_file_whose_name_cannot_be_printed(tmp_path):
    (tmp_path / "near\n.yaml").write_text("a: [1")
    with pytest.raises(ConfigError) as caught:
        load_experiment(tmp_path / "near\n.yaml")
    assert str(caught.value).startswith(rf"{tmp_path}/near\n.yaml:1: not valid YAML")
    with pytest.raises(ConfigError) as caught:
        load_experiment(tmp_path / "neer\n.yaml")
    assert str(caught.value).endswith(
        r"neer\n.yaml: expected an experiment file, found nothing there, did you mean 'near\n.yaml'?"
    )
    with pytest.raises(ConfigError, match=r"nor a folder '.*/go\\ne'$"):
        load_experiment(tmp_path / "go\ne" / "exp.yaml")


def test_a_source_that_is_not_utf_8_repeats_a_run(load):
    source = "folder:/caf\udce9/a\u202eb\nc"
    first = load(GOOD.replace("digits", "folder:/x"), f"data.source={source}", "data.normalize=none")
    assert first.experiment.data.source == source
    text = to_yaml(first.experiment.identity())
    assert text.replace("\n", "").isprintable() and text.isascii()
    assert load(text).experiment.identity() == first.experiment.identity()
    [line] = [line for line in first.describe().splitlines() if "source:" in line]
    assert line.startswith(r'  source: "folder:/caf\uDCE9/a\u202Eb\nc"  ')
    assert "кошка" in to_yaml({"a": ["кошка"]})


def test_an_option_that_the_new_kind_defines_otherwise_takes_its_default(load):
    text = GOOD.replace("nesterov: true", "weight_decay: {value: 0.1, kind: l2}")
    loaded = load(text, "training.optimizer.name=adamw")
    assert loaded.dropped == ("training.optimizer.momentum", "training.optimizer.weight_decay")
    assert loaded.experiment.training.optimizer.weight_decay.model_dump() == {"value": 0.004, "kind": "decoupled"}
    assert re.search(r"weight_decay:\n +value: 0.004 +# default\n +kind: decoupled +# default\n", loaded.describe())
    loaded = load(text, "training.optimizer.name=adamw", "training.optimizer.weight_decay.value=0.2")
    assert loaded.dropped == ("training.optimizer.momentum", "training.optimizer.weight_decay.kind")
    assert loaded.experiment.training.optimizer.weight_decay.model_dump() == {"value": 0.2, "kind": "decoupled"}


def test_a_change_of_kind_keeps_shared_options_and_drops_the_rest(load):
    loaded = load(GOOD.replace("nesterov: true", "weight_decay: {value: 0.1}"), "training.optimizer.name=adam")
    assert loaded.dropped == ("training.optimizer.momentum",)
    assert loaded.experiment.training.optimizer.weight_decay.value == 0.1
    loaded = load(GOOD, "training.learning_rate.warmup.steps=7")
    assert loaded.dropped == ("training.learning_rate.warmup.epochs",)
    assert loaded.experiment.training.learning_rate.warmup.chosen == ("steps", 7)
    loaded = load(GOOD, "model.name=lenet5")
    assert set(loaded.dropped) == {"model.head", "model.width"}
    synthetic = GOOD.replace("digits", "synthetic").replace("32}", "32, synthetic: {classes: 3}}")
    assert load(synthetic, "data.source=digits").dropped == ("data.synthetic",)
    assert load(GOOD, "model.head=gap").dropped == ("model.width",)
    lenet = GOOD.replace("vgg16, head: fc, width: 512", "lenet5, activation: tanh, pooling: average")
    assert set(load(lenet, "model.variant=original").dropped) == {"model.activation", "model.pooling"}
    losses = GOOD.replace("optimizer:", "loss: {name: map, j: 2.0}\n  optimizer:")
    assert load(losses, "training.loss.name=euclidean").dropped == ("training.loss.j",)
    constants = GOOD.replace("32}", "32, normalize: {mean: [1], std: [2]}}").replace(
        "vgg16, head: fc, width: 512", "mlp"
    )
    loaded = load(constants, "data.normalize.pca.components=5")
    assert set(loaded.dropped) == {"data.normalize.mean", "data.normalize.std"}
    assert loaded.experiment.data.normalize.pca.components == 5
    augmented = GOOD.replace("32}", "32, augment: [{translate: {height: 0.2}}]}", 1)
    loaded = load(augmented, "data.augment.0.pad_crop.padding=2")
    assert loaded.dropped == ("data.augment.0.translate",)
    assert loaded.experiment.data.augment[0].chosen[0] == "pad_crop"


def test_options_of_a_loss_without_a_name_are_those_of_the_network_s_own(load):
    smooth = GOOD.replace("optimizer:", "loss: {label_smoothing: 0.1}\n  optimizer:")
    assert load(smooth).experiment.loss == ("cross_entropy", {"label_smoothing": 0.1})
    assert load(GOOD, "training.loss.label_smoothing=0.2").experiment.loss == (
        "cross_entropy",
        {"label_smoothing": 0.2},
    )
    original = GOOD.replace("vgg16, head: fc, width: 512", "lenet5, variant: original")
    penalty = original.replace("optimizer:", "loss: {j: 2.0}\n  optimizer:")
    assert load(penalty).experiment.loss == ("map", {"j": 2.0})
    assert load(original.replace("optimizer:", "loss: {}\n  optimizer:")).experiment.loss == ("map", {"j": 1.0})
    wrong = original.replace("optimizer:", "loss: {label_smoothing: 0.1}\n  optimizer:")
    with pytest.raises(ConfigError, match=r"exp.yaml:4: training.loss.label_smoothing: unknown key \(known: j, name\)"):
        load(wrong)
    with pytest.raises(ConfigError, match="exp.yaml:4: training.loss.label_smoothing: expected less than 1, got 1.5"):
        load(smooth.replace("0.1", "1.5"))


def test_an_override_of_an_inapplicable_option_stays_a_mistake(mistakes):
    found = mistakes(GOOD, "training.optimizer.name=adam", "training.optimizer.momentum=0.5")
    assert found[0].startswith("command line: training.optimizer.momentum: unknown key")


def test_overrides_reach_lists_and_new_sections(load):
    augmented = GOOD.replace("image_size: 32", "image_size: 32, augment: [{pad_crop: {padding: 4}}, flip_horizontal]")
    experiment = load(augmented, "data.augment.0.pad_crop.padding=2", "data.split.test=0.5").experiment
    assert experiment.data.augment[0].pad_crop.padding == 2
    assert experiment.data.split.test == 0.5
    assert load(GOOD, "data.augment=[flip_horizontal]").experiment.data.augment[0].chosen[0] == "flip_horizontal"
    assert load(
        "data: {source: digits}\nmodel: {name: lenet5}",
        "training.learning_rate.peak=0.1",
        "data.image_size=28",
    )


@pytest.mark.parametrize(("override", "message"), BAD_OVERRIDES)
def test_bad_overrides(mistakes, override, message):
    assert any(message in f"{line}\n" for line in mistakes(GOOD, override))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--epochs", "5"], "No such option '--epochs'. Write training.epochs=5"),
        (["--lr=0.1"], "No such option '--lr'. Write training.learning_rate.peak=0.1"),
        (["--batch-size", "64"], "No such option '--batch-size'. Write data.batch_size=64"),
        (["--training.epochs", "5"], "No such option '--training.epochs'. Write training.epochs=5"),
        (["--nesterov"], "No such option '--nesterov'. Write training.optimizer.nesterov=VALUE"),
        (["--nwe"], "No such option '--nwe'. Did you mean '--new'?"),
        (["--gpus", "4"], "No such option '--gpus'."),
    ],
)
def test_an_option_that_is_an_override(kpipe, options, said):
    code, out, err = kpipe("run", "exp.yaml", *options)
    assert (code, out, err.splitlines()[-1]) == (2, "", f"Error: {said}")


def test_two_overrides_of_one_duration(mistakes):
    overrides = ("training.learning_rate.warmup.steps=1", "training.learning_rate.warmup.percent=3")
    assert "expected exactly one of epochs, steps, images, percent" in mistakes(GOOD, *overrides)[0]


def test_an_override_beyond_a_list(mistakes):
    empty = GOOD.replace("image_size: 32", "image_size: 32, augment: []")
    assert "expected no key: the list is empty, got 0" in mistakes(empty, "data.augment.0=pad_crop")[0]
    augmented = GOOD.replace("image_size: 32", "image_size: 32, augment: [flip_horizontal]")
    assert "expected the number of an entry, 0 to 0, got 4" in mistakes(augmented, "data.augment.4=pad_crop")[0]


def test_early_stopping_needs_a_validation_split(mistakes):
    text = broken("training", "early_stopping: {patience: 2}")
    found = mistakes(text, "data.split.validation=0")
    assert found == ["exp.yaml:4: training.early_stopping: needs a validation split, data.split.validation is 0"]


def test_plateau_needs_a_validation_split(mistakes):
    text = GOOD.replace("image_size: 32", "image_size: 32, split: {validation: 0}").replace("cosine", "plateau")
    need = "plateau needs a validation split, data.split.validation is 0"
    assert mistakes(text) == [f"exp.yaml:5: training.learning_rate.schedule: {need}"]


def test_adamw_decays_decoupled_unless_it_is_told(load):
    optimizer = load(GOOD, "training.optimizer.name=adamw", "training.optimizer.weight_decay.value=0.1")
    assert optimizer.experiment.training.optimizer.weight_decay.kind == "decoupled"


def test_print_config_says_where_each_value_came_from(load):
    text = load(GOOD, "seed=3").describe()
    origins = dict(line.split("  # ") for line in text.splitlines() if "#" in line)
    found = {key.split(":")[0].strip(): origin for key, origin in origins.items()}
    assert found["seed"] == "command line"
    assert found["momentum"].endswith("exp.yaml:4")
    assert found["augment"] == "default"
    assert found["batch_size"] == "default"


def test_the_resolved_experiment_is_an_experiment_file(load, tmp_path):
    for overrides in (
        ("model.head=gap",),
        (),
        ("training.optimizer.name=adamw", "training.optimizer.weight_decay=null"),
        ("model.name=mlp", "data.normalize.pca.components=5"),
        ("data.normalize=zca",),
    ):
        first = load(GOOD, *overrides).experiment
        again = load(yaml.safe_dump(first.identity())).experiment
        assert again.identity() == first.identity()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_experiments_take_every_optimizer_and_schedule(path):
    assert SHIPPED
    for optimizer, schedule in zip(itertools.cycle(OPTIMIZERS), SCHEDULES, strict=False):
        overrides = (f"training.optimizer.name={optimizer}", f"training.learning_rate.schedule={schedule}")
        training = load_experiment(path, overrides).experiment.training
        assert (training.optimizer.name, training.learning_rate.schedule) == (optimizer, schedule)
        assert "name" not in options(training.optimizer)


def test_every_row_can_be_resolved():
    for table in TABLES.values():
        for row in table.values():
            assert callable(row.load())


def test_the_schema_names_every_choice():
    schema = json.loads(json_schema())
    assert "name" not in schema["required"]
    text = json.dumps(schema)
    for kind in ("models", "augmentations", "optimizers", "schedules"):
        for name in TABLES[kind]:
            assert f'"{name}"' in text, name


LIGHT = "import sys; from kpipe.cli import main; code = main({}); "
LIGHT += "assert not {{'tensorflow', 'keras', 'numpy'}} & set(sys.modules); sys.exit(code)"


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["list"], 0), (["schema"], 0), (["run", "exp.yaml"], 2)]
)
def test_light_verbs_import_neither_tensorflow_nor_numpy(tmp_path, arguments, code):
    (tmp_path / "exp.yaml").write_text(GOOD.replace("sgd", "sdg"))
    done = subprocess.run([sys.executable, "-c", LIGHT.format(arguments)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("did you mean 'sgd'?" in done.stderr) == (code == 2)
    assert "Traceback" not in done.stderr


# Each [arguments]: the exit code or the traceback, what was printed, heavy modules there afterwards.
DOOR = """
import contextlib, io, json, sys, traceback
from kpipe.cli import main
for arguments in json.load(sys.stdin):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            code = main(["run", *arguments])
        except BaseException:
            code = traceback.format_exc()
    heavy = sorted({"tensorflow", "keras", "numpy"} & set(sys.modules))
    print(json.dumps([code, out.getvalue(), error.getvalue(), heavy]))
"""


def errors_of(folder, calls):
    """What `kpipe run` says to each of the calls, in one process, once it is sure that nothing else has happened."""
    before = sorted(folder.rglob("*"))
    door = [sys.executable, "-c", DOOR]
    done = subprocess.run(door, cwd=folder, input=json.dumps(calls), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(folder.rglob("*")) == before
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for call, (code, out, error, heavy) in zip(calls, answers, strict=True):
        assert (code, out, heavy) == (2, "", []), call
        assert "Traceback" not in error, call
    return [error for _, _, error, _ in answers]


def test_every_mistake_is_refused_at_the_door_and_leaves_nothing_behind(tmp_path):
    rows = [(broken(section, line), [], message) for section, line, message in BROKEN]
    rows += [(GOOD.replace(old, new, 1), [], message) for old, new, message in REPLACED]
    rows += [(GOOD, [override], message) for override, message in BAD_OVERRIDES]
    assert len(rows) >= 60
    for i, (text, _, _) in enumerate(rows):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}" / "exp.yaml").write_text(text, encoding="utf-8")
    calls = [[f"{i}/exp.yaml", *overrides] for i, (_, overrides, _) in enumerate(rows)]
    about_no_key = ("merge keys", "expected a name as key", "expected an override key=value", "not valid YAML")
    for i, ((_, _, message), error) in enumerate(zip(rows, errors_of(tmp_path, calls), strict=True)):
        error = error.replace(f"{i}/exp.yaml:", "exp.yaml:")
        assert message in error
        key = "" if any(text in error for text in about_no_key) else r"[a-z_]+(\.\w+)*: "
        for line in error.splitlines():
            assert re.match(rf"(exp\.yaml:\d+|command line): {key}", line), line


CANARY = "!!python/object/apply:os.system ['touch canary']"
LAUGHS = "\n".join(
    ["l0: &l0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    + [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10)]
)
HOSTILE = {
    "laughs": (LAUGHS, "l1.0: aliases (*name) are not accepted"),
    "laughing": (f"{LAUGHS}\n{GOOD}logs: *l9\n", "\n... and 81 more\n"),
    "circle": (GOOD + "logs: &circle [*circle]\n", ":6: logs.0: aliases (*name) are not accepted"),
    "merged": (GOOD + "logs: {<<: &a {b: 1}, c: *a}\n", ":6: logs: merge keys (<<) are not accepted"),
    "root": (CANARY, ":1: "),
    "value": (GOOD + f"seed: {CANARY}\n", ":6: seed: tags are not accepted, got !!python/object/apply:os.system"),
    "key": (GOOD + f"? {CANARY}\n: 1\n", ":6: "),
    "entry": (GOOD + f"logs: [{CANARY}]\n", ":6: logs.0: tags are not accepted, got !!python/object/apply:os.system"),
    "new": (GOOD + "seed: !!python/object/new:os.system [touch canary]\n", ":6: seed: tags are not accepted"),
    "module": (GOOD + "seed: !!python/module:antigravity x\n", ":6: seed: tags are not accepted"),
    "shell": (GOOD + "name: $(touch canary)\n", ":6: name: expected letters, digits, spaces and . , _ + - = @ ( )"),
    "brackets": (GOOD + "logs: " + "[" * 10_000 + "]" * 10_000, ":6: expected at most 20 levels of nesting"),
    "open": (GOOD + "logs: " + "[" * 10_000, ":6: expected at most 20 levels of nesting"),
    "braces": (GOOD + "logs: " + "{a: " * 10_000 + "}" * 10_000, ":6: expected at most 20 levels of nesting"),
    "dashes": ("- " * 10_000 + "a", ":1: expected at most 20 levels of nesting"),
    "long": ("# " + "x" * 2_000_000, ": expected an experiment of a page, got 2,000,002 bytes"),
    "nul": (GOOD + "seed: \0 1\n", ":6: not valid YAML: unacceptable character #x0000"),
    "escaped": (GOOD + 'logs: "a\\0b"\n', ":6: logs: expected text without NUL, got 'a\\x00b'"),
    "colors": (GOOD + '"\\e[2J": 1\n', ":6: expected a name as key, got '\\x1b[2J'"),
    "two": (GOOD + "---\n" + GOOD, ":6: not valid YAML: expected one experiment in a file, got"),
    "empty": ("", ":1: expected a mapping such as"),
}


def test_hostile_files_are_refused_at_the_door_and_leave_nothing_behind(tmp_path):
    for name, (text, _) in HOSTILE.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    messages = {name: message for name, (_, message) in HOSTILE.items()}
    messages |= {
        "folder": "expected an experiment file, got a folder",
        "loop": "cannot be read: Too many levels of symbolic",
    }
    found = errors_of(tmp_path, [[f"{name}.yaml"] for name in messages])
    for (name, message), error in zip(messages.items(), found, strict=True):
        assert error.startswith(f"{name}.yaml:")
        assert message in error


def test_load_dataset_has_the_defaults_of_the_schema():
    from kpipe.data.loading import load_dataset

    section = DataConfig(source="digits")
    schema = section.model_dump() | section.split.model_dump()
    defaults = {name: parameter.default for name, parameter in inspect.signature(load_dataset).parameters.items()}
    shared = defaults.keys() & schema.keys()
    assert shared >= {"image_size", "channels", "cache", "cache_gigabytes", "skip_limit", "validation", "test"}
    assert {name: defaults[name] for name in shared} == {name: schema[name] for name in shared}
