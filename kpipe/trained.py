"""A trained network on disk, ready for use: a finished run, or a model file with its classes.txt.

`evaluate`, `predict` and `export` begin here. A run's network computes exactly what it computed at the end of the run:
in the same precision, from the same layers. Only a user's own network is always computed in float32.
"""

from dataclasses import dataclass
from pathlib import Path

import keras
from pydantic import ValidationError

from kpipe.caller import option
from kpipe.catalog.formats import CARD
from kpipe.catalog.networks import find_network
from kpipe.catalog.own_code import is_own
from kpipe.config.schema import DataConfig, Experiment
from kpipe.console import counted
from kpipe.errors import ConfigError, DataError, first_line
from kpipe.models.building import build_model
from kpipe.models.keras_files import load_keras_file
from kpipe.models.portable import copy_weights
from kpipe.models.preprocessing import STANDARDIZE, Normalization, Standardize, load_normalization
from kpipe.models.structure import find_squashing
from kpipe.names import path_shown
from kpipe.runs.dataset import NAMES
from kpipe.runs.directory import Run
from kpipe.runs.machine import resolve_auto
from kpipe.runs.model_files import TrainedFile, find_trained, remedy_for_damage
from kpipe.training.losses import CrossEntropy, make_loss
from kpipe.training.metrics import make_metrics
from kpipe.training.precision import gpu_capability, precision_scope


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network, and what its use needs to know."""

    file: Path
    """The model file."""
    run: Run | None
    """Run directory that the file lies in; None: it lies elsewhere."""
    experiment: Experiment | None
    """What the run trained, resolved; None without a run."""
    model: keras.Model
    """Raw images [B, H, W, C], 0..255, to logits float32 [B, K]. Compiled with the loss and the metrics of the run."""
    class_names: tuple[str, ...]
    """K names, in the order of the logits."""
    image_shape: tuple[int, int, int]
    """(H, W, C) of what the network sees."""
    data: DataConfig
    """How its images are read: as in the run. For a model file alone as its model card says, else the defaults; its
    folder is their source."""
    notes: tuple[str, ...] = ()
    """Lines for the user."""

    @property
    def weights(self) -> str | None:
        """Kind of the weights, `raw` or `averaged`; None: not known."""
        if self.run is None:
            return None
        if self.file == self.run.model:
            return self.run.read_json("summary.json").get("weights")
        return self.file.stem.removeprefix("model_")


def takes_photographs(trained: Trained) -> bool:
    """Return whether a network is one for square images in gray or color, not for boards, sounds or texts."""
    height, width, channels = trained.image_shape
    return height == width and channels in (1, 3) and not _kind_of(trained)


def _kind_of(trained: Trained) -> str | None:
    """Return what the data are where they are no photographs, as far as their source says so."""
    source = getattr(trained.data, trained.data.source.partition(":")[0], None)
    return source.kind if source and source.native.has_fixed_channels else None


def check_takes_files(trained: Trained, remedy: str) -> None:
    """Check that a network is one for photographs.

    Args:
        trained: the network.
        remedy: ends the message.

    Raises:
        ConfigError: it takes boards, sounds or texts, which no image file can hold.
    """
    height, width, channels = trained.image_shape
    kind = f" ({kind})" if (kind := _kind_of(trained)) else ""
    if not takes_photographs(trained):
        raise ConfigError(
            f"{path_shown(trained.file)}: expected a network of square images in gray or color, got one of "
            f"{height}x{width}x{channels}{kind}. {remedy}"
        )


def load_trained(
    path: str | Path, *, weights: str = "best", image_size: int | None = None, resize: str | None = None
) -> Trained:
    """Load a trained network for use.

    Args:
        path: the directory of a finished run, one of its model files, or a .keras file with a classes.txt beside it.
            Such a file takes raw images, 0..255, and returns logits. A model_card.json beside it, as `kpipe.export`
            writes it, says how its images are read.
        weights: of a run that has averaged its weights: `raw`, `averaged`, or `best`, the better of the two.
        image_size: side of the images in pixels, for a model file outside a run that takes images of any size.
        resize: how an image becomes square, for a model file outside a run; default: as the card says, else `crop`.

    Returns:
        The network and what its use needs to know.

    Raises:
        ConfigError: there is no finished run or model, the file is damaged or has code of its own, it does not
            turn images into logits, the run has no such weights, or an argument does not belong to what was given.
        DataError: classes.txt is missing, damaged, or has other classes than the network.
    """
    found = find_trained(path, weights=weights, image_size=image_size, resize=resize)
    return _load_run(found) if found.run else _load_file(found, image_size, resize)


def load_as_saved(
    path: str | Path, *, weights: str = "best", image_size: int | None = None, resize: str | None = None
) -> Trained:
    """Load a trained network as its file has it: in float32, and of the layers that Keras's own format can hold.

    The arguments, the result and the errors are those of `load_trained`.
    """
    found = find_trained(path, weights=weights, image_size=image_size, resize=resize)
    if found.run is None:
        return _load_file(found, image_size, resize)
    model, experiment = _load_of_run(found), found.experiment
    return Trained(
        found.file, found.run, experiment, model, found.class_names, _find_shape(found, model), experiment.data
    )


def _load_of_run(found: TrainedFile) -> keras.Model:
    """Load the model file of a run, and check it."""
    saved = _load_saved(found)
    _check_class_names(found, saved)
    return saved


def _find_shape(found: TrainedFile, saved: keras.Model) -> tuple[int, int, int]:
    """Return (H, W, C) of the images of a run, whose file may take any size."""
    return tuple(found.run.read_json("summary.json").get("image") or saved.input_shape[1:])


def _load_run(found: TrainedFile) -> Trained:
    run, file = found.run, found.file
    experiment, notes = _resolve(found.experiment)
    saved = _load_of_run(found)
    shape = _find_shape(found, saved)
    normalization = load_normalization(run.constants, shape)
    if normalization is None:
        raise ConfigError(
            f"{path_shown(run.constants)}: expected the constants of the first layer, got a file that is damaged or "
            f"gone. Restore it, or give the model file outside the run, with {path_shown(run.path / NAMES)} beside it"
        )
    if is_own(experiment.model.name):
        model, notes = _restore_first_layer(saved, normalization), _describe_precision(experiment)
    else:
        model = _build(found, experiment, shape, normalization)
        _copy_weights(file, saved, model)
    _compile(model, make_loss(*experiment.loss), len(found.class_names))
    return Trained(file, run, experiment, model, found.class_names, shape, experiment.data, notes)


def _resolve(experiment: Experiment) -> tuple[Experiment, tuple[str, ...]]:
    """Return the experiment in a precision that this machine computes in, and what the user must know of it."""
    chosen = experiment.chosen
    if chosen is None or chosen.precision != "mixed_float16" or gpu_capability() is not None:
        return resolve_auto(experiment), ()
    notes = (
        "the network is computed in float32, since TensorFlow sees no GPU; the run computed in mixed_float16, so that "
        "its own numbers may differ a little",
    )
    return experiment.model_copy(update={"chosen": chosen.model_copy(update={"precision": "float32"})}), notes


def _load_saved(found: TrainedFile) -> keras.Model:
    """Load the model file of a run. The user's own code is run only where a layer is defined in it."""
    remedy = remedy_for_damage(found.run, found.file)
    try:
        return load_keras_file(found.file, remedy=remedy)
    except ConfigError:
        if not is_own(found.experiment.model.name):
            raise
        find_network(found.experiment.model.name)  # it registers its layers
        return load_keras_file(found.file, remedy=remedy)


def _build(
    found: TrainedFile, experiment: Experiment, shape: tuple[int, int, int], normalization: Normalization
) -> keras.Model:
    with precision_scope(experiment.chosen.precision):
        return build_model(
            experiment.model.name,
            experiment.network_options,
            input_shape=shape,
            classes=len(found.class_names),
            normalization=normalization,
        )


def _restore_first_layer(saved: keras.Model, normalization: Normalization) -> keras.Model:
    """Return a saved network with the first layer that it was trained with, which rounds otherwise.

    The function of a user's own network is not called: it may have changed since, or be gone.
    """

    def restore(layer: keras.Layer) -> keras.Layer:
        is_saved_form = isinstance(layer, keras.layers.Rescaling) and layer.name == STANDARDIZE
        return Standardize(normalization.mean, normalization.std, name=layer.name) if is_saved_form else layer

    return keras.models.clone_model(saved, clone_function=restore)


def _describe_precision(experiment: Experiment) -> tuple[str, ...]:
    precision = experiment.chosen.precision
    if precision == "float32":
        return ()
    return (
        f"the network is computed in float32, as its file keeps it; the run computed in {precision}, so that its own "
        "numbers may differ a little",
    )


def _copy_weights(file: Path, saved: keras.Model, model: keras.Model) -> None:
    """Copy the weights of a file into the network that was built for them; raise ConfigError where they do not fit."""
    needed = keras.Model(model.inputs, model.outputs[0]).layers  # without auxiliary heads, which are not saved
    missing = {layer.name for layer in needed if layer.weights} - {layer.name for layer in saved.layers}
    problem = f"none of the layer {min(missing)}" if missing else None
    try:
        copy_weights(saved, model)
    except ValueError as error:
        problem = problem or f"others: {first_line(error)}"
    if problem:
        raise ConfigError(
            f"{path_shown(file)}: expected the weights of the network in config.yaml beside it, got {problem}. Is it "
            "the file of another run?"
        )


def _load_file(found: TrainedFile, image_size: int | None, resize: str | None) -> Trained:
    file = found.file
    model = load_keras_file(file)
    _check_form(file, model)
    _check_class_names(found, model)
    height, width, channels = model.input_shape[1:]
    if height and image_size not in (None, height):
        raise ConfigError(
            f"{option('image_size')}: expected the {height} pixels of {path_shown(file)}, got {image_size}"
        )
    card = found.images
    sides = (height or image_size, width or image_size)
    try:
        if not all(sides):
            sides = tuple(card.get("image_size", sides))
        if not all(sides):
            raise ConfigError(
                f"{option('image_size')}: expected the side of the images in pixels, since {path_shown(file)} takes "
                "any, got none"
            )
        written = {name: card[name] for name in ("stored_size", "resize", "background") if name in card}
        if list(sides) != card.get("image_size"):
            written.pop("stored_size", None)  # that of another size
        written |= {"resize": resize} if resize else {}
        data = DataConfig(source=f"folder:{file.parent}", image_size=sides[0], channels=channels, **written)
    except (ValidationError, TypeError):
        raise DataError(
            f"{path_shown(file.parent / CARD)}: expected how images are read, as kpipe export writes it, got "
            "something else. Restore the file, or remove it"
        ) from None
    _compile(model, CrossEntropy(), len(found.class_names))
    notes = () if card or sides[0] != sides[1] else (_describe_reading(data, sides[0]),)
    return Trained(file, None, None, model, found.class_names, (*sides, channels), data, notes)


def _describe_reading(data: DataConfig, side: int) -> str:
    """Return how images are read for a file that does not say how those of its training were."""
    return (
        f"no {CARD} says how the images of its training were read; here they become {side}x{side} pixels by "
        f"{option('resize', data.resize)}, and transparent pixels {data.background}"
    )


def _check_form(file: Path, model: keras.Model) -> None:
    """Raise ConfigError for a network that does not turn a batch of images into logits."""
    inputs, outputs = ([tuple(each.shape) for each in tensors or ()] for tensors in (model.inputs, model.outputs))
    if len(inputs) != 1 or len(inputs[0]) != 4 or not inputs[0][3]:
        got = " and ".join(map(str, inputs)) or "none"
        raise ConfigError(f"{path_shown(file)}: expected a network of images [B, H, W, C], got input {got}")
    if len(outputs) != 1 or len(outputs[0]) != 2 or (outputs[0][1] or 0) < 2:
        got = " and ".join(map(str, outputs))
        raise ConfigError(
            f"{path_shown(file)}: expected one output, a logit for each of two classes or more, [B, K], got {got}"
        )
    last, squashing = find_squashing(model)
    if squashing:
        remedy = (
            f"model.get_layer({last.name!r}).activation = keras.activations.linear"
            if hasattr(last, "activation")
            else f"model = keras.Model(model.inputs, model.get_layer({last.name!r}).input)"
        )
        raise ConfigError(
            f"{path_shown(file)}: expected logits, got a network that ends in {squashing} (layer {last.name}). Save it "
            f"again after {remedy}"
        )


def _check_class_names(found: TrainedFile, model: keras.Model) -> None:
    classes, names = model.outputs[0].shape[-1], len(found.class_names)
    if names != classes:
        raise DataError(
            f"{path_shown(found.file.parent / NAMES)}: expected the {counted(classes, 'class')} of the network, got "
            f"{names:,}"
        )


def _compile(model: keras.Model, loss: keras.losses.Loss, classes: int) -> None:
    model.compile(loss=loss, metrics=make_metrics(classes), jit_compile=False)
