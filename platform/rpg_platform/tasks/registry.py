"""The registered tasks.

The add-on rewards of HalfCheetah, Hopper, Ant and Swimmer are those of the paper's authors (Residual Policy Gradient,
arXiv 2503.11019; Residual-MPPI). Those of CartPole and MountainCarContinuous are of residual Q-learning (arXiv
2306.09526), which adds a term of the pole's angle to CartPole's basic reward; here that is gymnasium's own. Walker2d's
and Humanoid's are ours. All are evaluated on the state that a step reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rpg_platform.tasks.expressions import Expression
from rpg_platform.tasks.task import Linear, Task

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task(
                "halfcheetah-foot-angle",
                "HalfCheetah-v5",
                Linear(7, -10.0, absolute=True),
                "|foot angle| rad",
                Linear(7, 1.0, absolute=True),
                "run, but keep the front foot's joint near its neutral angle: r_R = -10 |front foot angle|",
            ),
            Task(
                "hopper-height",
                "Hopper-v5",
                Linear(0, 10.0, center=1.0),
                "height m",
                Linear(0, 1.0),
                "hop, but higher: r_R = 10 (torso height - 1 m)",
            ),
            Task(
                "ant-sideways",
                "Ant-v5",
                Linear(14, -1.0),
                "sideways m/s",
                Linear(14, -1.0),
                "walk forward and to the right: r_R = -(lateral velocity)",
                {"include_cfrc_ext_in_observation": False},
            ),
            Task(
                "swimmer-first-joint",
                "Swimmer-v5",
                Linear(1, -1.0, absolute=True),
                "|joint angle| rad",
                Linear(1, 1.0, absolute=True),
                "swim, but keep the first joint straight: r_R = -|first joint angle|",
            ),
            Task(
                "cartpole-center",
                "CartPole-v1",
                Linear(0, -1.0 / 2.4, absolute=True),
                "|position| m",
                Linear(0, 1.0, absolute=True),
                "balance, but in the middle of the track: r_R = -|cart position| / 2.4 m",
            ),
            Task(
                "mountain_car-less-left",
                "MountainCarContinuous-v0",
                Expression("-0.1 * (action[0] < 0)"),
                "pushed left",
                Expression("action[0] < 0"),
                "reach the flag, but seldom push to the left: r_R = -0.1 in each step with a negative action",
            ),
            Task(
                "walker2d-upright",
                "Walker2d-v5",
                Linear(1, -10.0, absolute=True),
                "|torso angle| rad",
                Linear(1, 1.0, absolute=True),
                "walk, but with the torso upright: r_R = -10 |torso angle|",
            ),
            Task(
                "humanoid-sideways",
                "Humanoid-v5",
                Linear(23, -1.0),
                "sideways m/s",
                Linear(23, -1.0),
                "walk forward and to the right: r_R = -(lateral velocity)",
            ),
        )
    }
)
