"""Random requests on one 9P2000 connection, compared with a small model of fids and files.

Seeded; a failure prints the seed and the step.  What it judges: which requests are refused, what is read, and how many
qids a walk gives.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from raw9p import RawClient, Refused, serving

from ninep.proto import messages as m
from ninep.proto.codec import Message
from ninep.proto.types import DMDIR, ORDWR, OREAD, OTRUNC, OWRITE
from ninep.servers import ram

NAMES = ["a", "b", "c"]
FIDS = range(1, 6)


class No(Exception):
    """The model refuses."""


@dataclass
class Thing:
    """A file, or a directory if it has children."""

    data: bytearray = field(default_factory=bytearray)
    children: dict[str, Thing] | None = None
    is_gone: bool = False


@dataclass
class Held:
    """What a fid stands for: the things on its way, and the names under which they were found."""

    way: list[Thing]
    names: list[str]
    omode: int | None = None

    @property
    def thing(self) -> Thing:
        return self.way[-1]


class Model:
    """The fids of one session and the tree below them."""

    def __init__(self) -> None:
        self.fids = {0: Held([Thing(children={})], [])}

    def held(self, fid: int) -> Held:
        if fid not in self.fids:
            raise No
        return self.fids[fid]

    def walk(self, fid: int, newfid: int, names: list[str]) -> int:
        held = self.held(fid)
        if held.omode is not None if newfid == fid else newfid in self.fids:
            raise No  # an open fid may be copied: Linux needs it, walk(5) forbids it
        way, walked = list(held.way), list(held.names)
        for done, name in enumerate(names):
            children = way[-1].children
            if name == ".." and children is not None:
                way, walked = way[:-1] or way, walked[:-1]
            elif children is not None and name in children:
                way.append(children[name])
                walked.append(name)
            elif done:
                return done
            else:
                raise No
        self.fids[newfid] = Held(way, walked)
        return len(names)

    def open(self, fid: int, omode: int) -> None:
        held = self.held(fid)
        if held.omode is not None or (held.thing.children is not None and omode != OREAD):
            raise No
        if omode & OTRUNC:
            held.thing.data.clear()
        held.omode = omode & 3

    def create(self, fid: int, name: str, is_dir: bool, omode: int) -> None:
        held = self.held(fid)
        children = held.thing.children
        if held.omode is not None or children is None or held.thing.is_gone or name in children:
            raise No
        if is_dir and omode != OREAD:
            raise No
        thing = children[name] = Thing(children={} if is_dir else None)
        self.fids[fid] = Held([*held.way, thing], [*held.names, name], omode)

    def read(self, fid: int, offset: int, count: int) -> bytes:
        held = self.held(fid)
        if held.omode not in (OREAD, ORDWR) or held.thing.children is not None:
            raise No
        return bytes(held.thing.data[offset : offset + count])

    def write(self, fid: int, offset: int, data: bytes) -> int:
        held = self.held(fid)
        if held.omode not in (OWRITE, ORDWR):
            raise No
        held.thing.data.extend(bytes(max(0, offset - len(held.thing.data))))
        held.thing.data[offset : offset + len(data)] = data
        return len(data)

    def clunk(self, fid: int) -> None:
        self.held(fid)
        del self.fids[fid]

    def remove(self, fid: int) -> None:
        held = self.held(fid)
        del self.fids[fid]  # whatever comes of it: remove(5)
        if len(held.way) == 1 or held.thing.children:
            raise No
        siblings = held.way[-2].children or {}
        if siblings.get(held.names[-1]) is not held.thing:
            raise No
        del siblings[held.names[-1]]
        held.thing.is_gone = True


def step(dice: random.Random, model: Model) -> tuple[Message, object, str]:
    """One request, what the model makes of it, and where in the reply that stands."""
    what = dice.choices(
        ["walk", "open", "create", "read", "write", "clunk", "remove"], weights=[8, 3, 5, 4, 4, 3, 1]
    )[0]  # fmt: skip
    # Mostly what can succeed: fids that are there for what needs one, and free ones for what makes one.
    there = [fid for fid in model.fids if fid or what == "walk"]
    fid = dice.choice(there) if there and dice.random() < 0.9 else dice.choice(FIDS)
    at, data = dice.randrange(12), dice.randbytes(dice.randrange(1, 8))
    omode = dice.choice([OREAD, OWRITE, ORDWR])
    free = [newfid for newfid in FIDS if newfid not in model.fids]
    name, newfid = dice.choice(NAMES), dice.choice(free if free and dice.random() < 0.8 else FIDS)
    names = [dice.choice([*NAMES, *NAMES, ".."]) for _ in range(dice.choice([0, 0, 1, 1, 2, 3]))]
    is_dir, trunc = omode == OREAD and dice.random() < 0.8, OTRUNC if omode != OREAD and dice.random() < 0.3 else 0
    request: Message
    answer: object = None
    asks = {
        "walk": (lambda: m.Twalk(fid, newfid, tuple(names)), lambda: model.walk(fid, newfid, names)),
        "open": (lambda: m.Topen(fid, omode | trunc), lambda: model.open(fid, omode | trunc)),
        "create": (
            lambda: m.Tcreate(fid, name, 0o755 | DMDIR if is_dir else 0o644, omode),
            lambda: model.create(fid, name, is_dir, omode),
        ),
        "read": (lambda: m.Tread(fid, at, len(data)), lambda: model.read(fid, at, len(data))),
        "write": (lambda: m.Twrite(fid, at, data), lambda: model.write(fid, at, data)),
        "clunk": (lambda: m.Tclunk(fid), lambda: model.clunk(fid)),
        "remove": (lambda: m.Tremove(fid), lambda: model.remove(fid)),
    }
    make, judge = asks[what]
    request = make()
    if what == "read" and fid in model.fids and model.fids[fid].thing.children is not None:
        return m.Tclunk(99), "refused", what  # listings have tests of their own
    try:
        answer = judge()
    except No:
        answer = "refused"
    return request, answer, what


async def told(c: RawClient, request: Message, what: str) -> object:
    try:
        reply = await c.rpc(request)
    except Refused:
        return "refused"
    said = {"walk": lambda: len(reply.wqid), "read": lambda: bytes(reply.data), "write": lambda: reply.count}
    return said[what]() if what in said else None


async def difference(seed: int, steps: int = 1000) -> str:
    """The first step at which server and model part; empty if they do not."""
    dice, model = random.Random(seed), Model()
    refused = 0
    async with serving(ram.tree()) as server:
        c = await server.client("9P2000")
        for number in range(steps):
            request, want, what = step(dice, model)
            got = await told(c, request, what)
            if got != want:
                return f"seed {seed}, step {number}: {request}: {got!r}, not {want!r}"
            refused += want == "refused"
    assert steps // 10 < refused < steps * 9 // 10  # both kinds are tried
    return ""


@pytest.mark.parametrize("seed", range(6))
async def test_random_requests_are_answered_as_the_model_says(seed: int) -> None:
    assert await difference(seed) == ""


async def test_a_rule_in_which_they_differ_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def remove_that_keeps_the_fid(model: Model, fid: int) -> None:
        model.fids[fid] = model.held(fid)

    monkeypatch.setattr(Model, "remove", remove_that_keeps_the_fid)
    assert "seed 0" in await difference(0)
