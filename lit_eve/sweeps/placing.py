"""Where tasks run: Ray finds a machine with the cores, GPUs and memory that one asks for.

By default these are the cores and GPUs of this machine, for as long as the sweep runs; with an address, those of a cluster
whose machines see the same folders.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.nano.seeds import cores
from lit_eve.sweeps.ablation import Resources
from lit_eve.sweeps.work import Order, carry_out

OBJECT_STORE = 100_000_000
"""Bytes; tasks tell each other nothing through it."""
KNOCK = 10.0
"""Seconds in which a cluster must answer."""
RETRIES = 5
"""How often a task goes on elsewhere after its machine was lost."""


class Placement:
    """Ray, while a sweep runs.

    Args:
        resources: what one task asks for.
        address: of a cluster, ``auto`` or ``HOST:PORT``; None: this machine alone.

    Raises:
        ConfigError: Ray is not installed or not there, or no machine has room for a single task.
    """

    def __init__(self, resources: Resources, address: str | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise ConfigError("lit-eve sweep needs Ray: pip install 'lit-eve[sweeps]'") from error
        self.ray, self.resources = ray, resources
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "ignore_reinit_error": True}
        try:
            if address is None:
                ray.init(num_cpus=cores(), include_dashboard=False, object_store_memory=OBJECT_STORE, **common)
            else:
                _knock(address)
                ray.init(address=address, **common)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"--address {address}: {' '.join(str(error).split())}") from error
        asks = {"num_cpus": resources.cores, "num_gpus": resources.gpus, "max_retries": RETRIES}
        if resources.memory_gb:
            asks["memory"] = int(resources.memory_gb * 1e9)
        self._remote = ray.remote(**asks)(_carry_out)
        if not self.capacity:
            self.close()
            raise ConfigError(self._no_room())

    def __enter__(self) -> Placement:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what still runs: trainings save a checkpoint."""
        self.ray.shutdown()

    @property
    def capacity(self) -> int:
        """How many tasks fit side by side on the machines that are there now."""
        return sum(map(self._fit, self._machines()))

    def _machines(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _fit(self, machine: dict[str, float]) -> int:
        asks = {"CPU": self.resources.cores, "GPU": self.resources.gpus, "memory": self.resources.memory_gb * 1e9}
        return int(min(machine.get(name, 0.0) // amount for name, amount in asks.items() if amount))

    def _no_room(self) -> str:
        asks = self.resources
        return (
            f"resources: a trial asks for {asks.cores} cores, {asks.gpus} GPUs and {asks.memory_gb:g} GB of memory, and no "
            "machine has that much"
        )

    def submit(self, order: Order) -> Any:
        """Begin a task as soon as there is room; what is returned is for :meth:`ended` and :meth:`cancel`."""
        return self._remote.remote(order)

    def ended(self, running: Sequence[Any], seconds: float) -> list[tuple[Any, str | None]]:
        """Wait for the next tasks to end, so long at most: each with the reason why it failed, or None."""
        done, _ = self.ray.wait(list(running), num_returns=1, timeout=seconds)
        return [(one, self._why(one)) for one in done]

    def _why(self, one: Any) -> str | None:
        try:
            return self.ray.get(one)
        except self.ray.exceptions.TaskCancelledError:
            return "it was stopped"
        except self.ray.exceptions.RayError as error:
            return f"its machine or process was lost {RETRIES + 1} times: {' '.join(str(error).split())[:500]}"

    def cancel(self, one: Any) -> None:
        """Stop a task; a training saves a checkpoint."""
        self.ray.cancel(one, force=False)


def _knock(address: str) -> None:
    """Raise OSError where nobody answers at HOST:PORT: Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "//" not in host:
        socket.create_connection((host, int(port)), timeout=KNOCK).close()


def _carry_out(order: Order) -> str | None:
    """What Ray runs: errors of the task come back as text, so that Ray tries again only what was lost."""
    try:
        carry_out(order)
    except (LitEveError, OSError) as error:
        return str(error)
    return None
