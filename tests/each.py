"""Many sub-cases in one case: what ``pytest.mark.parametrize`` would make a case each of, in a loop."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import pytest

Function = Callable[..., Any]


class Loop(NamedTuple):
    """The names that one ``each`` gives, the values of every round, and how a report names them."""

    names: tuple[str, ...]
    rounds: list[tuple[Any, ...]]
    ids: list[Any] | Callable[[Any], Any] | None

    def label(self, number: int) -> str:
        """Name one round."""
        if isinstance(self.ids, list):
            return str(self.ids[number])
        text = self.ids or (lambda value: getattr(value, "__name__", repr(value)))
        return ", ".join(f"{name}={text(value)}" for name, value in zip(self.names, self.rounds[number], strict=True))


def each(
    names: str | tuple[str, ...], values: Iterable[Any], *, ids: Iterable[Any] | Callable[[Any], Any] | None = None
) -> Callable[[Function], Function]:
    """Run a test for each of the values, as one case; takes what ``pytest.mark.parametrize`` takes, and stacks like it.

    The first sub-case that fails ends the case, with its own traceback; a section of the report names it. Each sub-case
    sees what it would see alone: ``rng`` starts anew, and ``monkeypatch`` and ``tmp_path`` are its own. All other
    fixtures are shared, so that a test with one that remembers belongs under ``parametrize``; so does a test whose name
    in a report is worth a line.

    Example:
        >>> @each("base", [2, 3])
        ... @each(("power", "last"), [(2, 4), (3, 8)])
        ... def test_powers(base, power, last): ...
        >>> test_powers.subcases
        4
    """
    one = isinstance(names, str) and "," not in names
    chosen = tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(names)
    rounds = [(value,) if one else tuple(value) for value in values]
    loop = Loop(chosen, rounds, ids if ids is None or callable(ids) else list(ids))
    return lambda function: _looped(function, loop)


def each_within(
    name: str, contexts: Mapping[str, Callable[[], AbstractContextManager[Any]]]
) -> Callable[..., Function]:
    """Run a test within each of some contexts, as one case; an argument of this name says which one it is.

    Example:
        >>> from contextlib import nullcontext
        >>> @each_within("backend", {"reference": nullcontext, "native": nullcontext})
        ... def test_sums(rng, backend): ...
        >>> test_sums.subcases
        2
    """

    def decorate(function: Function) -> Function:
        wanted = inspect.signature(function).parameters
        left = [parameter for key, parameter in wanted.items() if key != name]

        @functools.wraps(function, updated=())
        def within(**got: Any) -> None:
            with contexts[got[name]]():
                function(**{key: value for key, value in got.items() if key in wanted})

        within.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*left, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)]
        )
        within.subcases = getattr(function, "subcases", 1)  # type: ignore[attr-defined]
        within.pytestmark = getattr(function, "pytestmark", [])  # type: ignore[attr-defined]
        return each(name, contexts, ids=str)(within)

    return decorate


def _looped(function: Function, loop: Loop) -> Function:
    body: Function = getattr(function, "body", function)
    loops: list[Loop] = [*getattr(function, "loops", []), loop]
    given = {name for one in loops for name in one.names}
    wanted = inspect.signature(body)
    left = [parameter for name, parameter in wanted.parameters.items() if name not in given]
    fixtures = [parameter.name for parameter in left]
    added = [] if "request" in fixtures else [inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY)]

    @functools.wraps(function)
    def looped(**got: Any) -> None:
        turns = list(itertools.product(*(range(len(one.rounds)) for one in loops)))
        skipped = []
        for number, turn in enumerate(turns):
            arguments = {name: got[name] for name in fixtures}
            for one, at in zip(loops, turn, strict=True):
                arguments |= zip(one.names, one.rounds[at], strict=True)
            try:
                _run(body, arguments, got["request"], number)
            except pytest.skip.Exception as skip:
                skipped.append(skip)
            except BaseException:
                where = " | ".join(one.label(at) for one, at in zip(loops, turn, strict=True))
                place = f"number {number + 1} of {len(turns)}, the last that ran"
                got["request"].node.add_report_section("call", "sub-case", f"{where}\n({place})")
                raise
        if len(skipped) == len(turns):
            raise skipped[0] if skipped else pytest.skip.Exception("there are no values to run for")

    looped.__signature__ = wanted.replace(parameters=[*left, *added])  # type: ignore[attr-defined]
    looped.body, looped.loops = body, loops  # type: ignore[attr-defined]
    looped.subcases = getattr(function, "subcases", 1) * len(loop.rounds)  # type: ignore[attr-defined]
    return looped


def _run(body: Function, arguments: dict[str, Any], request: pytest.FixtureRequest, number: int) -> None:
    if "rng" in request.fixturenames:
        generator = request.getfixturevalue("rng")
        generator.manual_seed(generator.initial_seed())
    if "tmp_path" in arguments:
        arguments["tmp_path"] = arguments["tmp_path"] / str(number)
        arguments["tmp_path"].mkdir()
    with pytest.MonkeyPatch.context() as patch:
        if "monkeypatch" in arguments:
            arguments["monkeypatch"] = patch
        body(**arguments)
