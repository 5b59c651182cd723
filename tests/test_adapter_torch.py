"""The field as a PyTorch operator and module: PyTorch's own checks pass, and what is not known is refused."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap

import fastflow as ff
from fastflow.adapters import torch as adapter
from fastflow.adapters.torch import VelocityModule, velocity

N, D, B = 30, 3, 4

# A model with a symmetric Jacobian, one without, events of several axes and of none.
MODELS = {
    "plain": ((D,), {}),
    "anisotropic": ((D,), {"variance": 0.2, "source_covariance": np.diag([0.5, 1.0, 2.0])}),
    "image": ((1, 2, 2), {"variance": 0.1, "schedule": "cosine"}),
    "scalar": ((), {"variance": 0.1}),
}


def field_of(model="anisotropic"):
    event, options = MODELS[model]
    rng = np.random.default_rng(0)
    return ff.VelocityField(rng.standard_normal((N, *event)), labels=np.arange(N) % 2, **options)


@pytest.fixture(params=MODELS)
def field(request):
    return field_of(request.param)


def queries(field, dtype=torch.float64, batch=B):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *field.event_shape, generator=generator, dtype=dtype)
    return x, 0.1 + 0.7 * torch.rand(batch, generator=generator, dtype=torch.float64)


CALLS = {
    "module": lambda f, x, t, **options: VelocityModule(f)(x, t, **options),
    "function": velocity,
    "field": lambda f, x, t, **options: f(x, t, **options),
}


@pytest.fixture(params=CALLS)
def call(request):
    return CALLS[request.param]


# Values and derivatives ---------------------------------------------------------------------------------------


def test_values(field, call):
    x, t = queries(field)
    label = torch.arange(B) % 2
    for options in ({}, {"label": 1}, {"label": label}, {"label": label, "guidance": 1.5}):
        for times in (t, t[:, None], 0.3, torch.tensor(0.3), np.full(B, 0.3)):
            numbers = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
            want = field(x.numpy(), np.asarray(times), **numbers)
            got = call(field, x.clone().requires_grad_(), times, **options)
            assert got.requires_grad and np.array_equal(got.detach().numpy(), want)
    assert call(field, x[0], 0.3).shape == field.event_shape


def test_the_function_of_the_package_records_too():
    data = np.random.default_rng(0).standard_normal((N, D))
    x = torch.ones(B, D, dtype=torch.float64, requires_grad=True)
    ff.velocity(x, 0.5, data, variance=0.1).sum().backward()
    with torch.no_grad():
        assert torch.equal(x.grad, ff.VelocityField(data, variance=0.1).vjp(x, 0.5, torch.ones_like(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(call, dtype):
    field = field_of()
    x, t = queries(field, dtype)
    x.requires_grad_()
    result = call(field, x, t)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert result.dtype == gradient.dtype == dtype
    with torch.no_grad():
        assert torch.equal(gradient, field.vjp(x, t, torch.ones_like(x)))


def test_whole_numbers():
    x = torch.ones(B, D, dtype=torch.int64)
    assert torch.equal(velocity(field_of(), x, 0.5), velocity(field_of(), x.double(), 0.5))


@pytest.mark.parametrize("guided", [False, True])
def test_gradcheck(field, guided):
    options = {"label": torch.arange(B) % 2, "guidance": 0.7} if guided else {}
    gradcheck(CALLS["module"], field, options)


@pytest.mark.parametrize("call", ["function", "field"])
def test_gradcheck_of_others(call):
    gradcheck(CALLS[call], field_of(), {"label": 1})


def gradcheck(call, field, options):
    x, t = queries(field)
    x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: call(field, x, t, **options),
        x,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@pytest.mark.parametrize("model, requires_grad", [("anisotropic", True), ("image", False)])
def test_opcheck(model, requires_grad):
    module = VelocityModule(field_of(model))
    x, t = queries(module.field)
    label = torch.arange(B) % 2
    inputs = (x.clone().requires_grad_(requires_grad), t, label, module._number, 0.5)
    torch.library.opcheck(torch.ops.fastflow.velocity.default, inputs)
    inputs = (x, t[0], x, None, module._number, 0.0, requires_grad)
    torch.library.opcheck(torch.ops.fastflow.velocity_product.default, inputs)


def test_time_is_not_differentiated(call):
    field = field_of()
    x, t = queries(field)
    for x in (x, x.clone().requires_grad_()):  # noqa: B020
        with pytest.raises((TypeError, ValueError), match=r"t requires grad.*detach"):
            call(field, x, t.clone().requires_grad_())
        with torch.no_grad():
            call(field, x, t.clone().requires_grad_())
    for of in (grad, jacrev, jacfwd):
        with pytest.raises((TypeError, ValueError), match="t requires grad"):
            of(lambda t: call(field, x, t).sum())(t)
    with pytest.raises(ValueError, match="t requires grad"):  # the bare operator knows when it is asked
        torch.ops.fastflow.velocity(x, t.requires_grad_(), None, VelocityModule(field)._number, 0.0).sum().backward()


def test_second_derivatives_are_refused(call):
    field = field_of()
    x, t = queries(field)
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(call(field, leaf, t).sum(), leaf, create_graph=True)
    want = field.vjp(x, t, torch.ones_like(x))
    assert torch.equal(first.detach(), want)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        first.sum().backward()
    for second in (jacrev(jacrev(lambda x: call(field, x, 0.3))), jacfwd(jacrev(lambda x: call(field, x, 0.3)))):
        with pytest.raises(NotImplementedError, match="second derivatives"):
            second(x)


# Transformations of functions ---------------------------------------------------------------------------------


def test_vmap(field, call):
    x, t = queries(field, batch=6)
    label = torch.arange(6) % 2
    want = field(x, t, label=label, guidance=0.5)
    close = {"rtol": 1e-12, "atol": 1e-12}  # batches of other sizes may take another kernel

    def one(x, t, label):
        return call(field, x, t, label=label, guidance=0.5)

    torch.testing.assert_close(vmap(one)(x, t, label), want, **close)
    pairs = [v.reshape(2, 3, *v.shape[1:]) for v in (x, t, label)]
    want_pairs = want.reshape(2, 3, *field.event_shape)
    torch.testing.assert_close(vmap(one)(*pairs), want_pairs, **close)
    torch.testing.assert_close(vmap(vmap(one))(*pairs), want_pairs, **close)
    moved = vmap(one, in_dims=1, out_dims=1)(*(v.transpose(0, 1) for v in pairs))
    torch.testing.assert_close(moved, want_pairs.transpose(0, 1), **close)
    # What is not mapped is the same for all.
    column = vmap(one, in_dims=(0, 0, None))(pairs[0], pairs[1][..., None], label[:3])
    torch.testing.assert_close(column[0], field(x[:3], t[:3], label=label[:3], guidance=0.5), **close)
    over_t = vmap(one, in_dims=(None, 0, None))(x, t, label)
    torch.testing.assert_close(over_t[2], field(x, t[2], label=label, guidance=0.5), **close)
    over_x = vmap(one, in_dims=(0, None, None))(x, torch.tensor(0.3, dtype=t.dtype), torch.tensor(1))
    torch.testing.assert_close(over_x, field(x, 0.3, label=1, guidance=0.5), **close)


def test_jacobians(field, call):
    x, t = queries(field)
    u = torch.randn_like(x)
    columns = vmap(jacfwd(lambda x, t: call(field, x, t)))(x, t)
    rows = vmap(jacrev(lambda x, t: call(field, x, t)))(x, t)
    torch.testing.assert_close(columns, rows)
    size = max(field._size, 1)
    along = columns.reshape(B, size, size) @ u.reshape(B, size, 1)
    torch.testing.assert_close(along.reshape(x.shape), field.jvp(x, t, u))
    torch.testing.assert_close(jvp(lambda x: call(field, x, t), (x,), (u,))[1], field.jvp(x, t, u))
    torch.testing.assert_close(vjp(lambda x: call(field, x, t), x)[1](u)[0], field.vjp(x, t, u))
    divergence = rows.reshape(B, size, size).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(divergence, field.divergence(x, t))


# Compilation --------------------------------------------------------------------------------------------------


@pytest.fixture
def compiled():
    """`torch.compile` that refuses graph breaks; without the code generator, which needs a compiler of its own."""
    torch._dynamo.reset()
    yield lambda function: torch.compile(function, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()


@pytest.mark.parametrize("call", ["module", "field"])
def test_compile(compiled, call):
    call, field = CALLS[call], field_of()
    layer = torch.nn.Linear(D, D, dtype=torch.float64)
    x, t = queries(field)

    def function(x, t):
        return torch.tanh(call(field, layer(x), t)).sum()

    want = torch.autograd.grad(function(x, t), layer.weight)
    fast = compiled(function)
    assert torch.equal(fast(x, t), function(x, t))
    assert torch.equal(torch.autograd.grad(fast(x, t), layer.weight)[0], want[0])
    for number in (0.2, 0.4):
        assert torch.equal(fast(x[:3], number), function(x[:3], number))
    with torch.no_grad():
        assert torch.equal(fast(x, t), function(x, t))


def test_compile_tells_fields_apart(compiled):
    x, t = queries(field_of())
    fast = compiled(lambda field, x, t: velocity(field, x, t))
    for field in (field_of(), field_of("plain"), field_of()):
        assert torch.equal(fast(field, x, t), field(x, t))


def test_compile_vmap(compiled):
    field = field_of()
    module = VelocityModule(field)
    x, t = queries(field)
    assert torch.equal(compiled(vmap(module))(x, t), module(x, t))


def test_compile_of_other_methods_breaks_the_graph():
    field = field_of()
    x, t = queries(field)
    torch._dynamo.reset()
    fast = torch.compile(lambda x: field.log_density(2 * x, t) + 1, backend="aot_eager")
    assert torch.equal(fast(x), field.log_density(2 * x, t) + 1)


def test_export():
    field = field_of()
    x, t = queries(field)
    exported = torch.export.export(VelocityModule(field), (x, t)).module()
    assert torch.equal(exported(x, t), field(x, t))


# The module ---------------------------------------------------------------------------------------------------


def test_the_module_has_no_state():
    module = VelocityModule(field_of())
    assert not list(module.parameters()) and not list(module.buffers()) and not module.state_dict()
    assert module.load_state_dict({}) and module.to(torch.float16).to("cpu") is module
    assert "VelocityField(30 points" in repr(module)
    x, t = queries(module.field)
    assert module.half()(x, t).dtype == torch.float64
    outer = torch.nn.Sequential(module)
    outer.load_state_dict(outer.state_dict())


def test_copies():
    module = VelocityModule(field_of())
    module.eval()
    x, t = queries(module.field)
    for same in (copy.deepcopy(module), copy.copy(module), copy.deepcopy(torch.nn.Sequential(module))[0]):
        assert same is not module and same.field is module.field and not same.training
        assert torch.equal(same(x, t), module(x, t))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        assert other.field is not module.field and other._number != module._number and not other.training
        assert torch.equal(other(x, t), module(x, t))


def test_fields_live_as_long_as_their_graphs():
    x, t = queries(field_of())
    x.requires_grad_()
    result = velocity(field_of(), x, t).sum()
    gc.collect()
    (gradient,) = torch.autograd.grad(result, x)
    assert torch.equal(gradient, field_of().vjp(x.detach(), t, torch.ones_like(x)))
    del result
    module = VelocityModule(field_of())
    number = module._number
    assert number in adapter._fields
    del module
    gc.collect()
    assert number not in adapter._fields
    with pytest.raises(RuntimeError, match="is gone"):
        torch.ops.fastflow.velocity(x.detach(), t, None, number, 0.0)


def test_threads():
    field = field_of()
    x, t = queries(field)
    want, found = field(x, t), []

    def work():
        leaf = x.clone().requires_grad_()
        result = velocity(field, leaf, t)
        result.sum().backward()
        found.append((result.detach(), leaf.grad))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gradient = field.vjp(x, t, torch.ones_like(x))
    assert len(found) == 4 and all(torch.equal(a, want) and torch.equal(b, gradient) for a, b in found)


def test_errors():
    field = field_of()
    x, _ = queries(field)
    module = VelocityModule(field)
    with pytest.raises(TypeError, match="field is int; accepted is a VelocityField"):
        VelocityModule(3)
    for field in (3, torch.tensor(True), np.zeros(2)):
        with pytest.raises(TypeError, match=r"field is .*; accepted is a VelocityField"):
            velocity(field, torch.zeros(2), 0.3)
    with pytest.raises(TypeError, match="x is ndarray; accepted is a tensor"):
        module(x.numpy(), 0.5)
    with pytest.raises(TypeError, match="dense"):
        module(x.to_sparse(), 0.5)
    with pytest.raises(ValueError, match="x has shape"):
        module(x[:, :2], 0.5)
    with pytest.raises(ValueError, match=r"t is 1\.5"):
        module(x, 1.5)
    with pytest.raises(ValueError, match="label 7 does not occur"):
        module(x, 0.5, label=7)
    with pytest.raises(ValueError, match="without label"):
        module(x, 0.5, guidance=1.0)
    with pytest.raises(ValueError, match="guidance requires grad"):
        module(x, 0.5, label=1, guidance=torch.tensor(1.0, requires_grad=True))
    bare = VelocityModule(field_of("plain"))
    with pytest.raises(ValueError, match="t = 1"):
        bare(x.clone().requires_grad_(), 1.0).sum().backward()


def test_the_readme():
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```py\n(import torch\n.*?)^```$", text, re.DOTALL | re.MULTILINE)
    names = {"field": ff.VelocityField(np.random.default_rng(0).standard_normal((50, 2)), variance=1e-3)}
    exec(compile(code, "README.md", "exec"), names)
    assert names["x"].grad.shape == (8, 2) and names["x"].grad.abs().sum() > 0


@pytest.mark.parametrize("bad", [None, "a", 1j])
@pytest.mark.parametrize("name", ["t", "guidance", "label"])
def test_what_is_no_number_is_named(name, bad):
    data = np.random.default_rng(0).normal(size=(6, 2))
    module = VelocityModule(ff.VelocityField(data, labels=[0, 0, 0, 1, 1, 1]))
    given = {"t": 0.5, "label": 1, "guidance": 0.5, name: bad}
    if name == "label" and bad is None:
        return
    with pytest.raises((TypeError, ValueError), match=rf"\b{name} (is|has|holds) "):
        module(torch.zeros(3, 2), given.pop("t"), **given)
