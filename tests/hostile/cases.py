"""What the fuzz tests share."""

import pytest
from hypothesis import HealthCheck, settings

from core.utils.errors import UserError

_FEW = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def few_and_many(few, many):
    """A test with the argument `examples`, hypothesis's settings: with a few cases, and as a long test with many."""
    many = pytest.param(settings(_FEW, max_examples=many), marks=pytest.mark.long)
    return pytest.mark.parametrize("examples", [settings(_FEW, max_examples=few), many], ids=["few", "many"])


def outcome(action, *args):
    """(what the action returns, None), or (None, the line of its UserError)."""
    try:
        return action(*args), None
    except UserError as error:
        return None, str(error)
