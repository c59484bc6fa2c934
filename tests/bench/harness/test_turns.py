"""Providers take turns, and their speeds are compared within rounds."""

from __future__ import annotations

import pytest
from harness.turns import FEWEST_ROUNDS, MOST_ROUNDS, Contender, median_ratio, take_turns


class Clock:
    """Time that passes only where a test says so."""

    now = 0.0

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("harness.turns.CUDA", False)
    monkeypatch.setattr("time.perf_counter", lambda: made.now)
    return made


def test_every_contender_has_one_turn_a_round_and_the_order_alternates() -> None:
    calls: list[str] = []
    contenders = [Contender(lambda: None, lambda _, name=name: calls.append(name)) for name in "abc"]
    take_turns(contenders, 0.0)
    assert "".join(calls) == "abc" + ("abc" + "cba") * (FEWEST_ROUNDS // 2) + "abc" * (FEWEST_ROUNDS % 2)
    assert [len(contender.rounds) for contender in contenders] == [FEWEST_ROUNDS] * 3


def test_preparation_is_repeated_and_not_timed(clock: Clock) -> None:
    prepared = iter(range(1000))
    seen: list[int] = []

    def prepare() -> int:
        clock.wait(0.005)
        return next(prepared)

    def work(number: int) -> None:
        seen.append(number)
        clock.wait(0.002)

    contender = Contender(prepare, work)
    take_turns([contender], 0.0)
    assert seen == list(range(1 + FEWEST_ROUNDS))
    assert contender.round_ms == pytest.approx([2.0] * FEWEST_ROUNDS)


def test_turns_end_with_their_time_and_rounds_with_all_of_it(clock: Clock) -> None:
    """Quick work repeats within a turn; there are no more rounds than needed, however much time is left."""
    quick = Contender(lambda: None, lambda _: clock.wait(0.003))
    slow = Contender(lambda: None, lambda _: clock.wait(0.03))
    take_turns([quick, slow], 0.1)
    # Turns of 10 ms, or of one repetition; 200 ms in all, and a round takes 42 ms. The first of several never counts.
    assert [len(turn) for turn in quick.rounds] == [3] * FEWEST_ROUNDS
    assert [len(turn) for turn in slow.rounds] == [1] * FEWEST_ROUNDS
    limit = Contender(lambda: None, lambda _: clock.wait(0.001), share=0.2)
    alone = Contender(lambda: None, lambda _: clock.wait(0.001))
    take_turns([alone, limit], 0.1)
    assert [len(turn) for turn in alone.rounds] == [9] * MOST_ROUNDS
    assert [len(turn) for turn in limit.rounds] == [1] * MOST_ROUNDS
    instant = Contender(lambda: None, lambda _: clock.wait(0.001))
    take_turns([instant], 10.0)
    assert [len(turn) for turn in instant.rounds] == [99] * MOST_ROUNDS


def test_the_first_repetition_of_a_turn_counts_only_if_it_is_alone(clock: Clock) -> None:
    """It meets the caches of another provider."""
    owner = [""]

    def work(name: str, cold: float, warm: float) -> None:
        clock.wait(warm if owner[0] == name else cold)
        owner[0] = name

    quick = Contender(lambda: None, lambda _: work("quick", 0.008, 0.001))
    slow = Contender(lambda: None, lambda _: work("slow", 0.011, 0.011))
    take_turns([quick, slow], 0.1)
    assert quick.round_ms == pytest.approx([1.0] * len(quick.rounds))
    assert slow.round_ms == pytest.approx([11.0] * len(slow.rounds))


def test_a_contender_that_fails_drops_out_and_the_others_go_on() -> None:
    def fails_later(calls: list[int]) -> None:
        calls.append(0)
        if len(calls) == 3:
            raise RuntimeError("out of memory")

    calls: list[int] = []
    failing, other = Contender(lambda: calls, fails_later), Contender(lambda: None, lambda _: None)
    take_turns([failing, other], 0.0)
    assert str(failing.failure) == "out of memory"
    assert len(calls) == 3
    assert other.failure is None
    assert len(other.rounds) == FEWEST_ROUNDS


def test_a_drift_that_all_share_changes_no_ratio() -> None:
    drift = [1.0, 7.0, 2.0, 30.0, 1.5]
    assert median_ratio([3.0 * factor for factor in drift], [0.5 * factor for factor in drift]) == pytest.approx(6.0)
    # The ratio of the medians is 1 here, and the ratios within rounds are 2, 2 and 1/4.
    assert median_ratio([2.0, 8.0, 4.0], [1.0, 4.0, 16.0]) == 2.0


def test_every_round_counts_once_however_many_repetitions_it_had() -> None:
    contender = Contender(lambda: None, lambda _: None)
    contender.rounds = [[1.0] * 50, [10.0], [8.0, 9.0, 30.0], [11.0], [12.0]]
    assert contender.round_ms == [1.0, 10.0, 9.0, 11.0, 12.0]
    assert contender.percentiles()[1] == 10.0
