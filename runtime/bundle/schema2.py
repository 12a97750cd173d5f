"""Manifests of schema 2, as bundles had them before: read as what they would say in the present schema.

Schema 2 kept what was measured in an untyped `report`, a route's cost beside its graph, and both infinities as null.
"""

from __future__ import annotations

from typing import Any

from adaptc.runtime.errors import BundleError


def upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """A manifest of schema 2, parsed from JSON and without its seal, in the form of schema 3.

    Raises:
        BundleError: it is not of schema 2's form.
    """
    try:
        return _upgraded(content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BundleError(f"not a manifest of schema 2 ({error!r}); compile again") from error


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in content.items() if key != "report"}
    report = content["report"]
    nodes, skippable = report.get("nodes", {}), report.get("skippable_bytes", {})
    return kept | {
        "schema": 3,
        "plan": [_step(step) for step in content["plan"]],
        "graphs": {
            name: graph | {"nodes": nodes.get(name, 0), "skippable_bytes": skippable.get(name, [])}
            for name, graph in content["graphs"].items()
        },
        "bytes_per_token": int(report.get("bytes_per_token", 0)),
        "route_bytes": {
            step["switch"]: {route: record["bytes_per_token"] for route, record in step["routes"].items()}
            for step in content["plan"]
            if "switch" in step
        },
        "gate_verdicts": {name: _verdict(record) for name, record in report.get("gates", {}).items()},
        "replaced_gates": report.get("gates_replaced", {}),
    }


def _step(step: dict[str, Any]) -> dict[str, Any]:
    if "run" in step:
        return {"graph": step["run"]}
    router = step["router"]
    if router is not None:
        # null was -inf at the dearest route's cost, and inf below it.
        levels = [[cost, "inf" if level is None and cost < 1 else level] for cost, level in router["levels"]]
        router = router | {"levels": levels}
    routes = {route: record["graph"] for route, record in step["routes"].items()}
    return {"gate": step["switch"], "routes": routes, "router": router}


def _verdict(record: dict[str, Any]) -> dict[str, Any]:
    times = {key: record[key] for key in ("dense", "run", "skipped", "gates", "shared")}
    rest = {key: record[key] for key in ("why", "each", "rows")}
    return {"payoff": times, "pays": record["kept"]} | rest
