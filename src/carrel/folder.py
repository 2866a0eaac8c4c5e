"""The one folder in which everything of a desk lies. Needs nothing else of Carrel."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from platformdirs import user_data_path


class DataFolderError(ValueError):
    """The data folder cannot be used; the message says which and why."""


def data_folder(wanted: Path | None = None) -> Path:
    """The folder that holds everything of this desk: ``wanted``, else ``CARREL_DATA``, else the platform's place.

    It is made if it is not there. Raises DataFolderError where it cannot be made or written.
    """
    folder = wanted or (Path(os.environ["CARREL_DATA"]) if os.environ.get("CARREL_DATA") else user_data_path("carrel"))
    folder = folder.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataFolderError(
            f"the data folder {folder} cannot be written ({reason}); name another with --data or CARREL_DATA"
        ) from error
    return folder


def runs_folder(data: Path) -> Path:
    """Where results of experiments are kept; it can be deleted at any time."""
    return data / "runs"
