"""The simulation of many machines, held against what queues are known to do."""

import pytest
from rediprune.export.bench.scale.thousand_machines import MEASURED, Ring, Service, simulate, table

EVEN = Service(vision=0.0, rest=0.5, decode=0.5)  # one second, hit or not


def test_one_machine_waits_as_a_queue_with_constant_service_does() -> None:
    """M/D/1: the mean wait is ρ / (2 (1 − ρ)) service times; its median lies below."""
    found = simulate(EVEN, 1, "random", 0.7, 20_000, pictures=10, held=100)
    assert 0.4 < found.median < 0.7 / (2 * 0.3) and found.busiest == 1.0
    idle = simulate(EVEN, 1, "random", 0.01, 2_000, pictures=10, held=100)
    assert idle.median == 0.0 and idle.late < 1.0


def test_a_picture_has_the_same_machines_always_and_few_move_when_one_is_added() -> None:
    before, again, after = Ring(10), Ring(10), Ring(11)
    first = [before.machines(picture)[0] for picture in range(2000)]
    assert first == [again.machines(picture)[0] for picture in range(2000)]
    assert len(set(before.machines(7))) == 3
    moved = sum(after.machines(picture)[0] != machine for picture, machine in enumerate(first))
    assert 0.04 < moved / 2000 < 0.16  # about one in eleven, all of them to the new one
    assert max(first.count(machine) for machine in range(10)) < 2 * 200


def test_hashing_keeps_the_hits_and_homes_the_waits_too() -> None:
    service = MEASURED["0.5 B, two cores"]
    by = {
        routing: simulate(service, 60, routing, 0.7, 12_000, pictures=40, held=400)
        for routing in ("random", "hash", "homes")
    }
    assert by["hash"].hit_rate > by["random"].hit_rate + 0.3
    assert by["homes"].hit_rate > by["hash"].hit_rate - 0.01
    assert by["hash"].late > 5 * by["homes"].late
    assert by["homes"].busiest < 1.8 < by["hash"].busiest


def test_equal_seeds_give_equal_tables() -> None:
    one, two = (table(EVEN, [1, 3], 0.5, 50) for _ in range(2))
    assert one == two and one.count("\n") == 5


def test_the_figures_that_it_is_fed_are_those_of_the_page() -> None:
    assert MEASURED["7B, H100"].seconds(True) == pytest.approx(0.0186 + 0.058)
    assert MEASURED["0.5 B, two cores"].seconds(False) == pytest.approx(0.465)
