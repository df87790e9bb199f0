"""Muon against torch's own, which goes through the matrices one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muomni.training.optim.muon import Muon, orthogonalise

SHAPES = [(8, 16), (16, 8), (8, 16), (12, 12), (4, 20)]


def make_parameters(seed: int, shapes=SHAPES) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def set_gradients(parameters, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@given(seed=st.integers(0, 2**31), lr=st.floats(1e-4, 1e-1), steps=st.integers(1, 4))
def test_it_equals_torchs_muon(seed, lr, steps):
    ours, theirs = make_parameters(seed), make_parameters(seed)
    fast = Muon(ours, lr=torch.tensor(lr), weight_decay=0.1)
    slow = torch.optim.Muon(theirs, lr=lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(steps):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        fast.step()
        slow.step()
    for a, b in zip(ours, theirs, strict=True):
        # Both iterate in bf16; products taken in a batch or singly round differently.
        torch.testing.assert_close(a, b, rtol=0, atol=lr * steps * 0.05)
        torch.testing.assert_close(fast.state[a]["momentum_buffer"], slow.state[b]["momentum_buffer"])


def test_singular_values_come_close_to_one():
    matrices = torch.randn(3, 24, 64, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices).float())
    assert values.min() > 0.6 and values.max() < 1.3
    assert torch.linalg.svdvals(matrices).max() > 5


def test_a_skipped_step_changes_neither_weights_nor_momentum():
    parameters = make_parameters(0)
    optimizer = Muon(parameters, lr=torch.tensor(0.1))
    set_gradients(parameters, 0)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    before = [p.detach().clone() for p in parameters]
    momenta = [optimizer.state[p]["momentum_buffer"].clone() for p in parameters]
    set_gradients(parameters, 1)
    parameters[0].grad[0, 0] = float("nan")
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    for parameter, weight, momentum in zip(parameters, before, momenta, strict=True):
        assert torch.equal(parameter, weight)
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], momentum)
    set_gradients(parameters, 1)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert not torch.equal(parameters[0], before[0])


def test_the_gradient_is_divided_by_its_scale():
    scaled, plain = make_parameters(0), make_parameters(0)
    one, other = Muon(scaled, lr=0.1), Muon(plain, lr=0.1)
    set_gradients(plain, 0)
    set_gradients(scaled, 0)
    for parameter in scaled:
        assert parameter.grad is not None
        parameter.grad.mul_(4)
    one.grad_scale = torch.tensor(4.0)
    one.step()
    other.step()
    for a, b in zip(scaled, plain, strict=True):
        torch.testing.assert_close(one.state[a]["momentum_buffer"], other.state[b]["momentum_buffer"])
        assert torch.equal(a, b)


def test_it_takes_matrices_only():
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.ones(3))])
