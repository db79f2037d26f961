"""Which nodes are woken."""

from __future__ import annotations

import pytest
import ray

from rpg_platform.run.idle_nodes import NodeWaker, looks_taken


@pytest.mark.parametrize(
    ("free", "taken"),
    [
        ({"memory": 1.0}, True),  # as Ray counts a node that came back and whose CPUs it lost
        ({"CPU": 1.0, "memory": 1.0}, True),
        ({"CPU": 2.0}, False),
        ({"memory": 1.0, "bundle_group_0_ab12": 1000.0}, False),  # a trial's
    ],
)
def test_a_node_is_woken_where_cpus_are_gone_and_no_trial_has_them(free: dict[str, float], taken: bool) -> None:
    assert looks_taken({"CPU": 2.0, "memory": 1.0}, free) is taken
    assert not looks_taken({"memory": 1.0}, free), "one without CPUs, as a head that only leads"


def test_it_is_asked_once_until_it_answers(local_ray: None) -> None:
    @ray.remote(num_cpus=2)
    class Busy:
        def here(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    busy, waker = Busy.remote(), NodeWaker()  # type: ignore[attr-defined]
    node = ray.get(busy.here.remote(), timeout=60)
    waker.on_step_end(0, [])
    [asked] = waker._asked.values()
    waker._looked = 0.0
    waker.on_step_end(0, [])
    assert list(waker._asked.values()) == [asked]
    assert list(waker._asked) == [node]
    ray.kill(busy)
    assert ray.get(asked, timeout=60) is None
