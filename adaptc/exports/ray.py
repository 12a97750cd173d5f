"""An application of Ray Serve: the logic is `adaptc.runtime.server.scaling`, the folder names bundle and options."""

from __future__ import annotations

from typing import Any

import yaml

from adaptc.exports.options import Exported, ExportOptions, answers_inputs, engine_extra
from adaptc.exports.wheel import WHEEL, own_wheel
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.errors import RequestError
from adaptc.runtime.loading import runs_on_gpu

_APP = '''\
"""The application that serve.yaml names: an entrance, and pools of replicas of adaptc's server."""

from pathlib import Path

from adaptc.runtime.server.scaling.ray_app import application_from


def build(args):
    """Make the application; Ray Serve calls this with `args` of serve.yaml."""
    return application_from(args, Path(__file__).resolve().parent)
'''

_README = """\
# A bundle on Ray Serve

    pip install -r requirements.txt
    serve run serve.yaml                # here, until it is stopped; from this folder
    serve deploy serve.yaml             # on a cluster that runs: each node needs this folder in the same place
    curl localhost:8000/v1/models

`serve.yaml` says how many replicas there are, when one is added, how long one drains, and who may ask: without
`api_key_file` everybody who reaches it. Written by `adaptc export --to ray`, which replaces the whole folder;
docs/scaling.md of adaptc says what happens to requests when a replica is lost.
"""


def ray_export(bundle: Bundle, options: ExportOptions) -> Exported:
    """The folder's content.

    Args:
        bundle: An opened bundle.
        options: How it shall run.

    Raises:
        RequestError: a pool names a route that the bundle does not have.
    """
    switch = bundle.manifest.switch
    known = () if switch is None else tuple(switch.routes)
    for pool, routes in options.pools.items():
        for route in routes:
            if route not in known:
                there = f"there are: {', '.join(known)}" if known else "this bundle has none"
                raise RequestError(f"--pool {pool}: no route {route!r}; {there}")
    return Exported(
        {
            "app.py": _APP,
            "serve.yaml": yaml.safe_dump(_config(bundle, options), sort_keys=False, allow_unicode=True, width=120),
            "requirements.txt": f"./{WHEEL}[{engine_extra(bundle)},serve,ray]\n",
            WHEEL: own_wheel(),
            "README.md": _README,
        },
        bundle if options.copy else None,
    )


def _config(bundle: Bundle, options: ExportOptions) -> dict[str, Any]:
    """What `serve run` and `serve deploy` read."""
    gpu = runs_on_gpu(bundle)
    batch = options.batch(bundle)
    resources = {"num_gpus": 1} if gpu else {"num_cpus": options.threads}
    args: dict[str, Any] = {
        "bundles": {options.name: options.place(bundle)},
        "pools": {name: list(routes) for name, routes in options.pools.items()},
        "threads": options.threads,
        "max_queue": options.max_queue,
        "drain_seconds": options.drain_seconds,
        "log_json": True,
        "api_key_file": None,
        **options.load_control,
    }
    if gpu:
        del args["threads"]  # a GPU has no use for them
    if not answers_inputs(bundle):
        args["max_batch"] = batch
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "applications": [
            {
                "name": options.slug,
                "route_prefix": "/",
                "import_path": "app:build",
                "args": args,
                "deployments": [
                    *(_pool(name, batch, resources, options) for name in options.pools),
                    _entrance(options),
                ],
            }
        ],
    }


def _pool(name: str, batch: int, resources: dict[str, int], options: ExportOptions) -> dict[str, Any]:
    return {
        "name": name,
        "max_ongoing_requests": 2 * batch,  # a few wait where their prefix is known; the rest waits at the entrance
        "max_queued_requests": options.max_queue,
        "autoscaling_config": {
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": batch,
            "upscale_delay_s": 10,
            "downscale_delay_s": 120,
        },
        "graceful_shutdown_wait_loop_s": 1,
        "graceful_shutdown_timeout_s": options.drain_seconds,
        "ray_actor_options": resources,
    }


def _entrance(options: ExportOptions) -> dict[str, Any]:
    return {
        "name": "entrance",
        "num_replicas": 1,
        "graceful_shutdown_wait_loop_s": 1,
        "graceful_shutdown_timeout_s": options.drain_seconds + 5,
        "ray_actor_options": {"num_cpus": 0.1},
    }
