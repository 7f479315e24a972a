"""The clock of chat templates: whenever the time is up, the template ends. Python forgets a trace function that has
raised once, so what it raises must never be lost.
"""

from __future__ import annotations

import pytest

from loradesk_engine.commands import Message
from loradesk_engine.errors import TemplateError
from loradesk_engine.formats import template as template_module
from loradesk_engine.formats.template import ChatTemplate

MESSAGES = (Message("user", "Hi"), Message("assistant", "Hello"))
# What Jinja's own code catches errors around, and iterators that end before they are read to their end.
TEMPLATES = {
    "iterators left halfway": (
        "{{ messages | map(attribute='role') | first }}"
        "{% for m in messages if m.content is string %}{{ m.content }}{% break %}{% endfor %}"
        "{% set n = namespace(x=[messages | map('upper')]) %}{{ n.x[0] | first }}{% set n.x = 0 %}"
    ),
    "what is worked out while compiling": "{{ 3 is odd }}{% if 'a' is upper and 4 is divisibleby 2 %}b{% endif %}",
    "keys that are not found": (
        "{% autoescape true %}{% set key = 'a' ~ 'b' | e %}{{ messages[0][key] }}{{ {}['c'] }}{{ d is defined }}"
        "{% endautoescape %}"
    ),
    "macros and callers": (
        "{% macro say(m) %}[{{ m.role }}{{ caller() }}]{% endmacro %}"
        "{% for m in messages %}{% call say(m) %}{{ loop.index }}{{ m | tojson }}{% endcall %}{% endfor %}"
    ),
}


class Clock:
    """Says for so many looks that there is time, and then no more."""

    def __init__(self, looks: float) -> None:
        self.looks = looks

    def is_over(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def render(source: str, looks: float, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(looks)
    monkeypatch.setattr(template_module, "ProcessorTimeLimit", lambda seconds: clock)
    ChatTemplate(source, file="config.json", special_tokens={}).render(MESSAGES)
    return clock


@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_ends_whenever_its_time_is_up(name: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    enough = 10**6
    render(TEMPLATES[name], enough, monkeypatch)  # Jinja makes its lexer once
    looks = enough - int(render(TEMPLATES[name], enough, monkeypatch).looks)
    assert looks > 100
    for allowed in range(0, looks, step):
        with pytest.raises(TemplateError, match="takes longer than"):
            render(TEMPLATES[name], allowed, monkeypatch)
