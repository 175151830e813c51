"""What the published experiment asks of a GPU: launches, waits and memory, which no machine's speed changes."""

import pytest


@pytest.fixture(scope="module")
def bf16(ghost):
    return ghost.figures("step", "--amp", "bf16")


def waits_in(figures, place):
    return sum(times for wait, times in figures["waits"].items() if place in wait)


def test_a_step_launches_little_and_waits_once(bf16):
    assert bf16["step"]["launches"] <= 2700
    assert bf16["step"]["waits"] == {
        "streamSync: core/runs/solver.py step < core/selftraining/trainer.py train_step": 1
    }


def test_a_query_waits_for_its_scores_in_groups(bf16):
    query = bf16["query"]
    assert query["stored"] == 8  # and the batch of this step
    assert waits_in(query, "_rescore") <= 2
    # scores of the batches as they were stored, which have long been there
    assert sum(query["waits"].values()) - waits_in(query, "_rescore") - waits_in(query, "solver.py") == 9
    assert query["launches"] - bf16["step"]["launches"] <= 5 * 720


def test_memory_of_a_step_in_bf16(bf16):
    assert bf16["step"]["peak_GB"] <= 5
    assert bf16["full"]["stored"] == 32
    assert bf16["full"]["peak_GB"] <= 5.3


@pytest.mark.long
def test_memory_and_launches_of_a_step_in_float32(ghost):
    step = ghost.figures("step", "--stored", "9")["step"]
    assert step["peak_GB"] <= 9
    assert step["launches"] <= 2700


@pytest.mark.long
def test_a_pass_queues_an_image_at_once_and_waits_for_what_is_copied(ghost):
    passes = ghost.figures("passes", "--amp", "bf16")
    for name, copies in (("first", 2), ("later", 1)):
        figures = passes[name]
        assert figures["busy_ms"] <= 9
        assert figures["launches"] <= 400
        assert waits_in(figures, "devices.py wait") == pytest.approx(copies)
        assert sum(figures["waits"].values()) <= copies + 0.2


@pytest.mark.long
def test_steps_and_queries_take_the_device_as_long_as_they_are_known_to(ghost):
    """By the ghost's clock; how much of that is hidden behind the host is each machine's own."""
    found = ghost.figures("timed", "--amp", "bf16")
    assert min(step["busy_ms"] for step in found["steps"]) <= 105
    assert len(found["queries"]) >= 3
    for query in found["queries"]:
        assert query["busy_ms"] <= 33 * (query["stored"] // 2 + 1)
