"""Into which pieces a prompt is cut."""

from __future__ import annotations

import pytest

from adaptc.runtime.model.decoder import TILE, piece_size


@pytest.mark.parametrize("most", [2, 3, 7, 64, TILE, TILE + 1, TILE + 2, 2 * TILE + 1, 2048])
def test_no_token_is_multiplied_alone(most: int) -> None:
    """Neither in a piece of its own nor behind the last whole tile of one."""
    for tokens in range(1, 5 * TILE):
        left = tokens
        while left:
            size = piece_size(left, most)
            assert 1 <= size <= min(left, max(most, 3))
            assert size % TILE != 1 or tokens == 1
            left -= size


def test_pieces_are_as_large_as_they_may_be() -> None:
    assert [piece_size(left, 512) for left in (2, 64, TILE, 512, 600)] == [2, 64, TILE, 512, 512]
    assert [piece_size(left, 512) for left in (1, TILE + 1, 513)] == [1, TILE - 1, 511]
    assert piece_size(5, 1) == 1
