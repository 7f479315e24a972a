"""The desk and the engine agree, whatever the user, other programs and the engine do in whatever order.

The engine is its own rule for weights and a queue of commands; the desk is the real model. What they should come to is
computed apart, from switches, faders and solos alone.
"""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loradesk_app.adapters.mix_model import MixModel
from loradesk_engine.activation import active_weights
from loradesk_engine.errors import AdapterError
from loradesk_engine.events import AdapterInfo

NAMES = ("one", "two", "three")
ROWS = st.integers(0, len(NAMES) - 1)
WEIGHTS = st.sampled_from((0.0, 0.25, 1.0, 2.0))


def info(name: str) -> AdapterInfo:
    return AdapterInfo(name, f"/{name}", 8, 1, ("q_proj",), "applied to 1 of 1 modules", 1)


class Desk(RuleBasedStateMachine):
    """The wish of the user is kept beside the model: on, weight, solo of each channel."""

    @initialize(mode=st.sampled_from(("lora", "xlora")))
    def load(self, mode: str) -> None:
        self.model = MixModel()
        self.changed = False
        self.model.mix_changed.connect(self.note_change)
        self.model.set_adapters([info(name) for name in NAMES], mode)
        self.commands: deque[tuple[str, dict[str, float]]] = deque()  # on their way to the engine
        self.outcomes: deque[tuple[str, dict[str, float] | None]] = deque()  # on their way to the desk; None: failed
        self.active = dict.fromkeys(NAMES, 1.0) if mode == "xlora" else {}
        self.tags = 0
        self.wish = {name: [mode == "xlora", 1.0, False] for name in NAMES}
        self.reported = {name: list(channel) for name, channel in self.wish.items()}  # as the engine's events say
        self.sent: dict[str, dict[str, list]] = {}

    def note_change(self) -> None:
        self.changed = True

    # -- the user -----------------------------------------------------------------------------------------------

    @rule(row=ROWS, on=st.booleans())
    def switch(self, row: int, on: bool) -> None:
        self.model.set_on(row, on)
        self.wish[NAMES[row]][0] = on

    @rule(row=ROWS)
    def toggle(self, row: int) -> None:
        self.model.toggle(row)
        for channel in self.wish.values():
            channel[2] = False
        self.wish[NAMES[row]][0] = not self.wish[NAMES[row]][0]

    @rule(row=ROWS, weight=WEIGHTS)
    def move_fader(self, row: int, weight: float) -> None:
        self.model.set_weight(row, weight)
        self.wish[NAMES[row]][1] = weight

    @rule(row=ROWS, solo=st.booleans())
    def solo(self, row: int, solo: bool) -> None:
        self.model.set_solo(row, solo)
        self.wish[NAMES[row]][2] = solo

    @rule(row=ROWS)
    def solo_only(self, row: int) -> None:
        self.model.solo_only(row)
        alone = [name for name in NAMES if self.wish[name][2]] == [NAMES[row]]
        for name in NAMES:
            self.wish[name][2] = not alone and name == NAMES[row]

    @rule(on=st.booleans())
    def switch_all(self, on: bool) -> None:
        self.model.switch_all(on)
        for channel in self.wish.values():
            channel[0], channel[2] = on, False

    @rule()
    def reset_faders(self) -> None:
        self.model.reset()
        for channel in self.wish.values():
            channel[1] = 1.0

    # -- on the way ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.changed)
    @rule()
    def send(self) -> None:
        """The throttle lets the newest mix through."""
        self.changed = False
        self.tags += 1
        tag = f"ours {self.tags}"
        self.commands.append((tag, self.model.weights()))
        self.model.note_sent(tag)
        self.sent[tag] = {name: list(channel) for name, channel in self.wish.items()}

    @rule(weights=st.dictionaries(st.sampled_from(NAMES), WEIGHTS))
    def another_program_activates(self, weights: dict[str, float]) -> None:
        self.tags += 1
        self.commands.append((f"theirs {self.tags}", weights))

    @precondition(lambda self: self.commands)
    @rule(fails=st.integers(0, 4))
    def engine_carries_out(self, fails: int) -> None:
        tag, weights = self.commands.popleft()
        try:
            chosen = active_weights(weights if fails else {**weights, "nobody": 1.0}, NAMES)
        except AdapterError:
            self.outcomes.append((tag, None))
        else:
            self.active = chosen
            self.outcomes.append((tag, chosen))

    @precondition(lambda self: self.outcomes)
    @rule()
    def outcome_arrives(self) -> None:
        tag, weights = self.outcomes.popleft()
        own = self.sent.pop(tag, None)
        if weights is None:
            self.model.take_failure(tag if own is not None else None)  # the failures of others never get here
        else:
            self.model.take_activation(weights, tag)
            self.reported = own or {
                name: [name in weights, weights.get(name, self.wish[name][1]), False] for name in NAMES
            }
        takes_over = own is None if weights is not None else own is not None
        if takes_over and not self.sent and not self.changed:
            self.wish = {name: list(channel) for name, channel in self.reported.items()}

    # -- what must hold -----------------------------------------------------------------------------------------

    @invariant()
    def the_desk_shows_the_wish(self) -> None:
        channels = [self.model.channel(row) for row in range(len(NAMES))]
        assert {channel.info.name: [channel.on, channel.weight, channel.solo] for channel in channels} == self.wish
        soloed = any(solo for _, _, solo in self.wish.values())
        heard = {name: weight for name, (on, weight, solo) in self.wish.items() if (solo if soloed else on)}
        assert self.model.weights() == heard

    @invariant()
    def when_all_has_arrived_the_engine_has_what_the_desk_shows(self) -> None:
        if not (self.changed or self.commands or self.outcomes):
            assert active_weights(self.model.weights(), NAMES) == self.active


TestDesk = Desk.TestCase
TestDesk.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
