"""Run by test_packaging with almost nothing on the path: what a deployment has.

Usage: bare_runtime.py SITE [BUNDLE]. SITE holds adaptc, the runtime's dependencies, and history_lm (a fake model).
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys

ABSENT = ("torch", "transformers", "pydantic", "onnx", "onnx_ir", "onnxscript", "click", "rich", "yaml", "pytest")


def main(site: str, bundle: str | None = None) -> None:
    """Import every module of the runtime, and generate."""
    sys.path.insert(0, site)
    assert not [name for name in ABSENT if importlib.util.find_spec(name)], "this is no bare environment"
    import adaptc.runtime
    from adaptc.runtime import Session, load
    from adaptc.runtime.backends.host.decoder import HostDecoder

    for module in pkgutil.walk_packages(adaptc.runtime.__path__, "adaptc.runtime."):
        if not module.name.startswith("adaptc.runtime.server"):  # of an extra of its own
            importlib.import_module(module.name)
    assert adaptc.runtime.__file__.startswith(site)

    history_lm = importlib.import_module("history_lm")
    spec = history_lm.decoder_spec()
    with Session(HostDecoder(history_lm.HistoryLm(spec).engine, spec)) as session:
        result = session.generate([3, 1, 4, 1, 5], max_new_tokens=12)
    assert list(result.ids) == history_lm.greedy([3, 1, 4, 1, 5], 12, spec)

    if bundle is not None:
        with load(bundle, threads=1) as session:
            answer = session.generate("The capital of France is", max_new_tokens=4)
            told = session.chat([{"role": "user", "content": "Hello"}], max_new_tokens=4)
        assert answer.text.startswith(" Paris"), answer.text
        assert told.text
    sys.stdout.write("ran bare\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
