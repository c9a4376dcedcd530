"""A checkout to run a document's commands in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.docs.blocks import ROOT, sh


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like the checkout, but may be written to, with a file of the user's own samples."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    sh(f"cp -r {ROOT}/models {folder}/", tmp_path)
    with np.load(folder / "models" / "digits" / "holdout.npz") as held_out:
        np.savez(folder / "samples.npz", image=held_out["images"][:, None].astype(np.float32))
    return folder
