"""Linear cross-entropy: any chunking equals the definition; nothing as large as the logits is ever made."""

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from muomni.ops.cross_entropy import IGNORE, linear_cross_entropy, linear_cross_entropy_reference, shift_labels


class Products(TorchDispatchMode):
    """Notes how many rows products with the weight have."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket is torch.ops.aten.mm and args[1].shape[0] == 8:
            self.rows.add(args[0].shape[0])
        return function(*args, **(kwargs or {}))


def make_inputs(seed: int, tokens: int, vocabulary: int, ignored: float, dtype=torch.float64, width: int = 8):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < ignored] = IGNORE
    return hidden, weight, targets


@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 40) | st.integers(70, 300),
    vocabulary=st.integers(2, 30),
    chunk=st.integers(1, 50),
    ignored=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)
def test_any_chunk_equals_the_definition(seed, tokens, vocabulary, chunk, ignored):
    hidden, weight, targets = make_inputs(seed, tokens, vocabulary, ignored)
    fast = linear_cross_entropy(hidden, weight, targets, chunk)
    slow = F.cross_entropy(F.linear(hidden, weight), targets, ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(fast * 0.37, (hidden, weight)),
        torch.autograd.grad(slow * 0.37, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_tokens_without_a_target_are_not_computed():
    hidden, weight, targets = make_inputs(0, 400, 30, 0.9)
    with Products() as products:
        linear_cross_entropy(hidden, weight, targets)
    assert products.rows == {64}, "40 of 400 tokens, and what makes them a multiple"


def test_huge_logits_do_not_overflow():
    hidden, weight, targets = make_inputs(0, 6, 10, 0.0, torch.float32)
    hidden = (hidden.detach() * 1e4).requires_grad_()
    fast, slow = (f(hidden, weight, targets) for f in (linear_cross_entropy, linear_cross_entropy_reference))
    torch.testing.assert_close(fast, slow)
    assert torch.isfinite(torch.autograd.grad(fast, hidden)[0]).all()


def test_the_low_precision_path_errs_no_more_than_the_plain_one():
    hidden, weight, targets = make_inputs(0, 64, 200, 0.2, torch.float32, width=64)
    exact = _loss_and_gradients(linear_cross_entropy_reference, hidden.double(), weight.double(), targets)
    with torch.autocast("cpu", torch.bfloat16):
        plain = _loss_and_gradients(linear_cross_entropy_reference, hidden, weight, targets)
        ours = _loss_and_gradients(lambda h, w, t: linear_cross_entropy(h, w, t, 16), hidden, weight, targets)
    for reference, low, fast in zip(exact, plain, ours, strict=True):
        assert (fast - reference).norm() <= 2 * (low - reference).norm()


def _loss_and_gradients(function, hidden, weight, targets):
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    loss = function(hidden, weight, targets)
    return [x.double() for x in (loss.detach(), *torch.autograd.grad(loss, (hidden, weight)))]


class _Largest(TorchDispatchMode):
    """Records the most elements any operation's result has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_no_tensor_is_as_large_as_the_logits():
    hidden, weight, targets = make_inputs(0, 1000, 500, 0.0, torch.float32)
    with _Largest() as seen:
        linear_cross_entropy(hidden, weight, targets, 100).backward()
    assert seen.elements == 100 * 500  # one chunk
    with _Largest() as seen:
        linear_cross_entropy_reference(hidden, weight, targets).backward()
    assert seen.elements == 1000 * 500


def test_frozen_inputs_get_no_gradient():
    hidden, weight, targets = make_inputs(0, 5, 7, 0.0)
    linear_cross_entropy(hidden, weight.detach(), targets).backward()
    assert hidden.grad is not None and weight.grad is None


def test_labels_are_shifted_once():
    labels = torch.tensor([[5, 6, 7], [1, IGNORE, 3]])
    assert shift_labels(labels).tolist() == [[6, 7, IGNORE], [IGNORE, 3, IGNORE]]
