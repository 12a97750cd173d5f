"""Write texts.txt, which the gates of this example are trained on: encyclopedia, news and Python.

All of it comes in packages:  pip install gensim==4.4.0
"""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import gensim
from gensim.corpora.wikicorpus import extract_pages, filter_wiki
from smart_open import open as open_packed

CODE = ("argparse", "ast", "collections/__init__", "dataclasses", "functools", "inspect", "pathlib", "textwrap")


def main() -> None:
    """Write the file beside this one."""
    folder = Path(gensim.__file__).parent / "test" / "test_data"
    [dump] = folder.glob("enwiki-latest-pages-articles1*.bz2")
    with open_packed(dump, "rb") as file:
        pages = [_prose(title, filter_wiki(text)) for title, text, _ in extract_pages(file, ("0",))]
    news = (folder / "lee_background.cor").read_text()
    library = Path(sysconfig.get_paths()["stdlib"])
    code = [(library / f"{name}.py").read_text() for name in CODE]
    whole = "\n\n".join(filter(None, [*pages, news, *code]))
    Path(__file__).with_name("texts.txt").write_text(whole)
    print(f"{len(whole):,} characters")


def _prose(title: str, text: str) -> str:
    """Paragraphs of at least 200 characters: no tables, lists and links."""
    kept = [line.strip(" *:'") for line in text.splitlines() if len(line) > 200]
    plain = re.sub(r"''+|\[\[|\]\]|\|thumb|\(\s*\)", "", "\n".join(kept))
    return f"{title}\n\n{plain}" if plain else ""


if __name__ == "__main__":
    main()
