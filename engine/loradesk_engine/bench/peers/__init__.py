"""The peers by name. Each is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping

from loradesk_engine.bench.contender import Contender
from loradesk_engine.bench.peers.remote import RemotePeer
from loradesk_engine.bench.peers.torch_peers import PeftPeer, TransformersPeer
from loradesk_engine.bench.plan import Work
from loradesk_engine.bench.subject import Subject
from loradesk_engine.errors import RequestError

PEERS = ("transformers", "peft", "llama-cpp", "mistralrs", "mistralrs-0.3")
IN_PROCESS = {"transformers": TransformersPeer, "peft": PeftPeer}


def chosen_peers(names: str | None) -> tuple[str, ...]:
    """Peers by their names with commas between.

    Raises:
        RequestError: there is none of a name; lists those there are.
    """
    wanted = [name.strip() for name in (names or "").split(",") if name.strip()]
    for name in wanted:
        if name not in PEERS:
            raise RequestError(f"There is no peer {name!r}.", field="--peers", remedy=f"Choose of {', '.join(PEERS)}.")
    return tuple(name for name in PEERS if name in wanted)


def make_peer(name: str, subject: Subject, work: Work, threads: int | None, pythons: Mapping[str, str]) -> Contender:
    """A peer for a work; what it cannot do it says when it is loaded.

    Args:
        pythons: peer -> Python of the environment it is installed in, for those that run in a process of their own.
    """
    if name in IN_PROCESS:
        return IN_PROCESS[name](subject, work, threads)
    return RemotePeer(name, subject, work, threads, pythons.get(name))
