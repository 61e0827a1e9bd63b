"""Independent tasks: the same results whatever runs them, and failures that do not spread."""

import pytest

import optimand as om
from tasks import dies_once, fails_on_two, fails_once, one_always_dies, seeded

EXECUTORS = [om.SerialExecutor(), om.ProcessPool(workers=2)]
engines = pytest.mark.parametrize("executor", EXECUTORS, ids=lambda e: type(e).__name__)


@engines
def test_results_come_in_the_order_of_the_items_with_their_seeds(executor):
    assert executor.map(seeded, [1, 2, 3], seed=100) == [110, 121, 132]


@engines
def test_a_task_that_raises_becomes_a_failure_and_ends_no_other(executor):
    results = executor.map(fails_on_two, [1, 2, 3])
    assert results[0] == 1 and results[2] == 3
    assert isinstance(results[1], om.Failure)
    assert results[1].tries == 2 and "ValueError: two" in results[1].error and "fails_on_two" in results[1].traceback


@engines
def test_a_task_is_tried_again(executor, tmp_path):
    assert executor.map(fails_once, [str(tmp_path)] * 3) == [0, 1, 2]


def test_a_worker_that_dies_takes_nothing_along(tmp_path):
    assert om.ProcessPool(workers=2).map(dies_once, [str(tmp_path)] * 3) == [0, 1, 2]


def test_a_task_that_always_kills_its_worker_is_the_only_failure():
    results = om.ProcessPool(workers=2).map(one_always_dies, [None] * 6)
    assert [result for result in results if not isinstance(result, om.Failure)] == [0, 2, 3, 4, 5]
    assert results[1].tries == 2 and "BrokenProcessPool" in results[1].error


@pytest.mark.parametrize("arguments", [{"workers": 0}, {"retries": -1}, {"threads": 0}, {"workers": 1.5}])
def test_bad_numbers_are_refused(arguments, as_a_user):
    with pytest.raises(om.errors.ArgumentError, match=next(iter(arguments))):
        om.ProcessPool(**arguments)
