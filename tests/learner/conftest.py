"""One thread: the models are tiny, and the two ranks of some tests share the machine with whoever else is there."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.learner.ranks import meet

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def single_rank(tmp_path_factory: pytest.TempPathFactory):
    """A process group of one in this process, which is what a learner on one rank has."""
    if dist.is_initialized():  # an engine of another test has left its own
        assert dist.get_world_size() == 1
        yield
        return
    meet(0, 1, tmp_path_factory.mktemp("single-rank"))
    yield
    dist.destroy_process_group()
