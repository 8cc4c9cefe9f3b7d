"""The output of ranks in Dagster's log."""

from types import SimpleNamespace

import pytest

from resources.workers.log_follower import LAST_LINES, LOG_LINES_PER_EVENT, OutputFollower


@pytest.fixture
def logged():
    """What the log gets, event by event, and a context that hands it on."""
    events = []
    return events, SimpleNamespace(log=SimpleNamespace(info=events.append))


def append(file, text):
    with file.open("ab") as stream:
        stream.write(text)


def test_lines_are_logged_when_they_are_whole_and_the_rest_at_the_end(tmp_path, logged):
    events, context = logged
    follower = OutputFollower(tmp_path, context)
    append(tmp_path / "log.txt", b"first\nsec")
    follower.forward()
    append(tmp_path / "log.txt", b"ond\n10 %\r50 %\r100 %\r\n\nlast")
    follower.forward()
    assert events == ["first", "second\n100 %"]
    follower.finish()
    assert events[2:] == ["last"]
    assert follower.last_lines(0) == "first\nsecond\n100 %\nlast"
    assert follower.log_of(0) == tmp_path / "log.txt"


def test_of_an_earlier_attempt_nothing_is_logged_again(tmp_path, logged):
    events, context = logged
    append(tmp_path / "log.txt", b"of the first attempt\n")
    follower = OutputFollower(tmp_path, context)
    append(tmp_path / "log.txt", b"of the second\n")
    follower.forward()
    assert events == ["of the second"]
    assert follower.last_lines() == "of the second"


def test_ranks_and_agents_are_named_and_keep_their_own_last_lines(tmp_path, logged):
    events, context = logged
    follower = OutputFollower(tmp_path, context)
    append(tmp_path / "log-1.txt", b"one\n")
    append(tmp_path / "log-0.txt", b"zero\n")
    append(tmp_path / "node-b.txt", b"agent\n")
    follower.forward()
    assert events == ["[rank 0] zero", "[rank 1] one", "[node-b] agent"]
    assert [follower.last_lines(rank) for rank in (0, 1, "node-b")] == ["zero", "one", "agent"]
    assert follower.log_of(1) == tmp_path / "log-1.txt"
    assert follower.last_lines(7) == "zero\none\nagent"  # of a rank that said nothing: of all
    assert follower.log_of(7) == tmp_path


def test_of_many_lines_the_last_are_logged_and_the_others_counted(tmp_path, logged):
    events, context = logged
    follower = OutputFollower(tmp_path, context)
    assert follower.last_lines() == "(no output)"
    number = LOG_LINES_PER_EVENT + 7
    append(tmp_path / "log.txt", b"".join(b"line %d\n" % line for line in range(number)))
    follower.forward()
    (event,) = events
    assert event.splitlines()[0] == f"... 7 more lines in {tmp_path / 'log.txt'}"
    assert event.splitlines()[1:] == [f"line {line}" for line in range(7, number)]
    assert follower.last_lines(0).splitlines() == [f"line {line}" for line in range(number - LAST_LINES, number)]
