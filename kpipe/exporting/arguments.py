"""What an export is given, checked before TensorFlow is imported."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from kpipe.catalog.formats import CARD, FORMATS
from kpipe.catalog.wording import show
from kpipe.errors import ConfigError, did_you_mean
from kpipe.files import check_output_folder, expand_path
from kpipe.names import is_utf8, path_shown


def check_arguments(
    file: Path, to: str | Sequence[str], output: str | Path | None, int8: bool
) -> tuple[Path, dict[str, str]]:
    """Return the folder to which each format adds its own, and the names of these by format.

    A folder has the name of its format. The other weights of a run, model_averaged.keras or model_raw.keras, get
    folders of their own.

    Args:
        file: the model file.
        to: one or several names of `FORMATS`.
        output: the folder; None: `export` beside the model file.
        int8: whether a quantized network is wanted too.

    Raises:
        ConfigError: an unknown format, one whose packages are not installed, or a folder that cannot be written, has
            something else in it, or has a path that is not UTF-8.
    """
    names = list(dict.fromkeys([to] if isinstance(to, str) else to))
    if not names:
        raise ConfigError(f"to: expected one or more of {', '.join(FORMATS)}, got none")
    for name in names:
        if name not in FORMATS:
            raise ConfigError(
                f"to: expected one of {', '.join(FORMATS)}, got {show(name)}{did_you_mean(name, FORMATS)}"
            )
    if int8 and "litert" not in names:
        raise ConfigError(f"int8: expected the format litert, which alone is quantized, got {', '.join(names)}")
    for name in names:
        if missing := [module for module in FORMATS[name].modules if find_spec(module) is None]:
            raise ConfigError(
                f"to: {name} needs {', '.join(each.replace('_', '-') for each in missing)}, which cannot be imported. "
                'Install with: pip install -e ".[export]"'
            )
    folder = file.parent / "export" if output is None else expand_path(str(output), "output")
    if not is_utf8(str(folder)):
        raise ConfigError(
            f"output: expected a folder whose path is UTF-8, which the runtimes need, got {path_shown(folder)}. Give "
            "another output folder"
        )
    check_output_folder(folder)
    kind = file.stem.removeprefix("model_")
    folders = {name: name if kind == file.stem else f"{name}_{kind}" for name in names}
    for path in (folder / name for name in folders.values()):
        if path.exists() and not (path / CARD).is_file() and not (path.is_dir() and not any(path.iterdir())):
            raise ConfigError(
                f"output: expected an empty folder or an earlier export to replace, got {path_shown(path)}, which is "
                "neither. Move it, or give another output folder"
            )
    return folder, folders
