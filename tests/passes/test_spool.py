from __future__ import annotations

from tempfile import TemporaryFile
from typing import BinaryIO, cast

import numpy as np
import pytest

from adaptc.errors import PassError
from adaptc.ir.unread.constants import UnreadConstant, rows_of
from adaptc.passes.spool import LEAST, Spool


def test_constants_come_back_as_they_were() -> None:
    files: list[BinaryIO] = []

    def scratch() -> BinaryIO:
        files.append(cast("BinaryIO", TemporaryFile()))  # noqa: SIM115  (dropped with the constants)
        return files[-1]

    spool, random = Spool(scratch), np.random.default_rng(0)
    assert isinstance(spool.constant(np.zeros(4, np.float32), "small").numpy(), np.ndarray)
    assert files == []
    arrays = {
        "codes": random.integers(0, 255, (300, 8, 40), np.uint8),
        "scales": random.standard_normal((LEAST // 16, 5)).astype(np.float32),
        "turned": random.standard_normal((400, 300)).astype(np.float16).T,
    }
    kept = {name: spool.constant(array, name) for name, array in arrays.items()}
    assert len(files) == 1
    for name, array in arrays.items():
        assert isinstance(kept[name], UnreadConstant)
        assert (kept[name].name, kept[name].nbytes, tuple(kept[name].shape)) == (name, array.nbytes, array.shape)
        assert np.array_equal(kept[name].numpy(), array)
        assert np.array_equal(rows_of(kept[name])[7:99], array[7:99])


def test_arrays_are_views_of_the_file() -> None:
    files: list[BinaryIO] = []

    def scratch() -> BinaryIO:
        files.append(cast("BinaryIO", TemporaryFile()))  # noqa: SIM115  (dropped with the arrays)
        return files[-1]

    spool, random = Spool(scratch), np.random.default_rng(0)
    small = np.zeros(4, np.float32)
    assert spool.array(small, "small") is small
    odd = random.integers(0, 255, LEAST + 1, np.uint8)
    arrays = [odd, random.standard_normal((LEAST, 3)).astype(np.float32), odd[::-1]]
    kept = [spool.array(each, "lm.codes") for each in arrays]
    assert len(files) == 1
    for view, each in zip(kept, arrays, strict=True):
        assert isinstance(view.base, np.memmap)
        assert view.flags.aligned
        assert not view.flags.writeable
        np.testing.assert_array_equal(view, each)


def test_a_disk_that_is_full_is_a_sentence() -> None:
    def scratch() -> BinaryIO:
        raise OSError(28, "No space left on device")

    with pytest.raises(PassError, match=r"^lm.codes: cannot write to a scratch file: No space left on device$"):
        Spool(scratch).constant(np.zeros(LEAST, np.uint8), "lm.codes")
