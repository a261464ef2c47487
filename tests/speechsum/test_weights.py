"""The payload's checksum, its zero-copy views, and the one merge."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from speechsum.lora import adapted_weights, merge, pair_names, whole_tensors
from speechsum.types import PushMode
from speechsum.weights import WeightsRefused, checksum, make_payload, to_numpy, to_torch

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4, dtype=np.uint16)}


def test_checksum_does_not_depend_on_the_order_of_names():
    assert checksum(TENSORS) == checksum(dict(reversed(TENSORS.items())))


@pytest.mark.parametrize(
    "other",
    [
        TENSORS | {"a": TENSORS["a"] + 1e-6},
        TENSORS | {"a": TENSORS["a"].reshape(3, 2)},
        TENSORS | {"b": TENSORS["b"].astype(np.int16)},
        {"a": TENSORS["a"]},
        {"c": TENSORS["a"], "b": TENSORS["b"]},
        {"a": TENSORS["b"], "b": TENSORS["a"]},
    ],
    ids=["value", "shape", "dtype", "missing", "renamed", "swapped"],
)
def test_checksum_notices(other):
    assert checksum(other) != checksum(TENSORS)


def test_checksum_covers_the_scale():
    assert checksum(TENSORS, 2.0) != checksum(TENSORS, 1.0)


def test_payload_survives_pickling_and_says_what_it_is():
    payload = make_payload(7, PushMode.ADAPTER, TENSORS, scale=2.0)
    copy = pickle.loads(pickle.dumps(payload))
    copy.verify()
    assert (copy.version.version, copy.version.tensors, copy.version.bytes) == (7, 2, 32)


def test_payload_travels_out_of_band():
    buffers = []
    payload = make_payload(0, PushMode.FULL, {"w": np.zeros(100_000)})
    head = pickle.dumps(payload, protocol=5, buffer_callback=buffers.append)
    assert len(head) < 2_000
    assert len(buffers) == 1


def test_damage_is_refused():
    payload = make_payload(3, PushMode.FULL, {"w": np.zeros(4)})
    payload.tensors["w"][0] = 1.0
    with pytest.raises(WeightsRefused, match="version 3 arrived damaged"):
        payload.verify()


def test_bfloat16_goes_there_and_back_without_a_copy():
    import torch

    tensor = torch.randn(3, 5).bfloat16()
    array = to_numpy(tensor)
    assert array.dtype == np.uint16
    assert torch.equal(to_torch(array), tensor)
    assert to_torch(array).data_ptr() == tensor.data_ptr()


def test_a_scalar_stays_a_scalar():
    """Batch normalisation counts its batches in a tensor of no dimension, which a full push has to carry."""
    payload = make_payload(1, PushMode.FULL, {"count": np.array(3, np.int64)})
    payload.verify()
    assert payload.tensors["count"].shape == ()


def test_read_only_arrays_become_tensors_silently(recwarn):
    array = np.zeros(3, np.float32)
    array.setflags(write=False)
    to_torch(array)
    assert not [w for w in recwarn if "writable" in str(w.message)]


def test_merge_rounds_once():
    """1 + 2 * (0.5 * 0.25 + 1 * 0.375) = 2; and a product that bfloat16 alone would round away survives."""
    import torch

    weight = torch.ones(1, 1, dtype=torch.bfloat16)
    assert merge(weight, torch.tensor([[0.25], [0.375]]), torch.tensor([[0.5, 1.0]]), 2.0).item() == 2.0
    exact = merge(weight, torch.tensor([[1.0]]), torch.tensor([[2.0**-8 + 2.0**-16]]), 1.0)
    assert exact.dtype == torch.bfloat16
    assert exact.item() == 1.0 + 2.0**-7


def test_names_pair_up():
    a, b = pair_names("x.q_proj.weight")
    assert (a, b) == ("x.q_proj.lora_A", "x.q_proj.lora_B")
    names = [a, b, "proj.bias", "proj.weight"]
    assert adapted_weights(names) == ("x.q_proj.weight",)
    assert whole_tensors(names) == ("proj.bias", "proj.weight")
    with pytest.raises(ValueError, match="q_proj has one of"):
        adapted_weights([a])
