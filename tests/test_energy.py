"""Energy from counters and power: what is counted, integrated, rejected, and lost."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmeter.energy import Energy, EnergySample, Factors, advance, settled

SECOND = 1_000_000_000


def run(samples, *, interval_s=1.0, limit_w=None):
    """States after each of (time in s, counter in J, power in W)."""
    energy, states = Energy(), []
    for time_s, counter, power in samples:
        sample = EnergySample(
            time_ns=round(time_s * SECOND),
            counter_joules=counter,
            power_watts=power,
            power_limit_watts=limit_w,
        )
        energy = advance(energy, sample, interval_s=interval_s)
        states.append(energy)
    return states


def parts(energy):
    return pytest.approx((energy.counter_joules, energy.integrated_joules, energy.gap_s))


def test_hundred_watts_for_an_hour():
    """100 W for one hour is 0.1 kWh, 47.5 g and 0.012 USD."""
    last = run([(t, None, 100.0) for t in range(3601)])[-1]

    factors = Factors()
    assert last.total_joules == pytest.approx(360_000)
    assert last.total_joules / 3.6e6 == pytest.approx(0.1)
    assert last.total_joules * factors.co2_g_per_joule == pytest.approx(47.5)
    assert last.total_joules * factors.cost_usd_per_joule == pytest.approx(0.012)


def test_pue_multiplies_cost_and_co2():
    """A data centre with PUE 1.5 uses half as much again for each joule."""
    assert Factors(pue=1.5).co2_g_per_joule == pytest.approx(1.5 * Factors().co2_g_per_joule)
    assert Factors(pue=1.5).cost_usd_per_joule == pytest.approx(1.5 * Factors().cost_usd_per_joule)


@pytest.mark.parametrize(
    ("samples", "want"),
    [
        pytest.param([], (0, 0, 0), id="nothing"),
        pytest.param([(0, 500, 100)], (0, 0, 0), id="the first sample is the start"),
        pytest.param([(0, 500, 100), (1, 620, 100)], (120, 0, 0), id="counter wins"),
        pytest.param([(0, None, 100), (1, None, 200)], (0, 150, 0), id="trapezoid"),
        pytest.param([(0, 500, None), (1, 620, None)], (120, 0, 0), id="counter without power"),
        pytest.param([(0, None, None), (1, None, None)], (0, 0, 0), id="neither"),
        pytest.param(
            [(0, 500, 100), (1, None, 100), (2, 720, 100)], (220, 0, 0), id="counter skips a tick"
        ),
        pytest.param(
            [(0, 500, 100), (1, None, None), (60, 6_500, 100)], (6_000, 0, 0), id="counter bridges"
        ),
        pytest.param(
            [(0, None, 100), (1, None, None), (2, None, 100)], (0, 200, 0), id="power skips a tick"
        ),
        pytest.param(
            [(0, None, 100), (10, None, 100)], (0, 300, 7), id="three intervals at most, then a gap"
        ),
        pytest.param(
            [(0, 500, 100), (1, 600, 100), (2, 40, 100), (3, 140, 100)],
            (200, 100, 0),
            id="a reset shifts the base",
        ),
        pytest.param(
            [(0, 500, 100), (1, 90_500, 100), (2, 90_600, 100)],
            (100, 100, 0),
            id="a jump is integrated instead",
        ),
        pytest.param([(0, None, 100), (1, 500, 100), (2, 600, 100)], (100, 100, 0), id="late"),
    ],
)
def test_where_the_joules_come_from(samples, want):
    """Each case of (time, counter, power) gives (counted J, integrated J, gap s)."""
    last = run(samples, limit_w=300.0)[-1] if samples else Energy()

    assert want == parts(last)


def test_standing_counter_is_replaced_after_five_seconds_without_loss():
    """A constant counter under power is not believed, and what it hid is integrated."""
    states = run([(t, 0.0, 80.0) for t in range(11)])

    assert [s.total_joules for s in states[:6]] == [0] * 6
    assert [s.total_joules for s in states[6:]] == pytest.approx([480, 560, 640, 720, 800])
    assert [s.source for s in states] == ["counter"] * 6 + ["integrated"] * 5


def test_counter_that_moves_again_is_trusted_again_and_counts_nothing_twice():
    """The delta over the time that was integrated is dropped."""
    stands = [(t, 0.0, 80.0) for t in range(9)]
    moves = [(t, 80.0 * t, 80.0) for t in range(9, 12)]

    last = run(stands + moves)[-1]

    assert last.total_joules == pytest.approx(11 * 80)
    assert parts(last) == (160, 720, 0)


def test_standing_counter_without_power_is_believed():
    """A GPU that is off uses nothing."""
    last = run([(t, 7.0, 0.0) for t in range(60)])[-1]

    assert (last.total_joules, last.source) == (0, "counter")


def test_counter_that_disappears_is_replaced():
    """A counter that stops answering is integrated over as soon as that is certain."""
    states = run([(0, 500, 100), (1, 600, 100)] + [(t, None, 100) for t in range(2, 10)])

    assert parts(states[-1]) == (100, 800, 0)
    assert states[-1].source == "integrated"


def test_coarse_counter_under_fast_sampling_is_believed():
    """Steps of 100 ms seen every 50 ms are not jumps, at the power limit too."""
    limit_w = 300.0
    samples = [(t / 20, limit_w * (t // 2) / 10, limit_w) for t in range(200)]

    last = run(samples, interval_s=0.05, limit_w=limit_w)[-1]

    assert last.integrated_joules == 0
    assert last.counter_joules == pytest.approx(limit_w * 9.9)


def test_short_run_on_a_standing_counter_is_settled():
    """At the end, what is pending on a counter that never moved is integrated."""
    last = run([(t, 0.0, 50.0) for t in range(4)])[-1]

    assert last.total_joules == 0
    assert settled(last).total_joules == pytest.approx(150)


def test_rest_of_a_counter_step_is_not_settled():
    """What a working counter has not shown yet stays within one step, and out."""
    last = run([(0, 0.0, 50.0), (1, 50.0, 50.0), (1.05, 50.0, 50.0)])[-1]

    assert settled(last).total_joules == pytest.approx(50)


def test_residual_tells_how_far_counter_and_power_are_apart():
    """A power sensor that reads 10 % high shows up as a negative residual."""
    last = run([(t, 100.0 * t, 110.0) for t in range(11)])[-1]

    assert last.residual_joules == pytest.approx(-100)


values = st.one_of(st.none(), st.floats(0, 1e6))


@given(
    st.lists(st.tuples(st.floats(0.01, 100), values, values), max_size=40),
    st.one_of(st.none(), st.floats(0, 1000)),
)
def test_energy_never_decreases(steps, limit_w):
    """Whatever the driver says, both parts and the gap only grow."""
    time_s, samples = 0.0, []
    for step_s, counter, power in steps:
        time_s += step_s
        samples.append((time_s, counter, power))

    states = [Energy(), *run(samples, limit_w=limit_w)]
    states.append(settled(states[-1]))

    for before, after in itertools.pairwise(states):
        assert after.counter_joules >= before.counter_joules
        assert after.integrated_joules >= before.integrated_joules
        assert after.gap_s >= before.gap_s


@given(st.lists(st.floats(0, 700), min_size=2, max_size=60), st.randoms())
def test_total_is_the_same_however_the_counter_is_asked(watts, random):
    """Leaving out samples of a counter changes nothing at the end."""
    counters = [sum(watts[:i]) for i in range(len(watts))]
    every = [(t, counters[t], watts[t]) for t in range(len(watts))]
    some = [every[0], *(s for s in every[1:-1] if random.random() < 0.5), every[-1]]

    with_power = run([(t, c, None) for t, c, _ in some])[-1].total_joules

    assert with_power == pytest.approx(run([(t, c, None) for t, c, _ in every])[-1].total_joules)
