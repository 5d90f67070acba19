"""From a YAML file and overrides to a checked `Experiment`; no import of TensorFlow or NumPy on the way."""

import copy
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kpipe.catalog.networks import MODELS
from kpipe.catalog.own_code import absolute_name, is_own
from kpipe.catalog.search import SearchOptions
from kpipe.catalog.wording import show
from kpipe.config.document import COMMAND_LINE, Document, Keys, Problem, dotted, read_document
from kpipe.config.messages import annotated_lines, by_line, misspelt_key, origin_of, problem_of
from kpipe.config.overrides import apply_overrides, override, rename, sections_at, split_keys
from kpipe.config.remedies import full_key
from kpipe.config.rules import conflicts, lacks_validation
from kpipe.config.schema import Experiment
from kpipe.config.space import Tried, keys_of, space_mistakes, try_values
from kpipe.errors import ConfigError, did_you_mean
from kpipe.files import expand_path
from kpipe.names import quoted

_SHOWN = 20  # mistakes in one message
_PYTHON = "python:"


@dataclass(frozen=True)
class Loaded:
    """An experiment, where each of its values came from, and what the overrides dropped."""

    experiment: Experiment
    document: Document
    dropped: tuple[str, ...]
    overrides: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Notes for the user about what a search will try."""
    is_checked_for_search: bool = False

    @property
    def origins(self) -> dict[Keys, str]:
        return self.document.origins

    def vary(self, values: Mapping[str, Any]) -> Experiment:
        """Return the experiment with other values, by dotted key, as if given on the command line. It has no search.

        Raises:
            ConfigError: the values cannot work together.
        """
        experiment, problems, _ = _varied(self.document, values)
        if problems or experiment is None:
            raise ConfigError("\n".join(str(problem) for problem in problems))
        return experiment

    def describe(self) -> str:
        """Return the resolved experiment as YAML, each value followed by where it came from."""
        lines = list(annotated_lines(self.experiment.model_dump(mode="json"), (), self.origins))
        width = max(len(line) for line, _ in lines)
        return "\n".join(f"{line:<{width}}  # {origin}" if origin else line for line, origin in lines)


def load_experiment(path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Loaded:
    """Read an experiment file, apply overrides, and check the result.

    Args:
        path: the YAML file.
        overrides: values by their dotted key, `{"training.epochs": 5}`; or texts, `["training.epochs=5"]`.

    Raises:
        ConfigError: one line for each mistake, `file:line: key: what was expected, what was given, nearest name`.
    """
    return _check(_read(path), _as_texts(overrides))


def load_search(path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Loaded:
    """Load an experiment for a search. Without a section `search`, learning rate and optimizer are tried at random.

    Raises:
        ConfigError: as `load_experiment`, or something cannot be searched.
    """
    return _check(_with_search(_read(path)), _as_texts(overrides), for_search=True)


def check_search(loaded: Loaded) -> Loaded:
    """Return what `load_experiment` returned as `load_search` would have.

    Raises:
        ConfigError: something cannot be searched, or it is not what `load_experiment` returned.
    """
    experiment_of(loaded)
    if loaded.is_checked_for_search:
        return loaded
    checked = _check(_with_search(copy.deepcopy(loaded.document)), (), for_search=True)
    return replace(checked, dropped=loaded.dropped, overrides=loaded.overrides)


def experiment_of(loaded: Experiment | Loaded) -> Experiment:
    """Return the experiment of what `load_experiment` returned; an experiment alone as it is.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(loaded, Experiment | Loaded):
        raise ConfigError(f"experiment: expected what kpipe.load_experiment returns, got {show(loaded)}")
    return loaded.experiment if isinstance(loaded, Loaded) else loaded


def _as_texts(overrides: Sequence[str] | Mapping[str, Any]) -> Sequence[str]:
    if isinstance(overrides, str):
        example = '{"training.epochs": 5} or ["training.epochs=5"]'
        raise ConfigError(f"overrides: expected {example}, got {show(overrides)}")
    if not isinstance(overrides, Mapping):
        return overrides
    return [f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items()]


def _with_search(document: Document) -> Document:
    if document.data.get("search") is None:
        document.data["search"] = {}
    return document


def load_network(name: str, image_size: int | None = None, overrides: Sequence[str] = ()) -> Loaded:
    """Return an experiment that gives nothing but the name of its network. Its data is a stand-in.

    Args:
        name: a name of `kpipe.catalog.networks.MODELS`, or that of a network of the user's own.
        image_size: side of the images in pixels; None: what the network takes.
        overrides: as in `load_experiment`, but of the data only the batch size.

    Raises:
        ConfigError: as `load_experiment`.
    """
    keys = [text.partition("=")[0] for text in overrides]
    if any(key.startswith("data.") and key != "data.batch_size" for key in keys):
        raise ConfigError(
            f"{name}: expected no data.* but data.batch_size with the name of a network, which has no data. "
            "Use --image-size, --channels and --classes, or the file of an experiment."
        )
    # A source whose images may have any size and number of channels.
    data = {"source": "synthetic", "image_size": image_size or (1 if is_own(name) else max(MODELS[name].smallest_size))}
    document = Document(
        {"name": name.rpartition(":")[2], "data": data, "model": {"name": absolute_name(name)}},
        name,
        {("data", "image_size"): COMMAND_LINE},
    )
    return _check(document, overrides)


def _read(path: str | Path) -> Document:
    # Messages begin with the name that was typed, unless a shell would have expanded it.
    expanded = Path(path) if os.path.lexists(path) else expand_path(str(path), "EXPERIMENT.yaml")
    path = Path(path) if expanded == Path(path).absolute() else expanded
    document = read_document(path)
    document.data.setdefault("name", path.stem)
    _find_own_code(document.data, path.parent)
    return document


def _find_own_code(data: dict[str, Any], folder: Path) -> None:
    """Make the paths of the user's own code absolute, which stands beside the experiment."""

    def absolute(name: Any) -> Any:
        return absolute_name(name, folder) if isinstance(name, str) and is_own(name) else name

    model, config = data.get("model"), data.get("data")
    source = config.get("source") if isinstance(config, dict) else None
    if isinstance(source, str) and source.startswith(_PYTHON):
        config["source"] = _PYTHON + absolute(source.removeprefix(_PYTHON))
    if isinstance(model, dict) and "name" in model:
        model["name"] = absolute(model["name"])
    entries = config.get("augment") if isinstance(config, dict) else None
    for place, entry in enumerate(entries if isinstance(entries, list) else ()):
        is_section = isinstance(entry, dict)
        entries[place] = {absolute(name): options for name, options in entry.items()} if is_section else absolute(entry)


def _check(document: Document, overrides: Sequence[str], *, for_search: bool = False) -> Loaded:
    dropped = apply_overrides(document, overrides)
    experiment, problems = _validated(document)
    notes: list[str] = []
    if for_search and (search := experiment.search if experiment else _section_alone(document)) is not None:
        found, notes = _search_problems(document, search, is_whole=not problems)
        problems += found
    if problems or experiment is None:
        lines = list(dict.fromkeys(str(problem) for problem in sorted(problems, key=by_line)))
        more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise ConfigError("\n".join(lines[:_SHOWN] + more))
    return Loaded(experiment, document, tuple(dropped), tuple(overrides), tuple(notes), for_search)


def _validated(document: Document) -> tuple[Experiment | None, list[Problem]]:
    problems = list(document.problems)
    experiment = None
    try:
        experiment = Experiment.model_validate(document.data)
    except ValidationError:
        document, found = _find_problems(document)
        unreadable = {problem.keys for problem in problems}
        problems += [problem for problem in found if problem.keys not in unreadable]
    # A conflict with a key that has a mistake of its own would judge a default that nobody has asked for.
    reported, wrong = {problem.keys for problem in problems}, {key for problem in problems for key in problem.keys[-1:]}
    problems += [
        Problem(origin_of(document, keys), keys, message)
        for keys, message in conflicts(document.data)
        if keys not in reported and wrong.isdisjoint(re.findall(r"\w+", message))
    ]
    return experiment, problems


def _find_problems(document: Document) -> tuple[Document, list[Problem]]:
    """Return all mistakes, and the document with known keys for misspelt ones, below which it finds mistakes too."""
    document, problems = copy.deepcopy(document), []
    while True:
        mistakes = _mistakes(document)
        meant = [misspelt_key(document, details) for details in mistakes]
        # What else is wrong is judged once the keys are right: under `dta`, `data` would be missing.
        told = [details for details, known in zip(mistakes, meant, strict=True) if known or not any(meant)]
        problems += [problem_of(document, details) for details in told]
        if not any(meant):
            return document, problems
        for keys, known in filter(None, meant):
            rename(document, keys, known)


def _mistakes(document: Document) -> list[dict[str, Any]]:
    try:
        Experiment.model_validate(document.data)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _varied(document: Document, values: Mapping[str, Any]) -> tuple[Experiment | None, list[Problem], list[str]]:
    """Return the experiment with other values, what is wrong with it, and the keys of the file that it drops."""
    data = copy.deepcopy({key: value for key, value in document.data.items() if key != "search"})
    varied = Document(data, document.name)
    dropped = override(varied, {split_keys(key): copy.deepcopy(value) for key, value in values.items()})
    experiment, problems = _validated(varied)
    # What was not varied has no line of its own here; the key says it.
    return experiment, [Problem("", problem.keys, problem.message) for problem in problems], dropped


def _section_alone(document: Document) -> SearchOptions | None:
    """Return the section `search` of an experiment with mistakes elsewhere."""
    stand_in = {"name": "x", "data": {"source": "digits"}, "model": {"name": "mlp"}, "search": document.data["search"]}
    try:
        return Experiment.model_validate(stand_in).search
    except ValidationError:
        return None


def _search_problems(document: Document, search: SearchOptions, *, is_whole: bool) -> tuple[list[Problem], list[str]]:
    """Return what is wrong with a search, and notes about it. `is_whole`: nothing is wrong with the rest."""

    def try_(values: Mapping[str, Any]) -> Tried:
        _, problems, dropped = _varied(document, values)
        return Tried(str(problems[0]) if problems else None, tuple(dropped))

    model = document.data.get("model")
    name = model.get("name") if isinstance(model, dict) else None

    def find_unknown(key: str) -> str | None:
        # The options of the user's own code are known when it is run.
        is_of_own = key.startswith("model.") and isinstance(name, str) and is_own(name)
        if key.startswith("data.augment.") and ":" in key:
            return (
                "options of an augmentation of your own are not searched one by one; give whole lists to data.augment"
            )
        return None if is_of_own or key.startswith("data.python.") else _unknown_key(key)

    wrong, notes = list(space_mistakes(search, find_unknown)), []
    if is_whole and not wrong:
        wrong, notes = try_values(search, try_)
    found = [(("search", "space", key) if key else ("search", "space"), message) for key, message in wrong]
    for key in keys_of(search):
        if document.origins.get(split_keys(key)) == COMMAND_LINE:
            found.append((split_keys(key), f"is searched; to fix it, give search.space.{key}=[...] with one value"))
    if lacks_validation(document.data):
        found.append((("data", "split", "validation"), "a search needs a validation split, got 0"))
    training = document.data.get("training")
    monitor = training.get("monitor") if isinstance(training, dict) else None
    if search.objective and monitor not in (None, search.objective):
        found.append((("search", "objective"), "differs from training.monitor; leave one of them out"))
    return [Problem(origin_of(document, keys), keys, message) for keys, message in found], notes


def _unknown_key(key: str) -> str | None:
    """Return what is wrong with a dotted key that no experiment has; None for one that it may have."""
    keys = split_keys(key)
    for depth in range(len(keys)):
        if isinstance(keys[depth], int):  # an entry of a list; whether it is there is seen when it is tried
            continue
        known = {name for section in sections_at(keys[:depth]) for name in section.model_fields}
        if keys[depth] not in known:
            if elsewhere := full_key(keys[: depth + 1], known):
                meant = f", did you mean {quoted('.'.join([elsewhere, *map(str, keys[depth + 1 :])]))}?"
            else:
                meant = did_you_mean(keys[depth], sorted(known)) if known else f", {dotted(keys[:depth])} has no keys"
            return f"unknown key {show(keys[depth])}{meant}"
    return None


def json_schema() -> str:
    """Return the JSON schema of experiment files, for editors that complete and check YAML."""
    schema = Experiment.model_json_schema()
    schema["required"].remove("name")  # the file's name stands in
    return json.dumps(schema, indent=2)
