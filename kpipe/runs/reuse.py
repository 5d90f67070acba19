"""What a run has taken from `model.init_from`: init_from.json."""

from dataclasses import asdict, fields

from kpipe.models.pretrained import Reuse
from kpipe.runs.directory import Run

_INIT_FROM = "init_from.json"


def record_reuse(run: Run, source: str, reuse: Reuse, normalization: str) -> None:
    """Write down which layers of a run take their weights from elsewhere.

    Args:
        run: the run directory.
        source: value of `model.init_from`.
        reuse: what is taken from it.
        normalization: what the first layer does, in words.
    """
    run.write_json(_INIT_FROM, {"source": source, **asdict(reuse), "normalization": normalization})


def recorded_reuse(run: Run) -> Reuse | None:
    """Return what a resumed run has taken from elsewhere when it began; None: nothing, or the record is damaged."""
    record = run.read_json(_INIT_FROM) if run.resumed else {}
    if not all(field.name in record for field in fields(Reuse)):
        return None
    values = {field.name: record[field.name] for field in fields(Reuse)}
    return Reuse(**values | {name: tuple(values[name]) for name in ("reused", "new")})
