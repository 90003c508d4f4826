"""The tape: fan-out, order, freeing, and recomputation."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from minibert.autograd import Tape, Tensor, passed, recompute, record, untaped
from minibert.kernels import devices

DEVICE = devices.open("reference", float_type="float64")


def scaled(x: Tensor, factor: float) -> Tensor:
    return record(DEVICE, x.data * factor, (x,), lambda dy: (dy * factor,))


def product(a: Tensor, b: Tensor) -> Tensor:
    return record(DEVICE, a.data * b.data, (a, b), lambda dy: (dy * b.data, dy * a.data))


def tensor(*values: float) -> Tensor:
    return Tensor(np.array(values), DEVICE)


def test_a_tensor_used_twice_gets_the_sum_of_both_gradients():
    x = tensor(3.0, -2.0)
    with Tape() as tape:
        y = product(scaled(x, 2.0), x)  # 2x²
    ((one, other),) = tape.backward(y, [np.array([1.0, 10.0])], wrt=(x,))
    np.testing.assert_array_equal(one + other, 4 * x.data * [1.0, 10.0])


def test_what_the_result_does_not_depend_on_is_not_run():
    x = tensor(1.0)

    def fail(dy: np.ndarray) -> tuple[np.ndarray]:
        raise AssertionError("walked into a branch that leads nowhere")

    with Tape() as tape:
        record(DEVICE, x.data, (x,), fail)
        y = scaled(x, 5.0)
    assert tape.backward(y, [np.array([1.0])], wrt=(x,)) == [[5.0]]


def test_backward_frees_what_it_has_passed():
    alive = []

    def watched(x: Tensor) -> Tensor:
        kept = np.ones(3)
        alive.append(weakref.ref(kept))
        return record(DEVICE, x.data + kept, (x,), lambda dy: (dy * kept,))

    def count(x: Tensor) -> Tensor:
        return record(DEVICE, x.data, (x,), lambda dy: (dy + sum(ref() is not None for ref in alive),))

    with Tape() as tape:
        y = watched(count(watched(tensor(1.0, 2.0, 3.0))))
    assert all(ref() is not None for ref in alive)
    tape.backward(y, [np.zeros(3)])
    assert all(ref() is None for ref in alive)


def test_nothing_is_recorded_without_a_tape_or_under_untaped():
    with Tape() as tape:
        with untaped():
            scaled(tensor(1.0), 2.0)
        assert not tape.nodes
        scaled(tensor(1.0), 2.0)
        assert len(tape.nodes) == 1
    scaled(tensor(1.0), 2.0)
    assert len(tape.nodes) == 1


def test_an_input_is_free_when_what_made_it_is_walked():
    alive = []

    def asking(x: Tensor) -> Tensor:
        return record(DEVICE, x.data + 0, (x,), lambda dy: (alive.append(kept() is not None), dy)[1:])

    with Tape() as tape:
        middle = asking(tensor(1.0))
        kept = weakref.ref(middle.data)
        y = scaled(middle, 2.0)
        del middle
    tape.backward(y, [np.ones(1)])
    assert alive == [False]


def test_recompute_stores_the_input_only_and_gives_the_same_bits():
    x = tensor(0.3, -1.7)

    def block(x: Tensor) -> Tensor:
        return product(scaled(x, 1 / 3), scaled(x, 0.7))

    with Tape() as plain:
        y = block(scaled(x, 1.1))
    with Tape() as again:
        z = recompute(block, scaled(x, 1.1))
    assert (len(plain.nodes), len(again.nodes)) == (4, 2)
    dy = np.array([1.0, 3.0])
    ((wanted,),) = plain.backward(y, [dy.copy()], wrt=(x,))
    np.testing.assert_array_equal(again.backward(z, [dy.copy()], wrt=(x,)), [[wanted]])


def test_an_input_leaves_while_its_part_is_computed_and_comes_back_when_that_is_computed_again():
    seen = []

    class Somewhere:
        def leave(self, array: np.ndarray):
            seen.append("leaves")
            copy = array.copy()
            return lambda: (seen.append("comes back"), copy)[1]

        def left(self) -> None:
            seen.append("has left")

    def part(x: Tensor) -> Tensor:
        seen.append("computed")
        return product(x, x)

    with untaped():
        recompute(part, tensor(3.0), Somewhere())
    assert seen == ["computed"]  # nobody is going to ask for it
    seen.clear()
    x = tensor(3.0)
    kept = weakref.ref(x.data)
    with Tape() as tape:
        y = recompute(part, x, Somewhere())
    assert seen == ["leaves", "computed", "has left"] and kept() is None
    ((one, other),) = tape.backward(y, [np.ones(1)], wrt=(x,))
    assert seen[3:] == ["comes back", "computed"] and one + other == 6


def test_an_operation_that_takes_two_gradients_gets_them_apart_through_recomputation_too():
    seen = []

    def two(x: Tensor) -> Tensor:
        def vjp(parts: list) -> tuple:
            seen.append(len(parts))
            total = sum(parts)
            parts.clear()
            return (total,)

        return record(DEVICE, x.data + 0, (x,), vjp, two=True)

    def twice(x: Tensor) -> Tensor:
        return product(scaled(x, 2.0), two(scaled(x, 3.0)))

    x = tensor(0.5)
    with Tape() as tape:
        y = recompute(twice, recompute(two, passed(two(x), lambda: seen.append(-1))))
    ((dx,),) = tape.backward(y, [np.ones(1)], wrt=(x,))
    assert dx == 12 * 0.5 and seen == [1, 2, -1, 1]


def test_what_is_used_more_than_twice_is_added_up():
    x = tensor(1.0)
    with Tape() as tape:
        y = product(product(x, x), product(x, x))
    (parts,) = tape.backward(y, [np.ones(1)], wrt=(x,))
    assert sum(parts) == 4 and len(parts) <= 2


def test_forgotten_data_are_made_again_when_they_are_asked_for():
    x, made = tensor(3.0), []

    def tripled() -> Tensor:
        made.append(1)
        return scaled(x, 3.0)

    with Tape() as tape:
        middle = tripled()
        y = product(middle, middle)
        middle.forget(tripled)
        assert len(tape.nodes) == 2
    tape.backward(y, [np.ones(1)])
    assert len(made) == 2 and middle.data == 9.0


def test_a_vjp_that_forgets_an_input_is_an_error():
    x = tensor(1.0)
    with Tape() as tape:
        y = record(DEVICE, x.data, (x, x), lambda dy: (dy,))
    with pytest.raises(ValueError, match="shorter"):
        tape.backward(y, [np.ones(1)])
