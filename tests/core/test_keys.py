"""What a key file says, what is derived of it, and how links are made with it: values in, values out."""

from __future__ import annotations

import base64
import pickle
import traceback

import pytest

from engine.core import keys
from engine.core.keys import LOST, MALFORMED, BadKeyFile, Handshakes, Secret, Turns, parse

ONE, TWO = Secret(bytes(range(32))), Secret(bytes(range(1, 33)))


# --- the file --------------------------------------------------------------------------------------------------------


def test_lines_are_secrets_in_their_order_and_the_rest_is_for_people() -> None:
    text = f"\ufeff# the old one\r\n\n  {ONE.line()}  \n\t# the new one\n{TWO.line()}\n{ONE.line()}"
    assert parse(text.encode()) == (ONE, TWO)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "there is no key in it"),
        ("# nothing\n\n", "there is no key in it"),
        (f"{ONE.line()}\nhunter2\n", "line 2 does not begin with stageline-key-1:"),
        ("stageline-key-2:" + "A" * 44, "line 1 does not begin with stageline-key-1:"),
        (ONE.line()[:-5], "line 1 is not stageline-key-1: and 32 bytes in base64"),
        (ONE.line() + "AAAA", "line 1 is not"),
        ("stageline-key-1:" + base64.b64encode(b"hunter2" * 4).decode(), "line 1 is not"),
        ("stageline-key-1:hunter2 hunter2!", "line 1 is not"),
        ("\n".join(Secret(bytes([n]) * 32).line() for n in range(9)), "9 keys in it, and 8 at most"),
    ],
)
def test_a_file_that_makes_no_sense_is_told_without_what_is_in_it(text: str, what: str) -> None:
    with pytest.raises(BadKeyFile) as caught:
        parse(text.encode())
    assert what in str(caught.value)
    told = "".join(traceback.format_exception(caught.value))
    for word in {*text.split(), *(line.partition(":")[2] for line in text.splitlines())} - {"", "#", "nothing"}:
        assert word not in told.replace(f"expected {keys.PREFIX}", "")


def test_bytes_that_are_no_text_are_no_key() -> None:
    with pytest.raises(BadKeyFile, match="line 1 does not begin"):
        parse(b"\xff\xfe\x00key")


def test_what_is_derived_never_changes() -> None:
    """Hosts with different versions of the program have to meet."""
    assert ONE.broker().hex() == "41797d08b7fefdea9b20c3ce817768e5be6433fbc1ff759f7a9b709ca9578134"
    assert ONE.peer().hex() == "f5e441b1bc2c53eb4ce20b704d15e619b2d14319f6817fda55cf1a9751e49654"
    assert len({ONE.broker(), ONE.peer(), TWO.broker(), TWO.peer()}) == 4


def test_a_secret_shows_itself_nowhere() -> None:
    hidden = base64.b64encode(bytes(range(32))).decode()
    assert ONE.line() == keys.PREFIX + hidden
    for shown in (repr(ONE), str(ONE), f"{ONE}", repr({"a": [ONE]})):
        assert hidden not in shown
        assert repr(bytes(range(32))) not in shown
    with pytest.raises(TypeError):
        pickle.dumps(ONE)
    with pytest.raises(ValueError, match="32 bytes"):
        Secret(b"short")


# --- turns -----------------------------------------------------------------------------------------------------------


def test_all_lines_are_tried_at_once_and_then_again_after_ever_longer_waits() -> None:
    turns = Turns()
    assert [turns.turned_away(2) for _ in range(12)] == [0, 0.1, 0, 0.2, 0, 0.4, 0, 0.8, 0, 1, 0, 1]
    turns.let_in()
    assert turns.turned_away(2) == 0
    alone = Turns()
    assert [alone.turned_away(1) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1, 1]
    assert [Turns().turned_away(0) for _ in range(2)] == [0.1, 0.1]  # without a key, too


def test_people_hear_of_it_once_a_minute_and_not_of_a_line_that_is_merely_old() -> None:
    turns = Turns()
    told = []
    for second in range(130):
        turns.turned_away(3)
        if turns.is_to_be_told(3, 1000.0 + second):
            told.append(second)
    assert told == [2, 62, 122]
    turns.let_in()
    turns.turned_away(3)
    assert not turns.is_to_be_told(3, 2000.0)


# --- who was refused -------------------------------------------------------------------------------------------------


def test_connections_that_end_without_a_word_are_told_from_those_that_did_their_work() -> None:
    seen = Handshakes()
    seen.accepted(7)
    assert seen.ended(7) == MALFORMED  # HTTP, say
    seen.accepted(7)
    seen.succeeded()
    seen.accepted(8)
    assert seen.ended(8) == MALFORMED  # it is sure which: the other one has succeeded before
    assert seen.ended(7) == LOST
    seen.accepted(7)
    seen.failed()
    assert seen.ended(7) == ""  # why was told
    seen.accepted(7)
    assert seen.ended(7) == MALFORMED


def test_of_a_socket_that_connects_what_is_not_said_to_have_failed_was_a_link() -> None:
    seen = Handshakes()
    seen.failed()
    assert [seen.ended(7), seen.ended(7)] == ["", LOST]


def test_where_it_is_not_known_whose_handshake_it_was_the_number_comes_out_right() -> None:
    for ends in ([1, 2, 3], [3, 2, 1], [2, 3, 1]):
        seen = Handshakes()
        for fd in (1, 2, 3):
            seen.accepted(fd)
        seen.succeeded()  # of one of them
        assert sorted(seen.ended(fd) for fd in ends) == [LOST, MALFORMED, MALFORMED]
