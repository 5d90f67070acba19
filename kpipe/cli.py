"""The command line: `kpipe VERB`. Each verb imports what it needs when it is called, so that help costs nothing."""

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from kpipe import __version__
from kpipe.errors import ConfigError, KpipeError, did_you_mean
from kpipe.signals import stop_signals

_CONTEXT = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="kpipe")
def cli() -> None:
    """Train the classic convolutional networks with Keras 3.

    One YAML file describes an experiment; one command trains it, logs it to TensorBoard and resumes it after an
    interruption. Try: kpipe run experiments/quickstart.yaml
    """


@cli.command()
@click.argument("experiment", metavar="EXPERIMENT.yaml", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--new", is_flag=True, help="Start another run instead of resuming an unfinished one.")
@click.option("--resume", metavar="RUN", help="Go on with this run directory; EXPERIMENT.yaml may be left out.")
@click.option("--print-config", is_flag=True, help="Print every value and where it came from; train nothing.")
def run(experiment: str | None, overrides: tuple[str, ...], new: bool, resume: str | None, print_config: bool) -> None:
    """Train an experiment; resume it when it was interrupted.

    Any key of the file can be overridden: kpipe run experiments/vgg16.yaml training.epochs=3 data.batch_size=64

    --resume RUN goes on with a run by hand; a finished one is extended: kpipe run --resume RUN training.epochs=20
    """
    from kpipe.config.loading import load_experiment
    from kpipe.runs.resume import load_resumed

    if resume is not None and experiment is not None and "=" in experiment and not os.path.exists(experiment):
        experiment, overrides = None, (experiment, *overrides)
    if resume is None and experiment is None:
        raise click.UsageError("Missing argument 'EXPERIMENT.yaml'.")
    if resume is not None and new:
        raise click.UsageError("--new and --resume: expected one of them, got both.")
    loaded = load_experiment(experiment, overrides) if resume is None else load_resumed(resume, experiment, overrides)
    _say_what_was_dropped(loaded.dropped, mark="# " if print_config else "")
    if print_config:
        click.echo(loaded.describe())
        return

    def train() -> None:
        experiment = _import_experiment()
        experiment.train(loaded.experiment, experiment.RunOptions(new=new, resume=resume and Path(resume)))

    _quietly(train)


@cli.command(short_help="Search over any key: learning rate, optimizer, ...")
@click.argument("experiment", metavar="EXPERIMENT.yaml")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Trials that train at once.")
@click.option("--new", is_flag=True, help="Start another search instead of going on with one.")
def search(experiment: str, overrides: tuple[str, ...], workers: int, new: bool) -> None:
    """Search over any key of the file; the best trial is kept as best.yaml, which run takes.

    What is tried stands in the section `search` of the file; without one, learning rate and optimizer are. Any of it
    can be overridden: kpipe search experiments/vgg16.yaml search.method=hyperband search.space.data.batch_size=[16,32]

    Each trial is a run in tensorboard_logs/<experiment>/search-<id>. The same command goes on with an interrupted
    search and reports a finished one.
    """
    from kpipe.config.loading import load_search

    loaded = load_search(experiment, overrides)
    _say_what_was_dropped(loaded.dropped)
    _quietly(lambda: _import_search().run_search(loaded, new=new, workers=workers))


@cli.command()
@click.argument("experiment", metavar="EXPERIMENT.yaml|NETWORK")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--image-size", type=click.IntRange(1), help="Pixels a side, for a network's name.")
@click.option("--channels", type=click.IntRange(1), help="Channels, for a network's name or data that are not there.")
@click.option("--classes", type=click.IntRange(1), help="Classes, for a network's name or data that are not there.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def plan(
    experiment: str,
    overrides: tuple[str, ...],
    image_size: int | None,
    channels: int | None,
    classes: int | None,
    as_json: bool,
) -> None:
    """Show what a training would be: layers, parameters, memory, steps, disk. Train nothing.

    NETWORK is a name such as vgg16, with its builder's defaults: kpipe plan vgg16 --image-size 64 model.head=gap
    """
    from kpipe.catalog.networks import MODELS
    from kpipe.config.loading import load_experiment, load_network

    is_network = experiment in MODELS
    if not is_network and not os.path.exists(experiment) and not experiment.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"{experiment}: expected an experiment file or the name of a network{did_you_mean(experiment, MODELS)}"
        )
    if is_network and any(
        key.startswith("data.") and key != "data.batch_size" for key in (text.partition("=")[0] for text in overrides)
    ):
        raise ConfigError(
            f"{experiment}: expected no data.* but data.batch_size with the name of a network, which has no data. "
            "Use --image-size, --channels and --classes, or the file of an experiment."
        )
    loaded = load_network(experiment, image_size, overrides) if is_network else load_experiment(experiment, overrides)

    if not as_json:
        _say_what_was_dropped(loaded.dropped)

    def show() -> None:
        from kpipe.commands.plan import Assumed, make_plan, show_plan

        found = make_plan(loaded.experiment, Assumed(image_size, channels, classes), with_data=not is_network)
        click.echo(json.dumps(found, indent=2)) if as_json else show_plan(found)

    _quietly(show)


@cli.group(name="data")
def data_verbs() -> None:
    """Look at the images of an experiment before it is trained."""


@data_verbs.command(name="show", short_help="Draw images raw, as kept, and as trained on.")
@click.argument("experiment", metavar="EXPERIMENT.yaml")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--images", type=click.IntRange(1, 50), default=6, show_default=True, help="How many images.")
@click.option("--views", type=click.IntRange(0, 20), default=4, show_default=True, help="Augmented views of each.")
@click.option("--output", metavar="FILE", help="The PNG file to write. Default: <experiment>_data.png.")
def data_show(experiment: str, overrides: tuple[str, ...], images: int, views: int, output: str | None) -> None:
    """Draw images as they are, as they are kept, and as a training sees them."""
    _inspect(experiment, overrides, output, "data.png", lambda: _import_inspect_data().show, images=images, views=views)


@data_verbs.command(name="check", short_help="Look for images that cannot be read.")
@click.argument("experiment", metavar="EXPERIMENT.yaml")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--output", metavar="FILE", help="The list to write. Default: <experiment>_unreadable.txt.")
def data_check(experiment: str, overrides: tuple[str, ...], output: str | None) -> None:
    """Try to read every image; write a list of those that cannot be read, and end with exit code 3 if there are any."""
    _inspect(experiment, overrides, output, "unreadable.txt", lambda: _import_inspect_data().check)


def _inspect(experiment: str, overrides: tuple[str, ...], output: str | None, ending: str, verb, **options) -> None:
    from kpipe.config.loading import load_experiment
    from kpipe.files import translate_write_errors

    loaded = load_experiment(experiment, overrides)
    _say_what_was_dropped(loaded.dropped)
    path = Path(output or f"{loaded.experiment.name}_{ending}")
    if not path.parent.is_dir():
        raise ConfigError(f"--output: expected a file in a folder that exists, got {path}")

    def look() -> None:
        with translate_write_errors(path.parent):
            verb()(loaded.experiment, path, **options)

    _quietly(look)


@cli.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_names(as_json: bool) -> None:
    """Show the names of networks, sources, augmentations, optimizers and schedules."""
    from kpipe.catalog.tables import TABLES

    if as_json:
        click.echo(json.dumps({kind: list(table) for kind, table in TABLES.items()}, indent=2))
        return
    for kind, table in TABLES.items():
        click.secho(kind, bold=True)
        for name, row in table.items():
            chosen_options = ", ".join(row.options.model_fields)
            click.echo(f"  {name:<16} {row.summary}" + (f"\n  {'':<16} {chosen_options}" if chosen_options else ""))


@cli.command()
def schema() -> None:
    """Print the JSON schema of experiment files, for editors that complete and check YAML."""
    from kpipe.config.loading import json_schema

    click.echo(json_schema())


@cli.command(short_help="Check this installation and train a tiny network.")
def doctor() -> None:
    """Check this installation: versions, devices, and a tiny network trained to its end."""
    _quietly(lambda: _import_doctor().examine())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb and returns its exit code; a user's mistake is a message on standard error, never a traceback."""
    with stop_signals() as stop:
        try:
            return cli.main(list(arguments) if arguments is not None else None, "kpipe", standalone_mode=False) or 0
        except click.exceptions.Exit as done:
            return done.exit_code
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except KpipeError as error:
            _ignore_impatience(error.exit_code)
            click.echo(error, err=True)
            return error.exit_code
        except BrokenPipeError:  # the reader of `kpipe list | head` has gone
            sys.stderr.close()
            return 1
        except (KeyboardInterrupt, Exception) as error:
            if not (isinstance(error, KeyboardInterrupt | click.Abort) or stop.raised):
                raise
            _ignore_impatience(stop.exit_code)
            click.echo(f"{stop.word} before another step was done; what was saved is still there", err=True)
            return stop.exit_code


def _ignore_impatience(exit_code: int) -> None:
    """Another Ctrl-C while TensorFlow is being taken down would change the exit code and show a traceback."""
    if exit_code >= 128:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _say_what_was_dropped(keys: Sequence[str], mark: str = "") -> None:
    if keys:
        click.echo(f"{mark}note: an override has chosen something else; dropped from the file: {', '.join(keys)}")


def _quietly(job: Callable[[], object]) -> None:
    from kpipe.console import hold_back_libraries

    with hold_back_libraries():
        job()


def _import_experiment():
    import kpipe.experiment

    return kpipe.experiment


def _import_search():
    import kpipe.search

    return kpipe.search


def _import_inspect_data():
    import kpipe.commands.data

    return kpipe.commands.data


def _import_doctor():
    import kpipe.commands.doctor

    return kpipe.commands.doctor
