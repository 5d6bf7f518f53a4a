"""Exports as the store keeps them: what is handed over is what was judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..eval.errors import RunError
from ..export.verify import VerifyError, check_files, read_manifest


def check_kept(folder: Path) -> dict[str, Any]:
    """Makes sure that an export still has the bytes that its stage left.

    Args:
        folder: Of the export, within its stage.

    Returns:
        The content of its ``golden.json``.

    Raises:
        RunError: If a file of it is missing or was changed.
    """
    try:
        manifest = read_manifest(folder)
        check_files(folder, manifest)
    except VerifyError as error:
        raise RunError(
            f"{error} This is what the runs share: delete '{folder.parent}', and the same command "
            "makes it anew."
        ) from None
    return manifest
