import re

from app.server.protocol import TRANSITIONS, State
from bench import ROOT


def test_drawing_of_the_states_is_the_code() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    (drawing,) = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", text, re.DOTALL)
    drawn = [line.strip() for line in drawing.splitlines()]
    assert drawn[0] == f"[*] --> {State.IDLE}"
    assert drawn[-1] == f"{State.CLOSED} --> [*]"
    assert sorted(drawn[1:-1]) == sorted(
        f"{state} --> {target}: {event}"
        for state, moves in TRANSITIONS.items()
        for event, target in moves.items()
    )


def test_every_state_is_explained() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert all(f"\n| {state} | " in text for state in State)


def test_every_state_can_be_reached_and_left() -> None:
    assert set(TRANSITIONS) == set(State)
    reached = {target for moves in TRANSITIONS.values() for target in moves.values()}
    assert reached == set(State)
    assert {state for state, moves in TRANSITIONS.items() if not moves} == {State.CLOSED}
