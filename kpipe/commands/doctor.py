"""`kpipe doctor`: versions, devices, and a tiny network trained to its end on synthetic data."""

import platform
import tempfile
from importlib.metadata import version

from rich.console import Console

from kpipe.config.schema import Experiment
from kpipe.console import Screen
from kpipe.errors import EnvironmentFault, Interrupted
from kpipe.experiment import train
from kpipe.host import nvidia_driver_version
from kpipe.training.device import describe_cuda, describe_device, describe_gpus, gpu_hint
from kpipe.training.precision import explain_auto, resolve_precision

_PACKAGES = ("tensorflow", "keras", "keras-tuner", "tensorboard", "tensorflow-datasets", "numpy", "pydantic")
_TINY = {
    "name": "doctor",
    "data": {"source": "synthetic", "image_size": 16, "synthetic": {"classes": 2, "images": 400}},
    "model": {"name": "lenet5"},
    "training": {"epochs": 5},
}
_LEAST_ACCURACY = 0.8  # chance is 0.5


def examine(screen: Screen | None = None) -> None:
    """Check this installation and report on it.

    Raises:
        EnvironmentFault: the tiny network did not learn.
    """
    screen = screen or Screen()
    rows = {"kpipe": version("kpipe"), "python": f"{platform.python_version()}, {platform.platform()}"}
    rows |= {name: version(name) for name in _PACKAGES}
    driver, cuda, gpus = nvidia_driver_version(), describe_cuda(), describe_gpus()
    rows |= {"NVIDIA driver": driver} if driver else {}
    rows |= {"CUDA": f"{cuda} (TensorFlow's build)"} if cuda and (driver or gpus) else {}
    rows |= {f"GPU {number}": gpu for number, gpu in enumerate(gpus)} or {"GPU": "none that TensorFlow sees"}
    rows |= {"device": describe_device(), "precision": f"auto is {resolve_precision('auto')}: {explain_auto()}"}
    screen.line("kpipe doctor", style="bold")
    width = max(map(len, rows))
    for name, value in rows.items():
        screen.prose(f"  {name:<{width}} {value}", indent=width + 3)
    if hint := gpu_hint():
        screen.prose(hint)
    with tempfile.TemporaryDirectory() as logs:
        experiment = Experiment.model_validate({**_TINY, "logs": logs})
        try:
            result = train(experiment, screen=Screen(Console(quiet=True)))
        except Interrupted as stop:
            raise Interrupted("interrupted; nothing is left of the check", stop.exit_code) from None
    accuracy, seconds = result.summary["test"]["accuracy"], result.summary["seconds"]
    if accuracy < _LEAST_ACCURACY:
        raise EnvironmentFault(
            f"A tiny network on synthetic data reached {accuracy:.2f} accuracy, expected at least {_LEAST_ACCURACY}. "
            "This installation computes wrongly: install kpipe with constraints.txt into a new environment."
        )
    device, speed = "GPU" if gpus else "CPU", result.summary["images_per_second"]
    screen.prose(
        f"A tiny network was trained on the {device}, saved and evaluated in {seconds:.0f} s: accuracy {accuracy:.2f}, "
        f"{speed:,.0f} images/s. All is well."
    )
