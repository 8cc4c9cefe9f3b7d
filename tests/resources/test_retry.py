"""When a service that is away is called again, and when not."""

import time

import pytest

from resources.retry import call_patiently, is_program_fault


class Clock:
    """Time passes only when somebody sleeps, or an operation says it took some."""

    def __init__(self):
        self.now = 0.0
        self.slept = []

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


class Service:
    """Fails so many times, each after a while, then answers."""

    def __init__(self, clock, failures, takes_s=0.0, error=None):
        self.clock, self.failures, self.takes_s, self.error, self.calls = clock, failures, takes_s, error, 0
        self.told = []

    def __call__(self):
        self.calls += 1
        self.clock.now += self.takes_s
        if self.calls <= self.failures:
            raise self.error or ConnectionError(f"away {self.calls}")
        return "answer"

    def call(self, wait_s=5.0):
        return call_patiently(
            self, wait_s=wait_s, interval_s=2.0, is_final=is_program_fault, on_first_failure=self.told.append
        )


def test_an_answer_is_returned_at_once(clock):
    service = Service(clock, failures=0)
    assert service.call() == "answer"
    assert (service.calls, clock.slept, service.told) == (1, [], [])


def test_a_service_that_comes_back_is_waited_for_and_the_first_failure_told(clock):
    service = Service(clock, failures=2)
    assert service.call() == "answer"
    assert clock.slept == [2.0, 2.0]
    assert [str(error) for error in service.told] == ["away 1"]


def test_it_gives_up_when_the_time_is_over_and_raises_the_last_error(clock):
    service = Service(clock, failures=10)
    with pytest.raises(ConnectionError, match="away 4"):
        service.call()
    assert clock.slept == [2.0, 2.0, 1.0]  # the last pause ends with the time


def test_failing_calls_take_time_as_well_but_not_the_first(clock):
    service = Service(clock, failures=10, takes_s=100.0)
    with pytest.raises(ConnectionError, match="away 2"):
        service.call()
    assert clock.now == 202.0


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyError("no such field")])
def test_a_wrong_request_is_not_repeated(clock, error):
    service = Service(clock, failures=1, error=error)
    with pytest.raises(type(error)):
        service.call()
    assert (service.calls, clock.slept, service.told) == (1, [], [])


def test_an_interrupt_is_not_waited_out(clock):
    service = Service(clock, failures=1, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        service.call()
    assert (service.calls, clock.slept) == (1, [])


@pytest.mark.parametrize("wait_s", [0.0, -1.0])
def test_without_patience_it_is_called_once_and_nothing_told(clock, wait_s):
    service = Service(clock, failures=1)
    with pytest.raises(ConnectionError):
        service.call(wait_s)
    assert (service.calls, clock.slept, service.told) == (1, [], [])


def test_an_error_that_is_an_os_error_too_may_pass():
    class Both(OSError, ValueError):
        pass

    assert not is_program_fault(Both())
    assert is_program_fault(TypeError())
    assert not is_program_fault(RuntimeError())
