import pytest
import torch

from rerank_plugin.engine.cpu.rows import kernel, norm_and_rotate, plain_norm_and_rotate


@pytest.mark.skipif(kernel() is None, reason="no compiled kernel for this machine")
@pytest.mark.parametrize("size", [32, 64, 128, 576])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("rotated", [False, True])
def test_the_compiled_kernel_norms_and_rotates(size: int, normed: bool, rotated: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(131, 7, size).bfloat16()[:, 1:4]
    weight = torch.randn(3, size) if normed else None
    angles = None
    if rotated:
        turns = torch.randn(1, 131, size // 2).repeat(1, 1, 2)
        angles = turns.cos().bfloat16(), turns.sin().bfloat16()
    out = norm_and_rotate(x, weight, 1e-5, angles)
    exact = plain_norm_and_rotate(
        x.float(), weight, 1e-5, angles and (angles[0].float(), angles[1].float())
    )
    assert out.is_contiguous()
    torch.testing.assert_close(out.float(), exact, atol=1e-6, rtol=2**-8)
