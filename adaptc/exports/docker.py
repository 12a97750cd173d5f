"""A container image that runs `adaptc serve`: without torch, not as root, keys from a secret."""

from __future__ import annotations

import json
import math

from adaptc.exports.options import BUNDLE, Exported, ExportOptions
from adaptc.exports.wheel import WHEEL, own_wheel
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.errors import RequestError
from adaptc.runtime.loading import runs_on_gpu

PORT = 8000
USER = 10001
FOLDER = "/srv/adaptc"
KEYS = "/run/secrets/adaptc-keys"

_DOCKERFILE = f"""\
# Written by `adaptc export --to docker`. Build from this folder: docker build -t IMAGE .
FROM python:3.11-slim

COPY {WHEEL} /tmp/
RUN pip install --no-cache-dir "/tmp/{WHEEL}[cpu,serve]" \\
    && rm "/tmp/{WHEEL}" \\
    && useradd --system --uid {USER} --no-create-home adaptc
COPY --chown={USER}:{USER} {BUNDLE} {FOLDER}/{BUNDLE}

USER {USER}
WORKDIR {FOLDER}
EXPOSE {PORT}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \\
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:{PORT}/health', timeout=2)"]
ENTRYPOINT ["adaptc", "serve"]
CMD COMMAND
"""

_IGNORE = f"""\
# Nothing but what the image is made of.
*
!{BUNDLE}
!{WHEEL}
"""

_README = """\
# A bundle in a container

    docker build -t IMAGE .
    docker run --rm -p 127.0.0.1:8000:8000 --stop-timeout STOP -v "$PWD/keys:KEYS:ro" IMAGE
    curl -H "Authorization: Bearer $KEY" localhost:8000/v1/models

`keys` is a file with an API key of 16 characters or more on each line, readable for user 10001; in Compose it is a
secret called adaptc-keys. `docker stop` drains: what runs is finished. Arguments after IMAGE replace those of the
last line of the Dockerfile, see `adaptc serve --help`. Written by `adaptc export --to docker`.
"""


def serve_arguments(options: ExportOptions, keys: str) -> list[str]:
    """The arguments of `adaptc serve` in a container.

    Args:
        options: Those of the export.
        keys: Where the file with the API keys is.
    """
    arguments = [f"{options.name}={FOLDER}/{BUNDLE}", "--host", "0.0.0.0", "--port", str(PORT), "--log-json"]
    arguments += ["--api-key-file", keys, "--drain-seconds", f"{options.drain_seconds:g}"]
    arguments += ["--max-queue", str(options.max_queue), "--threads", str(options.threads)]
    for name, value in options.load_control.items():
        arguments += [f"--{name.replace('_', '-')}", f"{value:g}"]
    return arguments if options.max_batch is None else [*arguments, "--max-batch", str(options.max_batch)]


def docker_export(bundle: Bundle, options: ExportOptions) -> Exported:
    """The folder's content.

    Raises:
        RequestError: the bundle runs on a GPU only, or is not to be copied.
    """
    check_for_container(bundle)
    if not options.copy:
        raise RequestError("--no-copy: an image holds its bundle; leave it out")
    command = json.dumps(serve_arguments(options, KEYS))
    stop = str(math.ceil(options.drain_seconds) + 10)
    return Exported(
        {
            "Dockerfile": _DOCKERFILE.replace("COMMAND", command),
            ".dockerignore": _IGNORE,
            "README.md": _README.replace("STOP", stop).replace("KEYS", KEYS),
            WHEEL: own_wheel(),
        },
        bundle,
    )


def check_for_container(bundle: Bundle) -> None:
    """Refuse what the image's engine does not run.

    Raises:
        RequestError: the bundle is for a GPU.
    """
    if runs_on_gpu(bundle):
        backend = bundle.manifest.target.backend
        raise RequestError(f"{bundle.path}: compiled for {backend}; the image's engine is ONNX Runtime on a CPU")
