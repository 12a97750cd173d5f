"""Manifests of schemas that bundles had before: read as what they would say in the present one.

Schema 2 kept what was measured in an untyped `report`, a route's cost beside its graph, and both infinities as null.
Schema 3 knew no rows that decide each for itself, so it timed none. Schema 4 had no graphs that verify drafted tokens.
In schema 5 the cache of every layer held all positions. Schema 6 had no adapters that requests choose among.
In schema 7 routers picked any route, and gates had one table of thresholds for what is scored and what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from adaptc.runtime.errors import BundleError


def upgraded(content: dict[str, Any], to: int) -> dict[str, Any]:
    """A manifest, parsed from JSON and without its seal, in the form of a later schema.

    Args:
        content: Of schema `to`, or of one that `UPGRADES` knows.
        to: A schema.

    Raises:
        BundleError: it is not of its schema's form.
    """
    while (schema := content["schema"]) != to:
        try:
            content = UPGRADES[schema](content)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BundleError(f"not a manifest of schema {schema} ({error!r}); compile again") from error
    return content


def _from_schema2(content: dict[str, Any]) -> dict[str, Any]:
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


def _from_schema3(content: dict[str, Any]) -> dict[str, Any]:
    verdicts = {
        name: verdict | {"rows": [times | {"apart": 0.0} for times in verdict["rows"]]}
        for name, verdict in content["gate_verdicts"].items()
    }
    return content | {"schema": 4, "gate_verdicts": verdicts}


def _from_schema4(content: dict[str, Any]) -> dict[str, Any]:
    return content | {"schema": 5, "verification": {}, "draft": ""}


def _from_schema5(content: dict[str, Any]) -> dict[str, Any]:
    graphs = {
        name: graph | {"decoder": None if graph["decoder"] is None else graph["decoder"] | {"windows": []}}
        for name, graph in content["graphs"].items()
    }
    return content | {"schema": 6, "graphs": graphs}


def _from_schema6(content: dict[str, Any]) -> dict[str, Any]:
    return content | {"schema": 7, "adapters": {}}


def _from_schema7(content: dict[str, Any]) -> dict[str, Any]:
    gates = {name: each | {"written": [], "written_loss": []} for name, each in content["gates"].items()}
    return content | {"schema": 8, "plan": [_with_withheld(step) for step in content["plan"]], "gates": gates}


def _with_withheld(step: dict[str, Any]) -> dict[str, Any]:
    router = step.get("router")
    return step if router is None else step | {"router": router | {"withheld": {}}}


UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    2: _from_schema2,
    3: _from_schema3,
    4: _from_schema4,
    5: _from_schema5,
    6: _from_schema6,
    7: _from_schema7,
}
"""By schema, what makes a manifest of the next one of it."""
