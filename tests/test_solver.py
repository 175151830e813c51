"""The poly schedule."""

import pytest

from core.solver import poly_lr


def test_poly_lr_of_hand_values():
    # 0.5^0.9 = 0.535887; 0.75^0.9 = 0.771890
    rates = [poly_lr(i, 0.1, 100) for i in (0, 25, 50, 100)]
    assert rates == pytest.approx([0.1, 0.0771890, 0.0535887, 0], rel=1e-5)
    assert poly_lr(25, 8.0, 100, power=2) == pytest.approx(8 * 0.5625)
