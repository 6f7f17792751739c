"""What the comparisons with other codes share."""

from __future__ import annotations

import typing
import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.utils.data.dataloader

MISSING = "SchNetPack is not installed, or not whole: pip install -e '.[peers]'"


@pytest.fixture(scope="module")
def schnetpack() -> Iterator[typing.Any]:
    """SchNetPack, which is in the extra `peers`."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # SchNetPack 2.0.4 imports a name that torch no longer has
        patch.setattr(torch.utils.data.dataloader, "T_co", typing.TypeVar("T_co", covariant=True), raising=False)
        # torchmetrics, which SchNetPack imports
        warnings.filterwarnings("ignore", "distutils Version classes are deprecated", DeprecationWarning)
        package = pytest.importorskip("schnetpack", reason=MISSING)
        pytest.importorskip("schnetpack.representation", reason=MISSING)
        pytest.importorskip("schnetpack.transform", reason=MISSING)
        yield package
