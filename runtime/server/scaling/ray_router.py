"""Ray Serve's request router over `PrefixTable`; the configuration of an application names it."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from adaptc.runtime.server.scaling.calls import ReplicaCall
from adaptc.runtime.server.scaling.prefixes import PrefixTable


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Sends a request to the replica that has read the beginning of its prompt."""

    def initialize_state(self, slack: int = 4) -> None:
        """See `RequestRouter`; `slack` is `PrefixTable`'s."""
        self._table = PrefixTable(slack)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """See `RequestRouter`: the replicas one by one, the best first; one that is full is passed over."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # when all are full, wait before asking again
        by_name = {each.replica_id.unique_id: each for each in candidate_replicas}
        loads = {name: self.replica_queue_len_cache.get(each.replica_id) or 0 for name, each in by_name.items()}
        return [[by_name[name]] for name in self._table.ranked(_keys(pending_request), loads)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """See `RequestRouter`."""
        self._table.note(_keys(pending_request), replica_id.unique_id)


def _keys(request: PendingRequest) -> tuple[bytes, ...]:
    return next((each.keys for each in request.args if isinstance(each, ReplicaCall)), ())
