"""PyTorch with its sums in other orders: operations that other people's models call."""

import platform

import mlx.core as mx
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mlx_parity.sides.orders_pytorch import FURTHER, in_other_orders

pytestmark = pytest.mark.meta

Q, K = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8)
RUNS = {
    "causal attention of grouped heads": lambda q, k: F.scaled_dot_product_attention(
        q, k, k, is_causal=True, enable_gqa=True
    ),
    "causal attention of fewer queries than keys": lambda q, k: F.scaled_dot_product_attention(
        q[:, :2, 4:], k, k, is_causal=True
    ),
    "group norm": lambda q, k: F.group_norm(q, 2),
    "rms norm": lambda q, k: F.rms_norm(q, (8,)),
    "transposed convolution": lambda q, k: F.conv_transpose1d(q[0], k[0].expand(2, 7, 8)[:, :, :3].transpose(0, 1)),
}
AS_THEY_ARE = {"transposed convolution", "group norm"}  # they keep this machine's order


@pytest.mark.parametrize("name", RUNS)
def test_each_is_the_same_operation_in_another_order(name):
    def run(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return RUNS[name](q, k)

    truth = run(Q.double(), K.double())
    plain = run(Q, K)
    others = in_other_orders(lambda: run(Q, K))
    assert len(others) == FURTHER
    for other in others:
        torch.testing.assert_close(other.double(), truth, rtol=1e-5, atol=1e-5)
    if name not in AS_THEY_ARE:
        assert len({other.numpy().tobytes() for other in (plain, *others)}) > 1


@pytest.mark.skipif((platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="another BLAS")
def test_mlx_on_a_cpu_adds_the_terms_of_a_long_sum_one_after_another():
    """This is why a sum of many hundred terms can exceed the budget in a correct port."""
    rng, terms = np.random.default_rng(0), 960
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, terms), (terms, 4)))
    one_by_one = np.zeros((6, 4), np.float32)
    for k in range(terms):
        one_by_one += a[:, k, None] * b[k]
    filters = b.T.reshape(4, 3, terms // 3)
    with mx.stream(mx.cpu):
        product = mx.array(a) @ mx.array(b)
        convolution = mx.conv1d(mx.array(a.reshape(6, 3, terms // 3)), mx.array(filters))
    assert np.array_equal(product, one_by_one) and np.array_equal(convolution[:, 0], one_by_one)
