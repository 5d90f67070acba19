"""The command line: `kpipe VERB`. Each verb imports what it needs when it is called, so that help costs nothing."""

import atexit
import errno
import gc
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kpipe import __version__
from kpipe.caller import on_command_line
from kpipe.catalog.evaluation import ON_ERROR, PROTOCOLS, RESIZES, WEIGHTS
from kpipe.catalog.explanations import EXPLANATIONS, check_kinds
from kpipe.catalog.formats import FORMATS
from kpipe.errors import ConfigError, DataError, EnvironmentFault, KpipeError, did_you_mean
from kpipe.names import path_shown, printable, quoted, shell_quoted
from kpipe.quiet_import import LOG_LEVEL
from kpipe.signals import Stop, ignore_repetitions, stop_signals
from kpipe.streams import Output, announce, hold_back_libraries, quiet_streams

if TYPE_CHECKING:
    from kpipe.config.loading import Loaded

_LOADING = "loading TensorFlow ..."
_SAVING = ("run", "finish", "search")  # verbs that save their work on the way
_CONTEXT = {"help_option_names": ["-h", "--help"]}
_experiment = click.argument("experiment", metavar="EXPERIMENT.yaml")
_overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
_weights = click.option(
    "--weights",
    type=click.Choice(WEIGHTS),
    default="best",
    show_default=True,
    help="Which weights of a run that has averaged them.",
)
_image_size = click.option(
    "--image-size", type=click.IntRange(1), help="Side of the images in pixels, for a model file that takes any."
)
_resize = click.option("--resize", type=click.Choice(RESIZES), help="How an image becomes square, for a model file.")
_HOW_LOADED = ("weights", "image_size", "resize")  # options of `load_trained`
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="kpipe")
def cli() -> None:
    """Train the classic convolutional networks with Keras 3.

    One YAML file describes an experiment. One command trains it, logs it to TensorBoard and resumes it after an
    interruption. Try: kpipe run experiments/quickstart.yaml
    """


@cli.command()
@click.argument("experiment", metavar="EXPERIMENT.yaml", required=False)
@_overrides
@click.option("--new", is_flag=True, help="Start another run instead of resuming an unfinished one.")
@click.option("--resume", metavar="RUN", help="Resume this run directory; EXPERIMENT.yaml may be left out.")
@click.option("--print-config", is_flag=True, help="Print every value and where it came from. Train nothing.")
@click.pass_obj
def run(
    output: Output,
    experiment: str | None,
    overrides: tuple[str, ...],
    new: bool,
    resume: str | None,
    print_config: bool,
) -> None:
    """Train an experiment, or resume it if it was interrupted.

    Any key of the file can be overridden: kpipe run experiments/vgg16.yaml training.epochs=3 data.batch_size=64

    --resume RUN resumes a run by hand, and extends a finished one: kpipe run --resume RUN training.epochs=20
    """
    if not print_config:
        announce(_LOADING)
    from kpipe.config.loading import load_experiment
    from kpipe.files import expand_path
    from kpipe.runs.resume import load_resumed

    if resume is not None and experiment is not None and "=" in experiment and not os.path.exists(experiment):
        experiment, overrides = None, (experiment, *overrides)
    if resume is None and experiment is None:
        raise click.UsageError("Missing argument 'EXPERIMENT.yaml'.")
    if resume is not None and new:
        raise click.UsageError("--new and --resume: expected one of them, got both.")
    path = None if resume is None else expand_path(resume, "--resume")
    loaded = load_experiment(experiment, overrides) if path is None else load_resumed(path, experiment, overrides)
    _say_what_was_dropped(loaded, mark="# " if print_config else "")
    if print_config:
        click.echo(loaded.describe())
        return
    output.is_needed = False
    _check_folders(loaded)
    _check_source(loaded, resumed=path)
    with _quietly():
        from kpipe.experiment import train
        from kpipe.runs.directory import label_of
        from kpipe.runs.options import RunOptions

        train(loaded.experiment, RunOptions(new=new, resume=path, label=label_of(overrides)))


@cli.command(short_help="Finish an interrupted run as it stands.")
@click.argument("run_directory", metavar="RUN")
@_overrides
@click.pass_obj
def finish(output: Output, run_directory: str, overrides: tuple[str, ...]) -> None:
    """Finish an interrupted run without training further: evaluate its best weights, draw figures, write model.keras.

    If you want to train it further later: kpipe run --resume RUN
    """
    announce(_LOADING)
    from kpipe.files import expand_path
    from kpipe.runs.resume import load_unfinished

    path = expand_path(run_directory, "RUN")
    loaded = load_unfinished(path, overrides)
    output.is_needed = False
    _check_folders(loaded)
    _check_source(loaded)
    with _quietly():
        from kpipe.experiment import train
        from kpipe.runs.options import RunOptions

        train(loaded.experiment, RunOptions(resume=path, finish=True))


@cli.command(short_help="Search over any key: learning rate, optimizer, ...")
@_experiment
@_overrides
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Trials trained at the same time."
)
@click.option("--new", is_flag=True, help="Start another search instead of resuming one.")
@click.pass_obj
def search(output: Output, experiment: str, overrides: tuple[str, ...], workers: int, new: bool) -> None:
    """Search over any key of the file. The best trial is written to best.yaml, which `kpipe run` takes.

    The section `search` of the file says what is tried. Without it, learning rate and optimizer are. Any of it can be
    overridden: kpipe search experiments/vgg16.yaml search.method=hyperband search.space.data.batch_size=[16,32]

    Each trial is a run in tensorboard_logs_searches/<experiment>/<search>. The same command resumes an interrupted
    search and reports a finished one.
    """
    announce(_LOADING)
    from kpipe.config.loading import load_search

    loaded = load_search(experiment, overrides)
    _say_what_was_dropped(loaded)
    output.is_needed = False
    _check_folders(loaded)
    _check_source(loaded)
    with _quietly():
        from kpipe.tuning.tuner import search

        search(loaded, new=new, workers=workers)


@cli.command(short_help="Write a trained network for ONNX, LiteRT, ...")
@click.argument("trained", metavar="RUN")
@click.option(
    "--to",
    "formats",
    metavar="FORMAT",
    multiple=True,
    required=True,
    help=f"One of {', '.join(FORMATS)}. May be given several times.",
)
@click.option("--output", metavar="FOLDER", help="Folder to which each format adds its own. Default: RUN/export.")
@_weights
@_image_size
@_resize
@click.option("--int8", is_flag=True, help="Quantize LiteRT's file as well, and measure its accuracy.")
@click.pass_obj
def export(
    shown: Output, trained: str, formats: tuple[str, ...], output: str | None, int8: bool, **how_loaded: Any
) -> None:
    """Write a trained network in the format of another runtime, with a model card.

    RUN is the directory of a finished run, or a .keras file with a classes.txt beside it. What is written takes raw
    images, 0 to 255, and returns logits. It is checked at once: its own runtime must compute what the network computes.

    For two of them: kpipe export RUN --to onnx --to litert
    """
    announce(_LOADING)
    from kpipe.exporting.arguments import check_arguments
    from kpipe.runs.model_files import find_trained

    check_arguments(find_trained(trained, **how_loaded).file, formats, output, int8)
    shown.is_needed = False
    with _quietly():
        from kpipe.commands.export import export
        from kpipe.commands.export_screen import show_exports
        from kpipe.console import Screen

        screen = Screen()
        show_exports(export(trained, formats, output=output, int8=int8, screen=screen, **how_loaded), screen)


@cli.command(short_help="Show layers, parameters, memory and steps.")
@click.argument("experiment", metavar="EXPERIMENT.yaml|NETWORK")
@_overrides
@click.option("--image-size", type=click.IntRange(1), help="Side of the images in pixels, for a network's name.")
@click.option("--channels", type=click.IntRange(1), help="Channels, for a network's name or missing data.")
@click.option("--classes", type=click.IntRange(1), help="Classes, for a network's name or missing data.")
@click.option("--measure", is_flag=True, help="Train a few steps on made-up images, and say how long it takes.")
@_as_json
def plan(
    experiment: str,
    overrides: tuple[str, ...],
    image_size: int | None,
    channels: int | None,
    classes: int | None,
    measure: bool,
    as_json: bool,
) -> None:
    """Show what a training would be: layers, parameters, memory, steps, disk, and with --measure its time.

    NETWORK is a name such as vgg16 or my_nets.py:tiny, with its default options: kpipe plan vgg16 --image-size 64
    model.head=gap
    """
    if not as_json:
        announce(_LOADING)
    from kpipe.catalog.networks import MODELS
    from kpipe.catalog.own_code import is_own
    from kpipe.config.document import nearest_experiment
    from kpipe.config.loading import load_experiment, load_network

    is_network = experiment in MODELS or is_own(experiment)
    if experiment.endswith(".py"):
        raise ConfigError(
            f"{printable(experiment)}: expected the name of a function in the file too, got the file alone. Write "
            f"{printable(experiment)}:FUNCTION"
        )
    if experiment and not is_network and not os.path.exists(experiment) and not experiment.endswith((".yaml", ".yml")):
        nearest = nearest_experiment(Path(experiment))
        raise ConfigError(
            f"{printable(experiment)}: expected an experiment file or the name of a network"
            + (f", did you mean {quoted(str(nearest))}?" if nearest else did_you_mean(experiment, MODELS))
        )
    loaded = load_network(experiment, image_size, overrides) if is_network else load_experiment(experiment, overrides)
    if not as_json:
        _say_what_was_dropped(loaded)
    with _quietly():
        from kpipe.commands.plan import Assumed, make_plan
        from kpipe.commands.plan_screen import show_plan

        if measure and not as_json:
            announce("training a few steps ...")
        assumed = Assumed(image_size, channels, classes)
        made = make_plan(loaded.experiment, assumed, with_data=not is_network, measure_time=measure)
        click.echo(json.dumps(made, indent=2)) if as_json else show_plan(made)


@cli.command(short_help="Measure the speed of a training, and find what limits it.")
@_experiment
@_overrides
@_as_json
def bench(experiment: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Measure how fast an experiment trains on this machine, and what limits it: the input or the training step.

    Both are measured alone and together. Nothing is written but the cache of decoded images, if data.cache is disk.

    To compare: kpipe bench experiments/vgg16.yaml data.batch_size=128 training.precision=float32
    """
    if not as_json:
        announce(_LOADING)
    from kpipe.config.loading import load_experiment

    loaded = load_experiment(experiment, overrides)
    if not as_json:
        _say_what_was_dropped(loaded)
    _check_folders(loaded)
    _check_source(loaded)
    with _quietly():
        from kpipe.commands.bench import bench
        from kpipe.commands.bench_screen import show_bench
        from kpipe.console import Screen, quiet_console

        screen = Screen(quiet_console()) if as_json else Screen()
        measured = bench(loaded, screen=screen)
        click.echo(json.dumps(measured, indent=2)) if as_json else show_bench(measured, screen)


_PROTOCOLS = "\n".join(["\b", "Protocols:", *(f"  {name:<10}  {views}" for name, views in PROTOCOLS.items())])


@cli.command(short_help="Score a trained network on a whole split.", epilog=_PROTOCOLS)
@click.argument("run_directory", metavar="RUN")
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    default="center",
    show_default=True,
    help="Which views of each image are scored.",
)
@click.option("--split", type=click.Choice(["train", "validation", "test"]), help="Default: test, else validation.")
@click.option("--data", metavar="SOURCE", help="Another set with the same classes, such as folder:photos.")
@click.option("--scales", metavar="PIXELS,...", help="For dense: shorter sides. Default: that of the stored images.")
@_weights
@_image_size
@_resize
@click.option(
    "--on-error",
    type=click.Choice(ON_ERROR),
    help="At an image that cannot be read. Default: as in the run, else fail.",
)
@click.option("--output", metavar="FOLDER", help="Default: RUN/evaluation/<split>_<protocol>.")
@_as_json
def evaluate(run_directory: str, scales: str | None, data: str | None, as_json: bool, **options: Any) -> None:
    """Score a trained network on a whole split: accuracy, calibration, each class, and the most confident mistakes.

    RUN is the directory of a finished run, or a .keras file with its classes.txt beside it. A model file alone needs
    --data: kpipe evaluate vgg16.keras --data folder:photos

    ECE is the expected calibration error: how far confidence and accuracy are apart, on average over the images.
    """
    if not as_json:
        announce(_LOADING)
    from kpipe.runs.model_files import check_split, find_source, find_trained

    sides = _parse_scales(scales) if scales else ()
    found = find_trained(run_directory, **{name: options[name] for name in _HOW_LOADED})
    find_source(found, data)
    check_split(found, options["split"], data)
    with _quietly():
        from kpipe.commands.evaluate import evaluate
        from kpipe.commands.evaluate_screen import show_evaluation
        from kpipe.console import Screen, quiet_console

        screen = Screen(quiet_console()) if as_json else Screen()
        result = evaluate(run_directory, data=data, scales=sides, screen=screen, **options)
        click.echo(json.dumps(result, indent=2)) if as_json else show_evaluation(result, screen)


@cli.command(short_help="Predict the classes of images.")
@click.argument("path", metavar="RUN")
@click.argument("images", nargs=-1, metavar="IMAGE|FOLDER|-...")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Number of classes of each image.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV: a line for each class, file,rank,class,probability.")
@click.option("--jsonl", "as_jsonl", is_flag=True, help="Print JSON: a line for each image.")
@click.option("--grid", metavar="FILE", help="PNG file to write: up to 36 of the images with their predictions.")
@_weights
@_image_size
@_resize
@click.pass_obj
def predict(
    output: Output,
    path: str,
    images: tuple[str, ...],
    top: int,
    as_csv: bool,
    as_jsonl: bool,
    grid: str | None,
    weights: str,
    image_size: int | None,
    resize: str | None,
) -> None:
    """Predict the classes of images with a trained network.

    RUN is the directory of a finished run, or a .keras file with its classes.txt beside it. Images are read and resized
    as they were in its training. Of a FOLDER all images are taken, and - reads paths from standard input, one a line:
    find photos -name "*.jpg" | kpipe predict RUN - --csv > predictions.csv

    Files that cannot be read are left out and named at the end, with exit code 3.
    """
    if not images:
        raise click.UsageError("Missing argument 'IMAGE'. Give image files, folders, or - for a list of them.")
    if as_csv and as_jsonl:
        raise click.UsageError("--csv and --jsonl: expected one of them, got both.")
    if not (as_csv or as_jsonl):
        announce(_LOADING)
    from kpipe.console import Screen, screen_on_standard_error
    from kpipe.files import expand_path
    from kpipe.layout import find_images
    from kpipe.runs.model_files import find_trained

    files = find_images(itertools.chain.from_iterable(_paths_in(image) for image in images))
    picture = grid and _check_output(expand_path(grid, "--grid"), "--grid", "predictions.png")
    how = {"weights": weights, "image_size": image_size, "resize": resize}
    find_trained(path, **how)
    with screen_on_standard_error() as errors, _quietly(writes=picture):
        from kpipe.commands.predict import load_network, print_predictions
        from kpipe.commands.predict_screen import csv_writer, jsonl_writer, table_writer
        from kpipe.data import no_progress

        trained = load_network(path, **how)
        screen = Screen()
        for note in trained.notes:
            click.echo(f"note: {note}", errors.console.file)  # also where that is no terminal
        if as_csv or as_jsonl:
            write = csv_writer() if as_csv else jsonl_writer()
            progress = no_progress if screen.console.is_terminal else errors.progress
        else:
            write = table_writer(screen, files, trained.class_names, top)
            progress = screen.progress if screen.console.is_terminal else errors.progress
        drawing = {"grid": picture, "tell": (errors if as_csv or as_jsonl else screen).line}
        print_predictions(trained, files, write, top=top, **drawing, progress=progress, is_read=output.is_read)


_KINDS = "\n".join(f"  {name:<17} {text}" for name, text in EXPLANATIONS.items())
_EXPLAIN = f"""Draw what a trained network has learned, and why it says what it says of images.

RUN is the directory of a finished run, or a .keras file with its classes.txt beside it. Without images, some of the
held-out split are explained.

\b
Kinds:
{_KINDS}

Standard output has the paths of the figures. Files that cannot be read are left out and named at the end, with exit
code 3.

Fixed kernels, for any image: kpipe explain --kernels cat.jpg
"""


@cli.command(short_help="Draw what a network has learned, and why.", help=_EXPLAIN)
@click.argument("run_directory", metavar="RUN", required=False)
@click.argument("images", nargs=-1, metavar="[IMAGE|FOLDER]...")
@click.option(
    "--kind", "kinds", metavar="KIND", multiple=True, help="One of these. May be given several times. Default: all."
)
@click.option("--layer", metavar="NAME", help="Layer for deconvnet and Grad-CAM. Default: the last one.")
@click.option("--class", "class_name", metavar="NAME", help="Class to explain. Default: the predicted one.")
@click.option("--kernels", is_flag=True, help="Draw the responses of an image to fixed kernels. Needs no RUN.")
@_weights
@_image_size
@_resize
@click.option("--output", metavar="FOLDER", help="Default: RUN/explain, and for --kernels the working directory.")
def explain(run_directory: str | None, images: tuple[str, ...], kernels: bool, **options: Any) -> None:
    if kernels:
        names = {"kinds": "--kind", "layer": "--layer", "class_name": "--class", "weights": "--weights"}
        names |= {"image_size": "--image-size", "resize": "--resize"}
        given = [name for key, name in names.items() if options[key] and (key, options[key]) != ("weights", "best")]
        if given:
            raise click.UsageError(
                f"--kernels: expected only --output beside it, got {given[0]}. Fixed kernels need no network."
            )
        images = images if run_directory is None else (run_directory, *images)
    elif run_directory is None:
        raise click.UsageError("Missing argument 'RUN'. Give the directory of a run, or --kernels.")
    announce(_LOADING)
    from kpipe.console import screen_on_standard_error
    from kpipe.runs.model_files import find_trained

    if not kernels:
        check_kinds(options["kinds"])
        find_trained(run_directory, **{name: options[name] for name in _HOW_LOADED})
    with screen_on_standard_error() as errors, _quietly():
        from kpipe.commands.explain import print_explanations, print_kernels

        def write(figure) -> None:
            click.echo(str(figure.path))

        def note(text: str) -> None:
            click.echo(f"note: {text}", errors.console.file)  # also where that is no terminal

        if kernels:
            print_kernels(images, write, note, output=options["output"])
        else:
            print_explanations(run_directory, images, write, note, progress=errors.progress, **options)


def _paths_in(argument: str) -> list[str]:
    """Return the paths that an argument means: itself, or for `-` those on standard input, a line or a NUL between.

    Of a line, the end that other programs write is no part of the path: CR, and blanks unless such a file exists.
    """
    if argument != "-":
        return [argument]
    text = b"" if sys.stdin is None else sys.stdin.buffer.read()
    if b"\0" in text:
        paths = list(map(os.fsdecode, filter(None, text.split(b"\0"))))
    else:
        lines = (os.fsdecode(line.removesuffix(b"\r")) for line in text.split(b"\n") if line.strip())
        paths = [line if os.path.lexists(line) else line.rstrip() for line in lines]
    if not paths:
        raise DataError("-: expected paths of images on standard input, one a line, got none")
    return paths


@cli.command(short_help="Show all runs and searches in a table.")
@click.argument("folder", required=False, metavar="[FOLDER]")
@click.option(
    "--sort",
    metavar="COLUMN",
    help="Sort by a column or a key; -COLUMN puts the largest first. Default: the newest run comes last.",
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Show only these runs, as in status=finished, 'name=vgg*' or 'test_accuracy>97%'. Can be given several times.",
)
@click.option(
    "--group/--runs",
    "grouped",
    default=None,
    help="One row for finished runs that differ only in their seed, with mean and standard deviation; or one row for "
    "each run. Default: --group, but --runs with --csv and --json.",
)
@click.option("--trials", is_flag=True, help="Show the trials of searches among the runs.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the runs as CSV, with all columns.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown.")
@_as_json
def results(
    folder: str | None,
    sort: str | None,
    filters: tuple[str, ...],
    grouped: bool | None,
    trials: bool,
    as_csv: bool,
    as_markdown: bool,
    as_json: bool,
) -> None:
    """Show all runs in one table: accuracies, parameters, times, and the keys in which they differ.

    FOLDER is a folder of runs, that of one experiment, a run, or a search. By default, it is the folder in which your
    runs are saved.

    A column can be any key of config.yaml or its end: kpipe results --filter optimizer.name=sgd --sort -test_accuracy
    """
    if sum((as_csv, as_markdown, as_json)) > 1:
        raise click.UsageError("--csv, --markdown and --json: expected one of them, got several.")
    from kpipe.commands.results import collect_results, to_csv
    from kpipe.commands.results_screen import show_results, to_markdown

    grouped = not (as_csv or as_json) if grouped is None else grouped
    found = collect_results(folder, sort=sort, filters=filters, grouped=grouped, trials=trials)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif as_csv or as_markdown:
        click.echo(to_csv(found) if as_csv else to_markdown(found), nl=False)
        searches = len(found["searches"]) if as_csv and not trials else 0
        left_out = ["the searches are left out; --trials adds their trials"] if searches else []
        for note in found["notes"] + left_out:
            click.echo(f"note: {note}", err=True)
    else:
        show_results(found)


@cli.group(name="data")
def data_verbs() -> None:
    """Inspect the images of an experiment before training."""


@data_verbs.command(name="show", short_help="Draw images raw, as kept, and as trained on.")
@_experiment
@_overrides
@click.option("--images", type=click.IntRange(1, 50), default=6, show_default=True, help="Number of images.")
@click.option("--views", type=click.IntRange(0, 20), default=4, show_default=True, help="Augmented views of each.")
@click.option("--output", metavar="FILE", help="PNG file to write. Default: <experiment>_data.png.")
def data_show(experiment: str, overrides: tuple[str, ...], images: int, views: int, output: str | None) -> None:
    """Draw images raw, as they are kept, and as training sees them."""
    announce(_LOADING)
    from kpipe.config.loading import load_experiment

    loaded = load_experiment(experiment, overrides)
    _say_what_was_dropped(loaded)
    path = _output_path(loaded, output, "data.png")
    _check_source(loaded)
    with _quietly(writes=path):
        from kpipe.commands.data import show

        show(loaded.experiment, path, images=images, views=views)


@data_verbs.command(name="check", short_help="Find images that cannot be read.")
@_experiment
@_overrides
@click.option("--output", metavar="FILE", help="List to write. Default: <experiment>_unreadable.txt.")
def data_check(experiment: str, overrides: tuple[str, ...], output: str | None) -> None:
    """Try to read every image. If some cannot be read, list them in a file and end with exit code 3."""
    announce(_LOADING)
    from kpipe.config.loading import load_experiment

    loaded = load_experiment(experiment, overrides)
    _say_what_was_dropped(loaded)
    path = _output_path(loaded, output, "unreadable.txt")
    _check_source(loaded)
    with _quietly(writes=path):
        from kpipe.commands.data import check

        check(loaded.experiment, path)


@cli.command(name="list", short_help="List networks, augmentations, optimizers, ... and their options.")
@click.argument("section", required=False)
@click.argument("name", required=False)
@_as_json
def list_names(section: str | None, name: str | None, as_json: bool) -> None:
    """List the names that an experiment may use, and their options.

    SECTION prints one section, as in: kpipe list optimizers

    SECTION and NAME print one name in full, as in: kpipe list models vgg16
    """
    from kpipe.commands.list import describe_names, show_names

    if as_json:
        click.echo(json.dumps(describe_names(section, name), indent=2))
    else:
        show_names(section, name)


@cli.command(short_help="Print the JSON schema, for editors.")
def schema() -> None:
    """Print the JSON schema of experiment files, for editors that complete and check YAML."""
    from kpipe.config.loading import json_schema

    click.echo(json_schema())


@cli.command(short_help="Check this installation and train a tiny network.")
def doctor() -> None:
    """Check this installation: versions, devices, and a tiny network trained to its end."""
    announce(_LOADING)
    with _quietly():
        from kpipe.commands.doctor import examine

        examine()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code. A user's mistake is a message on standard error, never a traceback.

    A standard output that fails ends no verb. Where it was what the user wanted, the exit code says that it is lost.
    """
    atexit.register(gc.freeze)  # to search all that TensorFlow has made for garbage takes a second
    with on_command_line(), stop_signals() as stop, quiet_streams() as output:
        return _run_verb(arguments, stop, output) or _code_of_lost_output(output)


def _run_verb(arguments: Sequence[str] | None, stop: Stop, output: Output) -> int:
    given = None if arguments is None else list(arguments)
    try:
        try:
            return cli.main(given, "kpipe", standalone_mode=False, obj=output) or 0
        finally:
            announce("")
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption):
            _name_override(error, sys.argv[1:] if arguments is None else arguments)
        error.message = _printable_lines(error.message)
        error.show()
        return error.exit_code
    except KpipeError as error:
        if error.exit_code >= 128:
            ignore_repetitions()  # while TensorFlow is taken down, another one would change the exit code
        click.echo(_printable_lines(str(error)), err=True)
        return error.exit_code
    except (KeyboardInterrupt, Exception) as error:
        if not (isinstance(error, KeyboardInterrupt | click.Abort) or stop.raised):
            raise
        ignore_repetitions()
        verb = (sys.argv[1:] if given is None else given)[:1]
        kept = "; what was saved before is still there" if verb and verb[0] in _SAVING else ""
        click.echo(f"{stop.word}{kept}", err=True)
        return stop.exit_code


def _name_override(error: click.NoSuchOption, arguments: Sequence[str]) -> None:
    """Add to the message the override that does what an option such as `--epochs 5` was meant to do."""
    from kpipe.config.remedies import override_for_option

    if error.ctx is None or all(parameter.name != "overrides" for parameter in error.ctx.command.params):
        return
    option = error.option_name
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{option}=")]
    given += [after for argument, after in itertools.pairwise(arguments) if argument == option]
    override = override_for_option(option, given[0] if given else None)
    if override:
        error.message, error.possibilities = f"{error.message} Write {override}", None


def _code_of_lost_output(output: Output) -> int:
    """Return the exit code of a verb whose work is done; say what became of its output, unless the reader has gone."""
    if not output.is_needed or output.error is None or output.error.errno == errno.EPIPE:  # kpipe list | head
        return 0
    click.echo(f"standard output cannot be written: {output.error.strerror}", err=True)
    return EnvironmentFault.exit_code


def _printable_lines(message: str) -> str:
    """Return the lines of a message, each printable: what it names may hold anything."""
    return "\n".join(map(printable, message.split("\n")))


def _say_what_was_dropped(loaded: "Loaded", mark: str = "") -> None:
    if loaded.dropped:
        announce("")
        click.echo(f"{mark}note: the overrides leave these values of the file unused: {', '.join(loaded.dropped)}")


def _check_source(loaded: "Loaded", resumed: Path | None = None) -> None:
    """Find what is wrong with the data at first sight, before TensorFlow is imported.

    Args:
        loaded: an experiment.
        resumed: the run that is resumed, whose folder of images may have been moved.
    """
    from kpipe.catalog.data import check_source

    for source in loaded.experiment.sources:
        try:
            check_source(source)
        except DataError as error:
            if resumed is None or not source.startswith("folder:"):
                raise
            command = f"kpipe run --resume {shell_quoted(str(resumed))} data.source=folder:PATH"
            raise DataError(f"{error}\nIf you have moved the folder:\n  {command}") from None


def _check_folders(loaded: "Loaded") -> None:
    """Raise ConfigError before TensorFlow is imported where a folder to write to has no path on this machine."""
    from kpipe.files import cache_folder
    from kpipe.runs.directory import logs_folder

    logs_folder(loaded.experiment.logs, f"{loaded.origins.get(('logs',))}: logs")
    if loaded.experiment.data.cache == "disk":
        cache_folder()


def _parse_scales(text: str) -> list[int]:
    """Return the numbers of `256,384`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--scales: expected pixels such as 256,384, got {quoted(text)}") from None


def _output_path(loaded: "Loaded", output: str | None, default: str) -> Path:
    """Return the file to write; raise before any work where it cannot be one.

    Args:
        loaded: its name begins that of the file, where none is given.
        output: what the user gave.
        default: the rest of the name.
    """
    from kpipe.files import expand_path

    name = f"{loaded.experiment.name}_{default}"
    return _check_output(expand_path(name if output is None else output, "--output"), "--output", name)


def _check_output(path: Path, option: str, example: str) -> Path:
    """Return the file that an option says is to be written; raise before any work where it cannot be one.

    Args:
        path: the file.
        option: its name, for messages.
        example: a name for such a file. A picture must have its ending, which says what is written.
    """
    from kpipe.files import can_write_in

    if path.is_dir():
        raise ConfigError(
            f"{option}: expected a file, got the folder {path_shown(path)}. Write {path_shown(path / example)}"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: expected a file in a folder that exists, got {path_shown(path)}")
    if example.endswith(".png") and not path.name.lower().endswith(".png"):
        png = path.with_suffix(".png")
        raise ConfigError(
            f"{option}: expected a name that ends with .png, got {path_shown(path)}. Write {path_shown(png)}"
        )
    if not (os.access(path, os.W_OK) if path.exists() else can_write_in(path.parent)):
        raise ConfigError(f"{option}: expected a file that you may write, got {path_shown(path)}")
    return path


@contextmanager
def _quietly(writes: Path | None = None) -> Iterator[None]:
    """Hold back what libraries print, and turn errors in writing a file into a message.

    Args:
        writes: file that the verb writes.
    """
    from kpipe.files import translate_write_errors

    os.environ["MPLBACKEND"] = "agg"  # what Jupyter sets for its cells is not installed everywhere
    os.environ.setdefault(LOG_LEVEL, "0")  # what is held back may explain an error, so it is everything
    _describe_undrawn()  # what an earlier command in this process has left
    try:
        with hold_back_libraries(), translate_write_errors(writes.parent) if writes else nullcontext():
            yield
    finally:
        if note := _describe_undrawn():
            click.echo(f"note: {note}", err=True)


def _describe_undrawn() -> str | None:
    """Return the note of `kpipe.figures.describe_undrawn` if figures have been drawn."""
    figures = sys.modules.get("kpipe.figures")
    return figures and figures.describe_undrawn()
