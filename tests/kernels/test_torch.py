"""The ops as torch uses them: opcheck, torch.compile, CUDA graphs, streams, several GPUs, drop-in imports."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from numerics import DenseCall, SparseCall, dense_call, sparse_call

import flash_dsa


def test_opcheck_sparse(plain_device: torch.device) -> None:
    call = sparse_call(plain_device, 3, 40, 6, 20, features="sink length")
    arguments = (call.q, call.kv, call.indices, call.sm_scale, 512, call.attn_sink, call.topk_length)
    torch.library.opcheck(torch.ops.flash_dsa.sparse_fwd.default, arguments)
    torch.library.opcheck(torch.ops.flash_dsa.sparse_fwd.default, (*arguments[:5], None, None))
    out, max_logits, lse = call.run()
    torch.library.opcheck(torch.ops.flash_dsa.sparse_fwd_out.default, (*arguments, out, max_logits, lse))


def test_opcheck_dense(plain_device: torch.device) -> None:
    call = dense_call(plain_device, [10, 3], [20, 9], 4, 2, (192, 128), causal=True)
    arguments = (call.q, call.k, call.v, call.cu_seqlens_qo, call.cu_seqlens_kv, 10, 20, 0.1, True)
    torch.library.opcheck(torch.ops.flash_dsa.dense_fwd.default, arguments)
    torch.library.opcheck(torch.ops.flash_dsa.dense_fwd_out.default, (*arguments, *call.run()))


def test_compile_sparse(plain_device: torch.device) -> None:
    call = sparse_call(plain_device, 5, 60, 8, 20, features="sink")

    @torch.compile(fullgraph=True)
    def model(q: torch.Tensor, kv: torch.Tensor, indices: torch.Tensor, sink: torch.Tensor) -> torch.Tensor:
        out, _, lse = flash_dsa.flash_mla_sparse_fwd(q * 2, kv, indices, 0.1, attn_sink=sink)
        return out.float() + lse.unsqueeze(-1).nan_to_num(posinf=0)

    assert call.attn_sink is not None
    out, _, lse = flash_dsa.flash_mla_sparse_fwd(call.q * 2, call.kv, call.indices, 0.1, attn_sink=call.attn_sink)
    expected = out.float() + lse.unsqueeze(-1).nan_to_num(posinf=0)
    assert torch.equal(model(call.q, call.kv, call.indices, call.attn_sink), expected)
    # Another length: dynamic shapes go through the fake kernel.
    assert model(call.q[:3], call.kv, call.indices[:3], call.attn_sink).shape == (3, 8, 512)


def test_compile_sparse_with_out(plain_device: torch.device) -> None:
    call = sparse_call(plain_device, 5, 60, 8, 20)

    @torch.compile(fullgraph=True)
    def model(q: torch.Tensor, kv: torch.Tensor, indices: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        flash_dsa.flash_mla_sparse_fwd(q, kv, indices, 0.1, out=out)
        return out * 2

    out = torch.empty(5, 8, 512, dtype=torch.bfloat16, device=plain_device)
    expected = flash_dsa.flash_mla_sparse_fwd(call.q, call.kv, call.indices, 0.1)[0]
    assert torch.equal(model(call.q, call.kv, call.indices, out), expected * 2)
    assert torch.equal(out, expected)


def test_compile_dense(plain_device: torch.device) -> None:
    call = dense_call(plain_device, [10, 3], [20, 9], 4, 2, (192, 128), causal=True)

    @torch.compile(fullgraph=True)
    def model(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out, lse = flash_dsa.flash_attn_varlen_func(q, k, v, a, b, 10, 20, causal=True)
        return out.float() * lse.unsqueeze(-1).nan_to_num(posinf=0)

    out, lse = call.run()
    expected = out.float() * lse.unsqueeze(-1).nan_to_num(posinf=0)
    assert torch.equal(model(call.q, call.k, call.v, call.cu_seqlens_qo, call.cu_seqlens_kv), expected)


def test_compile_dense_with_out(plain_device: torch.device) -> None:
    call = dense_call(plain_device, [10, 3], [20, 9], 4, 2, (192, 128))

    @torch.compile(fullgraph=True)
    def model(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out = torch.empty(13, 4, 128, dtype=q.dtype, device=q.device)
        _, lse = flash_dsa._flash_attn_varlen_forward(q, k, v, a, b, 10, 20, out=out)
        return out.float() * lse.unsqueeze(-1)

    out, lse = call.run()
    actual = model(call.q, call.k, call.v, call.cu_seqlens_qo, call.cu_seqlens_kv)
    assert torch.equal(actual, out.float() * lse.unsqueeze(-1))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_says_which_shape_is_wrong(plain_device: torch.device, dynamic: bool) -> None:
    """While compiling, before anything runs, whether sizes are numbers or symbols."""
    call = sparse_call(plain_device, 5, 60, 8, 20)
    model = torch.compile(flash_dsa.flash_mla_sparse_fwd, fullgraph=True, dynamic=dynamic, backend="eager")
    model(call.q, call.kv, call.indices, 0.1)
    with pytest.raises(RuntimeError, match=r"sparse_fwd: `indices` expected s_q = \w+ in dimension 0, got shape \["):
        model(call.q, call.kv, call.indices[:3], 0.1)
    with pytest.raises(RuntimeError, match=r"sparse_fwd: `kv` expected shape \[s_kv, h_kv, d_qk\], got \["):
        model(call.q, call.kv[:, 0], call.indices, 0.1)


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_compile_where_only_the_data_knows_how_many_queries(plain_device: torch.device) -> None:
    """The fake kernel's checks of such a size become assertions of the program instead of a refusal to compile."""
    call = sparse_call(plain_device, 5, 60, 8, 20)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def model(q: torch.Tensor, kv: torch.Tensor, indices: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        keep = mask.nonzero()[:, 0]
        return flash_dsa.flash_mla_sparse_fwd(q[keep], kv, indices[keep], 0.1)[0]

    mask = torch.tensor([True, False, True, True, False], device=plain_device)
    expected = flash_dsa.flash_mla_sparse_fwd(call.q[mask], call.kv, call.indices[mask], 0.1)[0]
    assert torch.equal(model(call.q, call.kv, call.indices, mask), expected)


def test_code_written_for_upstream_runs() -> None:
    """In a fresh process, with nothing imported but flash_dsa under upstream's name."""
    code = """
    import torch
    import flash_dsa as flash_mla
    from flash_dsa import _flash_attn_varlen_forward, flash_mla_sparse_fwd
    q = torch.randn(4, 64, 576).bfloat16(); kv = torch.randn(32, 1, 576).bfloat16()
    indices = torch.randint(0, 32, (4, 1, 128)).int()
    out, max_logits, lse = flash_mla.flash_mla_sparse_fwd(q, kv, indices, 576 ** -0.5, d_v=512)
    assert out.shape == (4, 64, 512) and max_logits.shape == lse.shape == (4, 64)
    k = torch.randn(8, 64, 576).bfloat16(); v = torch.randn(8, 64, 512).bfloat16()
    starts = torch.tensor([0, 4]).int(), torch.tensor([0, 8]).int()
    out, lse = _flash_attn_varlen_forward(q, k, v, *starts, 4, 8, causal=False, softmax_scale=576 ** -0.5)
    assert out.shape == (4, 64, 512) and lse.shape == (4, 64)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_python_m_flash_dsa_says_what_is_here() -> None:
    result = subprocess.run([sys.executable, "-m", "flash_dsa"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for word in (flash_dsa.__version__, "targets", flash_dsa.compiled_targets(), "served by cpu", torch.__version__):
        assert word in result.stdout


@pytest.mark.gpu
def test_cuda_graph() -> None:
    cuda = torch.device("cuda")
    sparse = sparse_call(cuda, 20, 300, 64, 128, features="sink")
    dense = dense_call(cuda, [70], [90], 4, 2, (192, 128), causal=True)
    expected = (*sparse.run(), *dense.run())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = (*sparse.run(), *dense.run())
    for tensor in captured:
        tensor.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    for one, two in zip(expected, captured, strict=True):
        assert torch.equal(one, two)


@pytest.mark.gpu
def test_side_stream_is_the_one_used() -> None:
    """The inputs become right only on the side stream, behind a long wait: a launch elsewhere would read zeros."""
    cuda = torch.device("cuda")
    call = sparse_call(cuda, 200, 3000, 64, 512)
    expected = call.run()
    q, call.q = call.q, torch.zeros_like(call.q)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        call.q.copy_(q)
        results = call.run()
    stream.synchronize()
    for one, two in zip(expected, results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.gpu
def test_another_thread() -> None:
    """A thread whose first CUDA call is ours."""
    from concurrent.futures import ThreadPoolExecutor

    call = sparse_call(torch.device("cuda"), 20, 300, 64, 128)
    expected = call.run()
    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(call.run).result()
    for one, two in zip(expected, results, strict=True):
        assert torch.equal(one, two)


def calls_on(device: torch.device) -> list[SparseCall | DenseCall]:
    """One for every kernel; each needs more shared memory than CUDA allows a kernel that did not ask."""
    dense = [dense_call(device, [70], [90], 4, 2, head_dims, causal=True) for head_dims in ((192, 128), (576, 512))]
    return [*(sparse_call(device, 20, 300, h_q, 128) for h_q in (16, 64)), *dense]


@pytest.mark.gpu
@pytest.mark.two_gpus
def test_tensors_on_a_gpu_that_is_not_current() -> None:
    """After the same kernels have run on GPU 0: what a launch sets up must be set up for each GPU."""
    expected = [call.run() for call in calls_on(torch.device("cuda:0"))]
    calls = calls_on(torch.device("cuda:1"))
    with torch.cuda.device(0):
        results = [call.run() for call in calls]
        assert torch.cuda.current_device() == 0
    torch.cuda.synchronize(1)
    for one, two in zip(sum(expected, ()), sum(results, ()), strict=True):
        assert two.device.index == 1 and torch.equal(one, two.to("cuda:0"))


@pytest.mark.gpu
@pytest.mark.two_gpus
def test_side_stream_of_a_gpu_that_is_not_current() -> None:
    """As test_side_stream_is_the_one_used; `torch.cuda.device` leaves the current stream of the other GPU alone."""
    for call in calls_on(torch.device("cuda:1")):
        expected = call.run()
        q, call.q = call.q, torch.zeros_like(call.q)
        torch.cuda.synchronize(1)
        stream = torch.cuda.Stream(1)
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            call.q.copy_(q)
            with torch.cuda.device(0):
                assert torch.cuda.current_device() == 0 and torch.cuda.current_stream(1) == stream
                results = call.run()
        stream.synchronize()
        for one, two in zip(expected, results, strict=True):
            assert torch.equal(one, two)
