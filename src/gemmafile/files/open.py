"""The one place that turns a path into an open model, whatever kind of file it is."""

from __future__ import annotations

from pathlib import Path

from gemmafile.files.gguf import ModelFile, open_gguf


def open_model(path: str | Path) -> ModelFile:
    """Open the model at `path`: a GGUF file, or the first part of a split one. Raises BadFile for anything else."""
    return open_gguf(path)
