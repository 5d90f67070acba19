"""From a YAML file and overrides to a checked `Experiment`; no import of TensorFlow or NumPy on the way."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kpipe.config.document import Document, Keys, Problem, dotted, read_document, show
from kpipe.config.overrides import WHERE, apply_overrides, override, sections_at, split_keys
from kpipe.config.schema import (
    Chosen,
    DataConfig,
    Experiment,
    MeanStd,
    Projection,
    TrainingConfig,
    impossible,
    options,
)
from kpipe.config.space import Tried, keys_of, space_mistakes, try_values
from kpipe.errors import ConfigError, did_you_mean
from kpipe.rundir import read_status, saved_step
from kpipe.tables import MODELS, SearchOptions

__all__ = [
    "Chosen",
    "DataConfig",
    "Experiment",
    "Loaded",
    "MeanStd",
    "Projection",
    "TrainingConfig",
    "check_resume",
    "json_schema",
    "load_experiment",
    "load_network",
    "load_resumed",
    "load_search",
    "options",
]


_SHOWN = 20  # mistakes in one message


@dataclass(frozen=True)
class Loaded:
    """An experiment, where each of its values came from, and what an override has dropped."""

    experiment: Experiment
    document: Document
    dropped: tuple[str, ...]
    overrides: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """For the user, about what a search will try."""

    @property
    def origins(self) -> dict[Keys, str]:
        return self.document.origins

    def vary(self, values: Mapping[str, Any]) -> Experiment:
        """The experiment with other values, by dotted key, as if they stood on the command line; without its search.

        Raises:
            ConfigError: they cannot be meant together.
        """
        experiment, problems, _ = _varied(self.document, values)
        if problems or experiment is None:
            raise ConfigError("\n".join(str(problem) for problem in problems))
        return experiment

    def describe(self) -> str:
        """The resolved experiment as YAML, each value followed by where it came from."""
        lines = list(_annotated(self.experiment.model_dump(mode="json"), (), self.origins))
        width = max(len(line) for line, _ in lines)
        return "\n".join(f"{line:<{width}}  # {origin}" if origin else line for line, origin in lines)


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """Reads, overrides and checks an experiment file.

    Args:
        path: the YAML file.
        overrides: dotted keys, `training.epochs=5` each.

    Raises:
        ConfigError: with one line per mistake, `file:line: key: what was expected, what came, nearest name`.
    """
    return _check(_read(path), overrides)


def load_search(path: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """`load_experiment` for a search: without a section `search`, learning rate and optimizer are tried at random.

    Raises:
        ConfigError: as `load_experiment`, and for what cannot be searched.
    """
    document = _read(path)
    if document.data.get("search") is None:
        document.data["search"] = {}
    return _check(document, overrides, for_search=True)


def load_network(name: str, image_size: int | None = None, overrides: Sequence[str] = ()) -> Loaded:
    """An experiment that says nothing but the name of its network; its images come from nowhere.

    Args:
        name: a name of `kpipe.tables.MODELS`.
        image_size: pixels a side; None: whatever the network takes.
        overrides: as for `load_experiment`.

    Raises:
        ConfigError: as `load_experiment`.
    """
    data = {"source": "synthetic", "image_size": image_size or max(MODELS[name].smallest_size)}
    document = Document({"name": name, "data": data, "model": {"name": name}}, name, {("data", "image_size"): WHERE})
    return _check(document, overrides)


def load_resumed(run: str | Path, path: str | Path | None = None, overrides: Sequence[str] = ()) -> Loaded:
    """The experiment with which a run goes on: its own, or the one in `path`, with overrides.

    Args:
        run: a run directory.
        path: the YAML file; None: the run's own config.yaml.
        overrides: as for `load_experiment`.

    Raises:
        ConfigError: as `load_experiment`, and as `check_resume`.
    """
    if any(text.startswith("logs=") for text in overrides):
        raise ConfigError("logs: expected none under --resume, a run stays where it is")
    if not (Path(run) / "config.yaml").is_file():
        raise ConfigError(f"{run}: expected a run directory with a config.yaml, found none there{_nearest_run(run)}")
    loaded = load_experiment(path or Path(run) / "config.yaml", overrides)
    check_resume(run, loaded.experiment)
    return loaded


def check_resume(run: str | Path, experiment: Experiment) -> None:
    """Refuses to go on with a run in a way that would have changed what it has computed so far.

    Raises:
        ConfigError: with one line per key that differs from the run's config.yaml, unless it concerns only when
            something is logged or saved, or adds epochs to a schedule that does not look at the end.
    """
    before = load_experiment(Path(run) / "config.yaml").experiment
    if saved_step(Path(run)) is None:
        dropped = "" if before.training.checkpoint.keep_last else ": training.checkpoint.keep_last is false"
        raise ConfigError(f"{run}: expected a run with a checkpoint to go on from, found none{dropped}")
    theirs, ours = (dict(_leaves(each.identity())) for each in (before, experiment))
    changed = [keys for keys in {**theirs, **ours} if theirs.get(keys) != ours.get(keys)]
    kinds = {keys[:-1] for keys in changed if keys[1:] and keys[-1] in ("name", "schedule")}
    # Of a section of another kind, the options are others as well.
    changed = [keys for keys in changed if keys[:-1] not in kinds or keys[-1] in ("name", "schedule")]
    problems = [
        f"{run}: {dotted(keys)}: {show(theirs.get(keys))} in the run, {show(ours.get(keys))} now" + reason
        for keys in changed
        if (reason := _forbidden(keys, before.training, experiment.training)) is not None
    ]
    if problems:
        raise ConfigError(
            "\n".join(problems) + "\nUnder --resume only training.log_every, training.checkpoint and more "
            "training.epochs may differ; without it the command starts another run."
        )
    if read_status(Path(run)) == "finished" and experiment.training.epochs == before.training.epochs:
        rate = before.training.learning_rate
        way = "a larger training.epochs extends it"
        if rate.looks_at_end:
            way = f"its schedule '{rate.schedule}' looks at the end, so it cannot be extended"
        raise ConfigError(f"{run}: is finished after {before.training.epochs} epochs; {way}")


def _nearest_run(path: str | Path) -> str:
    """A run that `path` lies in, or the newest that lies in `path`."""
    runs = [parent for parent in Path(path).parents if (parent / "config.yaml").is_file()]
    runs += sorted((found.parent for found in Path(path).glob("*/config.yaml")), reverse=True)
    return f", did you mean {runs[0]}?" if runs else ""


def _forbidden(keys: Keys, before: TrainingConfig, now: TrainingConfig) -> str | None:
    """None for a key that may differ, else what there is to say about it."""
    if keys[:2] in (("training", "log_every"), ("training", "checkpoint")):
        return None
    if keys != ("training", "epochs"):
        return ""
    if now.epochs < before.epochs:
        return "; it can only grow"
    if before.learning_rate.looks_at_end:
        return f"; the schedule '{before.learning_rate.schedule}' looks at the end, its rates would have been others"
    return None


def _leaves(value: Any, keys: Keys = ()):
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _leaves(child, (*keys, key))
    else:
        yield keys, value


def _read(path: str | Path) -> Document:
    document = read_document(Path(path))
    document.data.setdefault("name", Path(path).stem)
    return document


def _check(document: Document, overrides: Sequence[str], *, for_search: bool = False) -> Loaded:
    dropped = apply_overrides(document, overrides)
    experiment, problems = _validated(document)
    notes: list[str] = []
    if for_search and (search := experiment.search if experiment else _section_alone(document)) is not None:
        found, notes = _search_problems(document, search, is_whole=not problems)
        problems += found
    if problems or experiment is None:
        lines = list(dict.fromkeys(str(problem) for problem in sorted(problems, key=_order)))
        more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise ConfigError("\n".join(lines[:_SHOWN] + more))
    return Loaded(experiment, document, tuple(dropped), tuple(overrides), tuple(notes))


def _validated(document: Document) -> tuple[Experiment | None, list[Problem]]:
    problems = list(document.problems)
    experiment = None
    try:
        experiment = Experiment.model_validate(document.data)
    except ValidationError as error:
        found = [_problem(document, details) for details in error.errors(include_url=False)]
        unreadable = {problem.keys for problem in problems}
        problems += [problem for problem in found if problem.keys not in unreadable]
    reported = {problem.keys for problem in problems}
    problems += [
        Problem(_origin(document, keys), keys, message)
        for keys, message in impossible(document.data)
        if keys not in reported
    ]
    return experiment, problems


def _varied(document: Document, values: Mapping[str, Any]) -> tuple[Experiment | None, list[Problem], list[str]]:
    """The experiment with other values, what is wrong with it, and the keys of the file that it drops."""
    data = copy.deepcopy({key: value for key, value in document.data.items() if key != "search"})
    varied = Document(data, document.name)
    dropped = override(varied, {split_keys(key): copy.deepcopy(value) for key, value in values.items()})
    experiment, problems = _validated(varied)
    # What was not varied has no line of its own here; the key says it.
    return experiment, [Problem("", problem.keys, problem.message) for problem in problems], dropped


def _section_alone(document: Document) -> SearchOptions | None:
    """The section `search` of an experiment with mistakes elsewhere."""
    stand_in = {"name": "x", "data": {"source": "digits"}, "model": {"name": "mlp"}, "search": document.data["search"]}
    try:
        return Experiment.model_validate(stand_in).search
    except ValidationError:
        return None


def _search_problems(document: Document, search: SearchOptions, *, is_whole: bool) -> tuple[list[Problem], list[str]]:
    """What is wrong with a search, and notes about it; `is_whole`: nothing is wrong with the rest."""

    def try_(values: Mapping[str, Any]) -> Tried:
        _, problems, dropped = _varied(document, values)
        return Tried(str(problems[0]) if problems else None, tuple(dropped))

    wrong, notes = list(space_mistakes(search, _unknown_key)), []
    if is_whole and not wrong:
        wrong, notes = try_values(search, try_)
    found = [(("search", "space", key) if key else ("search", "space"), message) for key, message in wrong]
    for key in keys_of(search):
        if document.origins.get(split_keys(key)) == WHERE:
            found.append((split_keys(key), f"is searched; to fix it, give search.space.{key}=[...] with one value"))
    section = document.data.get("data")
    if isinstance(section, dict) and section.get("source") in ("digits", "synthetic"):
        if isinstance(section.get("split"), dict) and section["split"].get("validation") == 0:
            found.append((("data", "split", "validation"), "a search needs a validation part, got 0"))
    training = document.data.get("training")
    monitor = training.get("monitor") if isinstance(training, dict) else None
    if search.objective and monitor not in (None, search.objective):
        found.append((("search", "objective"), "differs from training.monitor; leave one of them out"))
    return [Problem(_origin(document, keys), keys, message) for keys, message in found], notes


def _unknown_key(key: str) -> str | None:
    """What there is to say about a dotted key that no experiment has; None for one that it may have."""
    keys = split_keys(key)
    for depth in range(len(keys)):
        if isinstance(keys[depth], int):  # an entry of a list; whether it is there is seen when it is tried
            continue
        known = {name for section in sections_at(keys[:depth]) for name in section.model_fields}
        if keys[depth] not in known:
            nearest = did_you_mean(keys[depth], sorted(known)) if known else f", {dotted(keys[:depth])} has no keys"
            return f"unknown key '{keys[depth]}'{nearest}"
    return None


def json_schema() -> str:
    """The JSON schema of an experiment file, for editors that complete and check YAML."""
    schema = Experiment.model_json_schema()
    schema["required"].remove("name")  # the file's name stands in
    return json.dumps(schema, indent=2)


def _order(problem: Problem) -> tuple[bool, int]:
    line = problem.where.rpartition(":")[2]
    return problem.where == WHERE, int(line) if line.isdigit() else 0


def _origin(document: Document, keys: Keys) -> str:
    """Where the value at `keys` stands, or a part of it that an override gave, or the nearest section above it."""
    if keys not in document.origins and any(k[: len(keys)] == keys for k in document.origins):
        return WHERE  # in a file, every section above a value has a line of its own
    while keys and keys not in document.origins:
        keys = keys[:-1]
    return document.origins.get(keys, f"{document.name}:1")


def _problem(document: Document, details: dict[str, Any]) -> Problem:
    keys = _present(document.data, details["loc"])
    if details["type"] == "union_tag_invalid":
        keys = (*keys, details["ctx"]["discriminator"].strip("'"))
    return Problem(_origin(document, keys), keys, _wording(keys, details))


def _present(data: Any, location: tuple[str | int, ...]) -> Keys:
    """The error's place as a path in the file: pydantic also names the member of a union, which no file has."""
    keys: list[str | int] = []
    for i, key in enumerate(location):
        if isinstance(data, dict) and (key in data or i == len(location) - 1):
            data = data.get(key)  # the last may be a required key that is missing
        elif isinstance(data, list) and isinstance(key, int):
            data = data[key]
        else:
            continue
        keys.append(key)
    return tuple(keys)


def _wording(keys: Keys, details: dict[str, Any]) -> str:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    got = f", got {show(value)}"
    expected = {
        "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
        "bool_type": "true or false", "string_type": "text", "list_type": "a list",
        "finite_number": "a finite number", "model_type": "a mapping", "model_attributes_type": "a mapping",
        "dict_type": "a mapping",
    }  # fmt: skip
    bounds = {
        "greater_than_equal": ("at least", "ge"), "greater_than": ("more than", "gt"),
        "less_than_equal": ("at most", "le"), "less_than": ("less than", "lt"),
    }  # fmt: skip
    if kind == "extra_forbidden":
        parent = keys[:-1] if keys[-1] == details["loc"][-1] else keys
        sections = sections_at(parent)
        # Of a union only the member that was chosen: its class has the chosen name, which stands in the location.
        sections = {section for section in sections if section.__name__ in details["loc"]} or sections
        known = {name for section in sections for name in section.model_fields}
        bare = parent == keys  # an augmentation written as a name alone: no key of that name stands in the file
        return f"unknown {show(details['loc'][-1]) if bare else 'key'}" + did_you_mean(
            details["loc"][-1], sorted(known)
        )
    if kind == "missing":
        return "is required"
    if kind in expected:
        return f"expected {expected[kind]}{got}"
    if kind in ("too_short", "too_long"):
        word, key = ("at least", "min_length") if kind == "too_short" else ("at most", "max_length")
        return f"expected {word} {context[key]} {'entry' if context[key] == 1 else 'entries'}{got}"
    if kind in bounds:
        word, key = bounds[kind]
        bound = f"{context[key]:,}" if isinstance(context[key], int) else f"{context[key]:g}"
        return f"expected {word} {bound}{got}"
    if kind == "literal_error":
        names = [name.strip("'") for name in context["expected"].replace(" or ", ", ").split(", ")]
        names = [{"True": "true", "False": "false"}.get(name, name) for name in names]
        nearest = did_you_mean(value, names) if isinstance(value, str) else ""
        return f"expected one of {', '.join(names)}{got}" + (nearest if "did you" in nearest else "")
    if kind == "union_tag_invalid":
        names = [name.strip("'") for name in context["expected_tags"].split(", ")]
        return f"unknown name {show(context['tag'])}" + did_you_mean(context["tag"], names)
    if kind == "union_tag_not_found":
        return f"expected a key {context['discriminator'].strip(chr(39))}{got}"
    if kind == "source":
        return details["msg"]
    if kind == "string_pattern_mismatch":
        return f"expected letters, digits, spaces and . _ + - only, not at the start{got}"
    return f"{details['msg']}{got}"


def _annotated(value: Any, keys: Keys, origins: dict[Keys, str]):
    for key, child in value.items():
        here = (*keys, key)
        indent = "  " * len(keys)
        if isinstance(child, dict) and child:
            yield f"{indent}{key}:", ""
            yield from _annotated(child, here, origins)
            continue
        text = yaml.safe_dump(child, default_flow_style=True, width=1000, allow_unicode=True)
        text = text.removesuffix("\n").removesuffix("\n...")
        # A bare list of the search's space stands under `choice` here.
        is_choice = keys[:2] == ("search", "space") and key == "choice"
        yield f"{indent}{key}: {text}", origins.get(here) or (is_choice and origins.get(keys)) or "default"
