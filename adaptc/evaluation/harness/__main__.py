"""lm-evaluation-harness's own command, with the model `adaptc` and our tasks: `python -m adaptc.evaluation.harness`."""

from __future__ import annotations

import sys

from lm_eval.__main__ import cli_evaluate

from adaptc.evaluation.harness import model  # noqa: F401  # registers `adaptc`
from adaptc.evaluation.harness.run import TASKS

if __name__ == "__main__":
    if not any(each.split("=")[0] == "--include_path" for each in sys.argv):
        sys.argv += ["--include_path", str(TASKS)]
    cli_evaluate()
