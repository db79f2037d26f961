"""Expressions: their values by hand and against numpy, what is refused and where, and that they travel as text."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from rpg_platform.tasks.expressions import Expression, ExpressionError, Sizes
from rpg_platform.tasks.registry import TASKS
from rpg_platform.tasks.task import Linear

# Two transitions, so small that every result below can be worked out in the head.
OBS = np.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]], np.float32)
NEXT = np.array([[2.0, 0.0, -3.0], [-1.0, 1.0, 4.0]], np.float32)
ACTION = np.array([[0.5, -0.5], [1.0, 2.0]], np.float32)
INFOS = {"x_position": np.array([2.0, 4.0]), "a key": np.array([0.0, 1.0])}


def value(text: str, actions: Any = ACTION) -> list[float]:
    expression = Expression(text)
    assert set(expression.info_keys) <= set(INFOS)
    found = expression(OBS, actions, NEXT, {key: INFOS[key] for key in expression.info_keys})
    assert found.shape == (2,)
    assert found.dtype == np.float64
    return [float(each) for each in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-10 * abs(next_obs[2])", [-30, -40]),
        ("-0.1 * sum(action ** 2)", [-0.05, -0.5]),
        ('where(info["x_position"] > 3, 1, 0)', [0, 1]),
        ("clip(next_obs[0] - 1, 0, 0.5)", [0.5, 0]),
        ("norm(next_obs[0:2])", [2, 2**0.5]),
        ("info.x_position - info['a key']", [2, 3]),
        ("obs[-1] % 2", [1, 1]),  # of a negative number as Python has it
        ("2 ** -obs[0] / 4", [0.125, 2**-0.5 / 4]),
        ("-2 ** 2", [-4, -4]),  # the power first
        ("1 < obs[1] + 3 <= 7", [0, 1]),  # 1 < 1 is false; 1 < 7 <= 7
        ("obs[0] == 1 and not next_obs[1] or obs[1] > 100", [1, 0]),
        ("obs[0] != 1", [0, 1]),
        ("-(obs[0] > 0)", [-1, -1]),  # a truth value is a number
        ("mean(obs) + max(obs) - min(obs)", [2 / 3 + 3 + 2, 3.5 / 3 + 4 + 1]),
        ("max(obs[1], 0) + min(obs[2], next_obs[2], 5)", [0 - 3, 4 - 1]),
        ("minimum(obs[0], 0.75) + maximum(obs[0], 0.75)", [1.75, 1.25]),
        ("sum(obs * next_obs)", [2 + 0 - 9, -0.5 + 4 - 4]),
        ("sum((next_obs - obs)[0:2])", [1 + 2, -1.5 - 3]),
        ("sum(obs[::2])", [4, -0.5]),
        ("sum(abs(obs) * obs[0])", [6, 2.75]),  # one entry goes with any number of them
        ("sqrt(exp(log(4))) + log1p(0) + sign(-3) + tanh(0)", [1, 1]),
        ("sin(pi / 2) + cos(pi) + tan(0)", [0, 0]),
        ("sum(where(action > 0, action, 10))", [10.5, 3]),
        ("7", [7, 7]),
        ("  obs[0]\n  + 1\n", [2, 1.5]),
    ],
)
def test_values_by_hand(text: str, expected: list[float]) -> None:
    assert value(text) == pytest.approx(expected, abs=1e-6)


def test_a_discrete_action_is_an_index() -> None:
    index = np.array([0, 3])
    assert value("action == 3", index) == [0, 1]
    assert value("-0.5 * action", index) == [0, -1.5]
    with pytest.raises(ExpressionError, match="a Discrete action is one index and has no entries"):
        value("action[0]", index)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if isinstance(task.addon, Linear)])
def test_says_what_a_registered_add_on_says(name: str) -> None:
    addon = TASKS[name].addon
    assert isinstance(addon, Linear)
    x = np.random.default_rng(0).normal(0, 3, (50, 30)).astype(np.float32)
    inner = f"next_obs[{addon.index}] - {addon.center}"
    expression = Expression(f"{addon.weight} * {'abs' if addon.absolute else ''}({inner})")
    np.testing.assert_allclose(expression(x, x, x, {}), addon(x, x, x, {}), rtol=1e-6)


def test_reads_everything_and_changes_nothing() -> None:
    arrays = [OBS.copy(), ACTION.copy(), NEXT.copy()]
    for array in arrays:
        array.flags.writeable = False
    result = Expression("next_obs[0]")(*arrays, {})  # type: ignore[arg-type]
    result += 1.0  # its own memory
    assert arrays[2][0, 0] == NEXT[0, 0]


def test_what_is_not_finite_is_left_to_the_check_for_it() -> None:
    with np.errstate(all="raise"):  # no warning either
        assert np.isnan(value("log(obs[1])")[0])
        assert np.isinf(value("1 / next_obs[1]")[0])
        assert np.isinf(value("exp(1000 * obs[0])")[0])


def test_travels_as_its_text() -> None:
    expression = Expression('sum(action ** 2) * info["x_position"]')
    pickled = pickle.dumps(expression)
    assert b"sum(action ** 2)" in pickled
    assert b"numpy" not in pickled
    again = pickle.loads(pickled)
    assert again == expression
    assert again != Expression("1")
    assert len({again, expression}) == 1
    assert again.info_keys == ("x_position",)
    assert again(OBS, ACTION, NEXT, INFOS).tolist() == expression(OBS, ACTION, NEXT, INFOS).tolist()


# ---- refused --------------------------------------------------------------------------------------
LONG = "obs[0]" + " + obs[0]" * 300


@pytest.mark.parametrize(
    ("text", "offset", "message"),
    [
        ("", 0, "the expression is empty"),
        (" \n", 0, "the expression is empty"),
        ("nxt_obs[7]", 0, "unknown name 'nxt_obs'; did you mean 'next_obs'?"),
        (" \n bar", 3, "unknown name 'bar'"),
        ("1 + 2 * bar", 8, "unknown name 'bar'; expected one of 'obs', 'action', 'next_obs', 'info', 'pi'"),
        ("1 + ab(obs[0])", 4, "unknown function 'ab'; did you mean 'abs'?"),
        ("obs(0)", 0, "obs is not a function"),
        ("abs", 0, "abs is a function: write abs(...)"),
        ("np.abs(obs[0])", 0, "write abs(...), without a dot"),
        ("obs[0] + math.pi", 9, "write pi, without a dot"),
        ("obs.T", 0, "'T' after a dot cannot be used here: only info has keys"),
        ("info", 0, 'info needs a key: info["key"]'),
        ("info[3]", 5, 'info takes a key in quotes: info["key"]'),
        ("obs[:, 7]", 4, "takes one index, of one step's entries"),
        ("obs[1.0]", 4, "an index is a whole number written out, such as 7 or -1"),
        ("obs[obs[0]]", 4, "an index is a whole number written out"),
        ("obs[True]", 4, "an index is a whole number written out"),
        ("obs[3:3]", 0, "takes no entry at all"),
        ("obs[0:3:-1]", 4, "a slice's step is at least 1, got -1"),
        ("5[0]", 0, "a number has no entries"),
        ("obs[0] ^ 2", 7, "'^' cannot be used here: a power is written x ** y"),
        ("(obs[0]) // 2", 9, "'//' cannot be used here"),
        ("obs[0] & 1", 7, "'&' cannot be used here: write 'and'"),
        ("obs @ obs", 4, "'@' cannot be used here: write sum(x * y)"),
        ("~obs[0]", 0, "'~' cannot be used here: write 'not'"),
        ("1 if obs[0] else 2", 0, "'if ... else' cannot be used here: write where(condition, then, else)"),
        ("obs[0] in obs", 0, "'in' and 'is' cannot be used here"),
        ("clip(obs[0], 1)", 0, "clip(x, low, high) takes 3 arguments, got 2"),
        ("abs()", 0, "abs(x) takes 1 argument, got 0"),
        ("sum(obs, axis=1)", 14, "sum takes no named arguments"),
        ("sum(*obs)", 4, "'*' before an argument cannot be used here"),
        ("[1, 2]", 0, "a list of values cannot be used here"),
        ("lambda: 1", 0, "'lambda' cannot be used here"),
        ("(x := 1)", 1, "':=' cannot be used here"),
        ("f'{obs}'", 0, "text cannot be used here"),
        ("'obs'", 0, "text cannot be used here: expected a number"),
        ("1 + True", 4, "true cannot be used here"),
        ("2j", 0, "2j cannot be used here"),
        ("obs[0] # no", 7, "a comment cannot be used here"),
        ("x = 1", 2, "not an expression"),
        ("obs[0] +", 8, "not an expression: it ends too early"),
        ("  (obs[0]", 2, "not an expression: '(' was never closed"),
        ("1; 2", 1, "not an expression"),
        ("obs[0]\0", 6, "a null character cannot be used here"),
        ("\ud800", 0, "not an expression that can be read"),
        ("é + 1", 0, "unknown name 'é'"),
        ("1 / 'é' + bar", 4, "text cannot be used here"),
        # numbers that are none, and bombs
        ("1 / 0", 4, "division by zero"),
        ("obs[0] % (1 - 1)", 10, "division by zero"),
        ("1e999", 0, "is not a finite number"),
        ("1 + 9**9**9", 4, "is not a finite number"),
        ("0 * (0.0 ** -1)", 5, "is not a finite number"),
        ("(-8) ** (1 / 3)", 0, "is not a finite number"),
        ("log(0)", 0, "is not a finite number"),
        ("9" * 500, 0, "is not a finite number"),
        ("-" * 1_000 + "1", 101, "nested more than 100 levels deep"),
        (LONG, 0, "takes at most 2000 characters, got 2706"),
        ("(" * 500, 200, "not an expression: too many nested parentheses"),
        # shapes that are known without an environment
        ("next_obs[0:3]", 0, "gives 3 values per step instead of one; did you mean sum(next_obs[0:3])?"),
        ("sum(obs[0:3] * action[0:2])", 4, "combines 3 and 2 values per step, which do not go together"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_refused_with_the_place(text: str, offset: int, message: str) -> None:
    with pytest.raises(ExpressionError) as refused:
        Expression(text)
    assert refused.value.message.startswith(message)
    assert refused.value.offset == offset
    assert f"(column {offset + 1} of " in str(refused.value)


@pytest.mark.parametrize(
    ("text", "offset", "message"),
    [
        ("-abs(next_obs[17])", 5, "index 17 is out of range: there are 17 entries"),
        ("obs[-18]", 0, "index -18 is out of range: there are 17 entries"),
        ("sum(obs[10:18])", 4, "bound 18 is out of range: there are 17 entries"),
        ("sum(obs[-1:2])", 4, "takes no entry at all"),
        ("action[6]", 0, "index 6 is out of range: there are 6 entries"),
        ("1 + obs", 0, "gives 17 values per step instead of one; did you mean sum(1 + obs)?"),
        ("-0.1 * action ** 2", 0, "gives 6 values per step instead of one; did you mean sum(-0.1 * action ** 2)?"),
        ("sum(obs - action)", 4, "combines 17 and 6 values per step"),
        ("1 + info.x_pos", 4, "the environment's info has no 'x_pos'; did you mean 'x_position'?"),
    ],
)
def test_refused_against_an_environment(text: str, offset: int, message: str) -> None:
    expression = Expression(text)  # by itself it may be right
    with pytest.raises(ExpressionError) as refused:
        expression.check(Sizes(17, 6, info_keys=("x_position",)))
    assert refused.value.message.startswith(message)
    assert refused.value.offset == offset


def test_shapes_are_checked_before_numpy_meets_them() -> None:
    """A slice beyond the end would silently be shorter."""
    with pytest.raises(ExpressionError, match="bound 17 is out of range: there are 3 entries"):
        Expression("sum(obs[1:17])")(OBS, ACTION, NEXT, {})
    with pytest.raises(ExpressionError, match="info has no 'z'"):
        Expression("info.z")(OBS, ACTION, NEXT, {})
