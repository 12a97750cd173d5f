from __future__ import annotations

from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.verification.text import ids_part
from tests.models.tiny_tokenizer import byte_level


def test_ids_are_shown_from_the_first_that_is_another_one() -> None:
    tokenizer = Tokenizer({"tokenizer.json": byte_level().to_str().encode()})
    text = "a b c d e f g h i j"
    ids = tokenizer.encode(text)
    wrong = [*ids[:-1], ids[-1] + 1]
    assert ids_part(tokenizer, "", [text], [ids], [ids]).why == ()
    part = ids_part(tokenizer, "", [text], [wrong], [ids])
    assert part.why == (f"'{text}' gives [{ids[-1]}], not [{ids[-1] + 1}], after {len(ids) - 1} ids",)
    assert ids_part(tokenizer, "", [text], [[]], [ids]).why[0].endswith(", …], not []")
