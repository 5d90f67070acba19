"""What the readers of weight files share: their result, and the errors about a file as a whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kpipe.catalog.weights import unusable
from kpipe.errors import KpipeError, first_line
from kpipe.models.preprocessing import Normalization

Arrays = list[np.ndarray]

OTHER_HEAD = "the classifier has other layers"
"""Why a layer or tensor is left out that belongs to a classifier of another form."""


class NamedWeights(NamedTuple):
    """The weights of a file by the names of kpipe's layers; the fields are those of `Pretrained`."""

    kind: str
    network: str
    layers: dict[str, Arrays]
    normalization: Normalization | None
    class_names: tuple[str, ...] | None
    left_out: dict[str, str]


@contextmanager
def translate_damage(
    path: Path, where: str = "model.init_from: ", remedy: str = "Download or copy it again"
) -> Iterator[None]:
    """Convert whatever a library raises about a file that it cannot read to a ConfigError; see `unusable`.

    Args:
        path: the file.
        where: what named it.
        remedy: what to do about a file that is damaged.
    """
    try:
        yield
    except (KpipeError, MemoryError):
        raise
    except Exception as error:
        # Keras wraps what it does not understand in advice about something else.
        reason = "" if isinstance(error, FileNotFoundError | ValueError) else f" ({first_line(error).rstrip('.')})"
        raise unusable(
            str(path),
            f"expected a whole file, got one that is damaged or cut short{reason}. {remedy}",
            where,
        ) from None
