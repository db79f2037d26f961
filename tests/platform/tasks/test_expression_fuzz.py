"""Thousands of mangled expressions: each is a number per step or a located refusal; nothing runs, nothing hangs."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rpg_platform.tasks.expressions import FUNCTIONS, Expression, ExpressionError, Sizes

COUNT = 8_000
SLOWEST_S = 2.0
SEEDS = (
    "-10 * abs(next_obs[7])",
    "-0.1 * sum(action ** 2)",
    'where(info["x_position"] > 3, 1, 0)',
    "clip(next_obs[0] - 1, 0, 0.5) + norm(next_obs[0:3])",
    "obs[0] < 1 and not obs[1] >= 2 or -obs[2] != pi",
    "max(mean(obs[2:5]), min(info.x_velocity, 3)) % 2",
)
TOKENS = (
    *FUNCTIONS,
    *("obs", "action", "next_obs", "info", "pi", "info['x_position']", "obs[0]", "action[-1]", "next_obs[1:4]", "x"),
    *("+", "-", "*", "/", "**", "%", "<", "==", "and", "or", "not", "(", ")", "[", "]", ",", ":", ".", " ", "\n"),
    *("0", "1", "-1", "7", "1e308", "1e-320", "9**9**9", "0x1f", "1_0", "1j", "10**400", "''", '"', "'", "\\", "#"),
    *("__import__('os').system('true')", "().__class__.__bases__", "lambda: 0", "open('/etc/passwd')", "exec", "eval"),
    *("[i for i in obs]", "(yield)", "await obs", "x := 1", "f'{obs}'", "b'a'", "...", "None", "*", "**{}", "@", "~"),
    *("é", "\ud800", "\x00", "\u202e", "ａｂｓ", "١", "\t", ";", "=", "->", "0" * 50, "(" * 30, "-" * 120),
)
RUNS = ("exec", "open", "import", "os.", "subprocess.", "socket.", "ctypes.", "shutil.", "pickle.", "marshal.")
Arrays: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]
seen: list[str] = []
armed = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Every event that is execution or reaches out; parsing itself is "compile", with no code to run."""
    if armed and event.startswith(RUNS):
        seen.append(f"{event} {arguments!r:.80}")


@contextmanager
def watch() -> Iterator[list[str]]:
    """What runs inside. A hook cannot be removed, so it is switched off instead."""
    global armed
    if not getattr(sys, "_rpg_watched", False):
        sys.addaudithook(_watch)
        sys._rpg_watched = True  # type: ignore[attr-defined]
    seen.clear()
    armed = True
    try:
        yield seen
    finally:
        armed = False


def grown(rng: random.Random, depth: int = 0) -> str:
    """An expression of the grammar, nearly always."""
    leaves = ("obs[0]", "next_obs[-1]", "info.x_velocity", "2", "0.5", "pi", f"obs[{rng.randint(-20, 20)}]")
    if depth > 4 or rng.random() < 0.25:
        return rng.choice(leaves)
    inner = [grown(rng, depth + 1) for _ in range(3)]
    name = rng.choice(FUNCTIONS)
    return rng.choice(
        (
            f"({inner[0]}) {rng.choice(('+', '-', '*', '/', '**', '%', '<', '>=', '==', 'and', 'or'))} ({inner[1]})",
            f"{name}({', '.join(inner[: {'clip': 3, 'where': 3, 'minimum': 2, 'maximum': 2}.get(name, 1)])})",
            f"sum({rng.choice(('obs', 'next_obs', 'action'))} * ({inner[0]}))",
            f"not -({inner[0]})",
        )
    )


def mangled(rng: random.Random) -> str:
    """An expression with pieces replaced, or pieces strung together."""
    if rng.random() < 0.2:
        return rng.choice(("", " ")).join(rng.choice(TOKENS) for _ in range(rng.randint(1, 9)))
    text = rng.choice(SEEDS) if rng.random() < 0.5 else grown(rng)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        start = rng.randint(0, len(text))
        end = min(len(text), start + rng.choice((0, 0, 1, 1, 2, 5)))
        piece = (
            rng.choice(TOKENS) if rng.random() < 0.7 else chr(rng.choice((rng.randint(0, 255), rng.randint(0, 0x2FFF))))
        )
        text = text[:start] + piece + text[end:]
    return text


def evaluated(text: str, discrete: bool, arrays: Arrays) -> np.ndarray | ExpressionError:
    obs, actions, next_obs, infos = arrays
    if discrete:
        actions = np.arange(len(obs))
    try:
        expression = Expression(text)
        expression.check(Sizes(obs.shape[1], 1 if discrete else actions.shape[1], discrete, infos))
        return expression(obs, actions, next_obs, {key: infos[key] for key in expression.info_keys})
    except ExpressionError as refused:
        return refused


def test_any_text_is_a_number_per_step_or_a_located_refusal() -> None:
    rng, numbers = random.Random(0), np.random.default_rng(0)
    obs, actions, next_obs = (numbers.normal(size=(5, width)).astype(np.float32) for width in (17, 6, 17))
    arrays = (obs, actions, next_obs, {name: numbers.normal(size=5) for name in ("x_position", "x_velocity")})
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    with watch() as ran:
        for _ in range(COUNT):
            text = mangled(rng)
            started = time.thread_time()
            found = evaluated(text, rng.random() < 0.3, arrays)
            slowest = max(slowest, time.thread_time() - started)
            outcomes[type(found).__name__] += 1
            if isinstance(found, ExpressionError):
                assert 0 <= found.offset <= len(text), text
                assert found.message, text
                assert "\n" not in found.message, text
                str(found).encode()
            else:
                assert found.shape == (5,), text
                assert found.dtype == np.float64, text
    assert ran == []
    assert slowest < SLOWEST_S
    assert outcomes["ExpressionError"] > COUNT / 2
    assert outcomes["ndarray"] > COUNT / 20  # else this tests nothing but syntax errors


def test_the_watch_sees_what_it_should() -> None:
    with watch() as ran:
        exec(compile("1", "<test>", "eval"))
        Path("/dev/null").read_text()
    assert [event.split()[0] for event in ran] == ["exec", "open"]
