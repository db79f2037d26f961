"""Many simulated trials in few processes, under Tune's real controller: what 500 running trials cost their driver.

A trial's own process takes some 100 MB, so a machine of 24 GB can't run 500 of them. Here several trials share a Ray
actor, each in a thread of it. Tune's controller, its events, its placement groups and every call to an actor are the
real ones; what is left out is that each trial has a process.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import ray
from ray.actor import ActorClass, ActorHandle
from ray.air.execution._internal.actor_manager import RayActorManager

_OF_TUNE = "ray.tune.execution.tune_controller.RayActorManager"


class _Host:
    """Holds trainables, by a number, in one process."""

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}
        self.made = threading.Condition()

    def make(self, number: int, trainable: type, arguments: dict[str, Any]) -> None:
        made = trainable(**arguments)
        with self.made:
            self.held[number] = made
            self.made.notify_all()

    def call(self, number: int, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if method == "__ray_ready__":
            with self.made:
                self.made.wait_for(lambda: number in self.held)
            return True
        if method == "__ray_terminate__":
            self.held.pop(number)
            return None
        return getattr(self.held[number], method)(*arguments, **named)


class _Method:
    def __init__(self, host: ActorHandle[Any], number: int, name: str) -> None:
        self.host, self.number, self.name = host, number, name

    def remote(self, *arguments: Any, **named: Any) -> Any:
        return self.host.call.remote(self.number, self.name, arguments, named)


class _Handle:
    """One of a host's trainables, called as an actor of its own would be."""

    def __init__(self, host: ActorHandle[Any], number: int) -> None:
        self._host, self._number = host, number

    def __getattr__(self, name: str) -> _Method:
        return _Method(self._host, self._number, name)


class _Shared(ActorClass):
    """A trainable's class for Ray's actor manager; its "actors" are trainables of the hosts, by turns."""

    def __init__(self, trainable: type, hosts: Iterator[tuple[int, ActorHandle[Any]]]) -> None:
        self._trainable, self._hosts = trainable, hosts

    def options(self, **options: Any) -> _Shared:
        return self

    def remote(self, **arguments: Any) -> _Handle:
        number, host = next(self._hosts)
        host.make.remote(number, self._trainable, arguments)
        return _Handle(host, number)


@contextlib.contextmanager
def shared_actors(trials: int, per_process: int) -> Iterator[None]:
    """While it is open, the trials of a Tuner share actors, so many trials each."""
    count = -(-trials // per_process)
    host_class = ray.remote(_Host).options(num_cpus=0, max_concurrency=per_process + 2)
    hosts = [host_class.remote() for _ in range(count)]
    turns = zip(itertools.count(), itertools.cycle(hosts), strict=False)

    class Manager(RayActorManager):
        def add_actor(self, cls: Any, *arguments: Any, **named: Any) -> Any:
            metadata = cls.__ray_metadata__
            return super().add_actor(_Shared(metadata.modified_class, turns), *arguments, **named)

        def cleanup(self) -> None:
            self._live_actors_to_ray_actors_resources.clear()  # no actor of ours to kill
            super().cleanup()

    with mock.patch(_OF_TUNE, Manager):
        try:
            yield
        finally:
            for host in hosts:
                ray.kill(host)
