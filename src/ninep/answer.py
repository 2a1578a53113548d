"""An answer now, or a coroutine that will give it.

Every operation of a File, Dir or Handle returns its value or a coroutine: an author writes `def` where nothing can
block and `async def` where it may.  Only a coroutine costs a task (5 us of trio), a value costs 80 ns.
Whoever wraps a tree continues the coroutine that it was given, and never calls twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Generator
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar, Union, cast

T = TypeVar("T")
U = TypeVar("U")
P = ParamSpec("P")

Answer = Union[T, Coroutine[Any, Any, T]]  # noqa: UP007  # `|` cannot be subscripted with a TypeVar on 3.11


async def settle(answer: Answer[T]) -> T:
    """The value of an answer, awaited if it has to be.  May block and be cancelled as the coroutine may."""
    if type(answer) is CoroutineType:
        return cast(T, await answer)
    return cast(T, answer)


def then(answer: Answer[T], follow: Callable[[T], Answer[U]]) -> Answer[U]:
    """follow(value): now if the value is here, else in the coroutine that continues the answer."""
    if type(answer) is CoroutineType:
        return _then(answer, follow)
    return follow(cast(T, answer))


async def _then(answer: Coroutine[Any, Any, T], follow: Callable[[T], Answer[U]]) -> U:
    return await settle(follow(await answer))


def drop(answer: Answer[Any]) -> None:
    """Close a coroutine that will not be run; an unstarted coroutine must not be left to warn."""
    if type(answer) is CoroutineType:
        answer.close()


def answering(steps: Callable[P, Generator[Answer[Any], Any, T]]) -> Callable[P, Answer[T]]:
    """Write an operation of several steps once, for both speeds: `value = yield answer` at each step.

    The generator runs straight through while every answer is a value (0.4 us in all); at the first coroutine the rest
    continues inside one.  Errors of an awaited step are raised at its `yield`.
    """

    @functools.wraps(steps)
    def run(*args: P.args, **kwargs: P.kwargs) -> Answer[T]:
        generator = steps(*args, **kwargs)
        try:
            answer = generator.send(None)
            while type(answer) is not CoroutineType:
                answer = generator.send(answer)
        except StopIteration as stop:
            return cast(T, stop.value)
        return _continue(generator, answer)

    return run


async def _continue(generator: Generator[Answer[Any], Any, T], answer: Answer[Any]) -> T:
    try:
        while True:
            try:
                value = await settle(answer)
            except BaseException as e:
                answer = generator.throw(e)
            else:
                answer = generator.send(value)
    except StopIteration as stop:
        return cast(T, stop.value)
    finally:
        generator.close()
