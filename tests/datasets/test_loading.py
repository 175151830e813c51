"""Loaders: errors of workers as they are, and no advice about their number."""

import os
import warnings

import pytest
from torch.utils.data import Dataset

from core.datasets.loading import Loader
from core.utils.errors import UserError


class Numbers(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 3:
            raise UserError("the fourth is broken")
        return index


@pytest.mark.parametrize("workers", [0, 2])
def test_a_users_error_comes_out_of_a_worker_as_it_is(workers):
    seen = []
    with pytest.raises(UserError, match=r"^the fourth is broken$"):
        seen.extend(Loader(Numbers(), list, workers, batch_size=1))
    assert len(seen) <= 3


def test_more_workers_than_cores_are_nobodys_business(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = iter(Loader(Numbers(), list, 2, batch_size=1))
        assert next(loader) == [0]
