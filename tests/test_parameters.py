"""Gradients that begin from nothing: what stands there before the first product overwrites it is read by nobody."""

from __future__ import annotations

import threading
from unittest.mock import Mock

import numpy as np
import pytest

from minibert.kernels import devices
from minibert.optimizers import OPTIMIZERS
from minibert.parameters import Group
from minibert.random import Key
from models import clip, spoil, trainer, weights


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"micro_batch": 3}, {"recompute": "segments:2"}, {"layerwise_update": True}, {"optimizer": "adafactor"}],
    ids=str,
)
def test_what_stands_in_fresh_gradients_changes_no_bit(settings, precision):
    found = []
    for spoilt in (False, True):
        t = trainer(devices.open("cpu", precision=precision), precision=precision, **settings)
        with t.bert.device.session():
            done = [(spoil(t) if spoilt else t).step(step) for step in range(3)]
        found.append((done, [array.tobytes() for array in weights(t).values()]))
    assert found[0] == found[1]


def test_what_no_product_has_written_is_zero():
    t = spoil(trainer())
    head, layer = t.bert.head, t.bert.layers[0]
    assert not head["classifier.weight"].grad.any()
    assert not any(array.any() for array in t.bert.arrays(gradients=True).values())
    layer.renew_gradients()
    assert not head.gradients.any()
    _ = layer["output.dense.weight"].raw_grad
    assert np.isnan(layer["output.dense.weight"].raw_grad).all() and layer["output.dense.weight"].fresh
    assert not layer.gradients.any() and not layer["output.dense.weight"].fresh


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_is_read_of_gradients_that_no_pass_has_written(optimizer):
    t = spoil(trainer(optimizer=optimizer))
    for group in t.bert.groups:
        _ = group.raw_gradients
    clip(t.optimizer)
    assert t.optimizer.norm[0] == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pieces_of_a_batch_add_up_where_gradients_are_fresh(precision, monkeypatch):
    found = []
    for piece in (4096, 64):
        monkeypatch.setattr(devices.Device, "piece", piece)
        t = spoil(trainer(devices.open("cpu", precision=precision), precision=precision))
        with t.bert.device.session():
            t.gradients(np.arange(8), Key(1, 0))
        found.append({(group.name, p.name): p.grad.copy() for group in t.bert.groups for p in group})
    for name, wanted in found[0].items():
        np.testing.assert_allclose(found[1][name], wanted, rtol=1e-4, atol=1e-5, err_msg=str(name))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_step_that_is_broken_off_leaves_nothing_to_the_next(error, monkeypatch):
    found = []
    for broken_off in (False, True):
        t = spoil(trainer())
        with t.bert.device.session():
            t.step(0)
            if broken_off:
                with monkeypatch.context() as patch, pytest.raises(error):
                    patch.setattr(t.bert.device.attention, "backward", Mock(side_effect=error))
                    t.update(*t.at(1), np.arange(8), Key(1, 1))
            found.append(t.step(1))
    assert found[0] == found[1]


@pytest.mark.parametrize("looked_at", ["intermediate.dense.weight", "output.dense.weight", "attention.self.qkv.weight"])
def test_a_gradient_that_somebody_has_looked_at_is_added_to(looked_at):
    """Also where the other weight of the same operation is fresh."""
    found = []
    for look in (False, True):
        t = spoil(trainer())
        with t.bert.device.session():
            if look:
                t.bert.layers[1][looked_at].grad[...] = 3
            t.gradients(np.arange(8), Key(1, 0))
        found.append({(group.name, p.name): p.grad.copy() for group in t.bert.groups for p in group})
    for name, wanted in found[0].items():
        before = 3 * (name == ("encoder.layer.1", looked_at))
        np.testing.assert_allclose(found[1][name] - before, wanted, rtol=1e-5, atol=1e-5, err_msg=str(name))


def test_padding_is_zero_whatever_memory_held():
    class Used(devices.Device):
        def empty(self, shape, dtype, kind):
            array = super().empty(shape, dtype, kind)
            array.fill(np.nan)
            return array

    group = Group(Used("reference"), "g", {"a.weight": (3, 5), "b.weight": (1, 1), "a.bias": (7,)}, products=True)
    inside = np.zeros(group.weights.size, bool)
    for param in group.products:
        inside[param.span] = True
    assert np.isnan(group.raw_gradients[inside]).all() and not group.raw_gradients[~inside].any()
    assert not group.gradients.any()


def test_threads_that_ask_for_an_operand_at_once_get_it_whole():
    device = devices.open("cpu", precision="bf16")
    weights = np.random.default_rng(0).standard_normal((1536, 384), np.float32)
    wanted = None
    for _ in range(40):
        param = Group(device, "one", {"w": weights.shape})["w"]
        param.data[...] = weights
        barrier, found = threading.Barrier(2), []

        def ask(param=param, barrier=barrier, found=found):
            barrier.wait()
            found.append(param.operand.copy())

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wanted = param.operand.copy() if wanted is None else wanted
        for operand in found:
            np.testing.assert_array_equal(operand, wanted)
