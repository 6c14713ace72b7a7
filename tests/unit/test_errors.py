"""The tree of errors: each tells a caller what happened, and survives a process boundary."""

from __future__ import annotations

import pickle
from collections import Counter
from http import HTTPStatus

import pytest

from stillreel import errors
from stillreel.errors import ReceiverError, StillreelError

TREE = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, StillreelError)
]
each_error = pytest.mark.parametrize("error", TREE, ids=lambda error: error.__name__)


@each_error
def test_docstring_is_the_default_message(error: type[StillreelError]) -> None:
    assert error().message == str(error()) == (error.__doc__ or "").strip().partition("\n")[0]
    assert error().message.endswith(".")


@each_error
def test_a_message_replaces_the_default(error: type[StillreelError]) -> None:
    assert error("what was wrong").message == "what was wrong"


@each_error
def test_facts_have_their_types(error: type[StillreelError]) -> None:
    assert isinstance(error.code, str)
    assert error.code == error.code.lower().replace(" ", "_")
    assert isinstance(error.retryable, bool)
    assert HTTPStatus(error.http_status) >= HTTPStatus.BAD_REQUEST


@each_error
def test_survives_pickling(error: type[StillreelError]) -> None:
    copy = pickle.loads(pickle.dumps(error("what was wrong")))
    assert type(copy) is error
    assert copy.message == "what was wrong"
    assert (copy.code, copy.retryable, copy.http_status) == (
        error.code,
        error.retryable,
        error.http_status,
    )


@each_error
def test_says_itself_which_error_it_is(error: type[StillreelError]) -> None:
    assert "code" in vars(error), "an inherited code cannot be told from the parent's"


def test_codes_are_unique() -> None:
    counted = Counter(error.code for error in TREE)
    assert [code for code, count in counted.items() if count > 1] == []


@each_error
def test_what_a_caller_sent_wrong_is_not_tried_again(error: type[StillreelError]) -> None:
    is_the_callers = 400 <= error.http_status < 500
    # What ends an attempt is not sent again either: another attempt makes something else.
    assert not (is_the_callers and error.retryable and not error.ends_attempt)


def test_one_except_catches_a_whole_branch() -> None:
    with pytest.raises(ReceiverError):
        raise errors.ReceiverUnavailable
