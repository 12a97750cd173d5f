"""The command `adaptc serve`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from adaptc.cli.options import RUNS_ON, THREADS, load_targets


@click.command("serve")
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes any free port.")
@RUNS_ON
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    help="Sequences decoded together; by default the bundle's, on a CPU 8 or more.",
)
@click.option("--max-queue", type=int, default=64, show_default=True, help="Requests of a model that may wait.")
@click.option("--max-tokens", type=int, help="Most tokens a request may write; by default what the bundle holds.")
@click.option("--max-seconds", type=float, default=600.0, show_default=True, help="Longest time of a request.")
@click.option("--max-body", type=int, default=8 << 20, show_default=True, help="Largest body of a request, in bytes.")
@click.option("--max-prompts", type=int, default=128, show_default=True, help="Most prompts in one request.")
@click.option("--max-connections", type=int, default=1024, show_default=True, help="Most connections at a time.")
@click.option("--drain-seconds", type=float, default=30.0, show_default=True, help="Time to finish on SIGTERM.")
@click.option(
    "--max-loss",
    type=float,
    help="For requests that name no budget: the most that skipping may be expected to cost, nats a token.",
)
@load_targets
@click.option(
    "--speculate",
    metavar="HOW",
    help="Guess next tokens for requests that do not say, with the same answers: auto, lookup, model, route or budget.",
)
@click.option("--api-key-file", type=click.Path(path_type=Path), help="File with the API keys, one on each line.")
@click.option("--allow-anonymous", is_flag=True, help="Let other machines ask without a key.")
@click.option("--allow-templates", is_flag=True, help="Take chat templates from requests.")
@click.option("--allowed-host", "allowed_hosts", multiple=True, help="A further name of this server. May be repeated.")
@click.option("--ui/--no-ui", default=True, show_default=True, help="Have a page for browsers at /ui.")
@click.option(
    "--job-policy",
    type=click.Choice(["auto", "table", "gate"]),
    default="auto",
    show_default=True,
    help="What jobs choose from: subsets, the modality gate as well, or what is worth it.",
)
@click.option("--log-json", is_flag=True, help="Write the log as JSON, one object on each line.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Compare every file's sha256 first.")
@THREADS
def command(
    bundles: tuple[str, ...],
    device: str,
    max_batch: int | None,
    target_ttft: float | None,
    target_tpot: float | None,
    min_budget: float | None,
    max_loss: float | None,
    speculate: str | None,
    api_key_file: Path | None,
    allow_anonymous: bool,
    allow_templates: bool,
    job_policy: str,
    threads: int | None,
    verify: bool,
    **limits: Any,
) -> None:
    """Answer OpenAI's API over HTTP with bundles.

    Each BUNDLE is a folder, or NAME=FOLDER; without a name clients call it by its folder's.
    """
    from adaptc.runtime.errors import RequestError
    from adaptc.runtime.generation.load_control import load_targets_of
    from adaptc.runtime.server.endpoints.parts import ServerParts
    from adaptc.runtime.server.observing.logs import say, write_log
    from adaptc.runtime.server.running import BACKLOG, bound_socket, keep_memory_together, run, url_of
    from adaptc.runtime.server.serving.entrance import Entrance
    from adaptc.runtime.server.serving.models import Models, TextModel, load_model
    from adaptc.runtime.server.serving.settings import Settings, read_keys

    keys = frozenset() if api_key_file is None else read_keys(api_key_file)
    settings = Settings(keys=keys, templates=allow_templates, **limits)
    if not settings.loopback and not keys and not allow_anonymous:
        raise RequestError(
            f"--host: {settings.host} lets other machines ask; --api-key-file is needed, or --allow-anonymous"
        )
    targets = load_targets_of(target_ttft, target_tpot, min_budget)
    write_log(settings.log_json)
    keep_memory_together()
    listening = bound_socket(settings.host, settings.port)
    with listening, ExitStack() as stack:
        models = []
        for text in bundles:
            name, path = _named(text)
            model = load_model(
                path,
                name,
                device=device,
                batch=max_batch,
                threads=threads,
                verify=verify,
                targets=targets,
                speculate=speculate,
                max_loss=max_loss,
            )
            stack.callback(model.close)
            models.append(model)
            say("loaded", model=name)
        if targets is not None and not any(
            isinstance(each, TextModel) and each.session.takes_budget for each in models
        ):
            raise RequestError("--target-ttft, --target-tpot: no bundle has gates or a router: leave them out")
        parts = ServerParts(settings, Models(models), Entrance(settings.max_queue))
        parts.jobs.open(models, job_policy)
        listening.listen(BACKLOG)  # who reads the next line may come at once
        say("listening", url=url_of(listening), models=",".join(parts.models.by_name))
        run(parts, listening)


def _named(text: str) -> tuple[str, Path]:
    """The name and the folder of a bundle on the command line."""
    name, equals, folder = text.partition("=")
    if equals and name and "/" not in name:
        return name, Path(folder)
    path = Path(text)
    return path.resolve().name, path
