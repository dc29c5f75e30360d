"""runtime.prepacked: packed linears give what plain ones give, and stand only where they are meant to."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

import foveate as fv
from foveate.runtime import prepacked
from foveate.runtime.prepacked import PackedLinear, prepack
from foveate.runtime.torch_backend import eager, tuned

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
TYPES = [(torch.float32, 1e-5), (torch.bfloat16, 0.02)]


class Mlp(nn.Module):
    """fc2(act(fc1(x))), or with a gate, or with an activation of another kind."""

    def __init__(self, width=64, act=None, gate=False):
        super().__init__()
        self.fc1, self.act, self.fc2, self.gate = nn.Linear(width, 96), act or nn.GELU(), nn.Linear(96, width), gate

    def forward(self, x):
        hidden = self.fc1(x)
        return self.fc2(self.act(hidden) * hidden if self.gate else self.act(hidden))


@pytest.fixture
def everything_gains(monkeypatch):
    monkeypatch.setattr(prepacked, "_faster", lambda *settings: True)


@pytest.fixture
def small_ones_too(monkeypatch, everything_gains):
    monkeypatch.setattr(prepacked, "SMALLEST", 1)


@pytest.mark.parametrize("dtype, tolerance", TYPES)
@pytest.mark.parametrize("activation", [None, "none", "tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_linear_is_the_plain_one_at_every_number_of_rows(bias, activation, dtype, tolerance):
    linear = nn.Linear(48, 80, bias).to(dtype).requires_grad_(False)
    packed = PackedLinear(linear, activation)
    assert torch.equal(packed.weight, linear.weight) and (packed.in_features, packed.out_features) == (48, 80)
    for x in (torch.randn(3, 5, 48), torch.randn(1, 48), torch.randn(700, 48), torch.randn(0, 48), torch.randn(5, 3, 48).transpose(0, 1), torch.randn(9, 2, 48)[:, 0]):
        expected = linear(x.to(dtype))
        expected = expected if activation is None else F.gelu(expected, approximate=activation)
        torch.testing.assert_close(packed(x.to(dtype)), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", TYPES)
@pytest.mark.parametrize("act", [nn.GELU(), nn.GELU("tanh")], ids=["exact", "tanh"])
def test_an_mlp_takes_its_gelu_along(everything_gains, act, dtype, tolerance):
    mlp, x = Mlp(act=act).to(dtype).eval(), torch.randn(7, 64, dtype=dtype)
    expected = mlp(x)
    assert prepack(mlp) == 2
    assert type(mlp.fc1) is type(mlp.fc2) is PackedLinear and type(mlp.act) is nn.Identity and mlp.fc1.activation == act.approximate
    torch.testing.assert_close(mlp(x), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("mlp", [Mlp(gate=True), Mlp(act=nn.SiLU())], ids=["gate", "silu"])
def test_what_is_no_gelu_behind_one_linear_stays(everything_gains, mlp):
    mlp.eval()
    x, act = torch.randn(7, 64), mlp.act
    expected = mlp(x)
    assert prepack(mlp) == 2 and mlp.act is act and mlp.fc1.activation is None
    torch.testing.assert_close(mlp(x), expected, atol=1e-5, rtol=1e-5)


def test_what_is_left_alone(everything_gains):
    class Own(nn.Linear):
        pass

    hooked = nn.Linear(64, 64)
    hooked.register_forward_hook(lambda *_: None)
    model = nn.Sequential(Own(64, 64), hooked, nn.Linear(8, 8), nn.Linear(64, 64).double(), nn.Linear(64, 64, device="meta"))
    assert prepack(model) == 0 and not any(isinstance(m, PackedLinear) for m in model)


def test_one_linear_in_two_places_is_packed_once(everything_gains):
    shared = nn.Linear(64, 64)
    model = nn.Sequential(shared, nn.Sequential(shared, nn.ReLU()))
    assert prepack(model) == 1 and model[0] is model[1][0] and isinstance(model[0], PackedLinear)


def test_linears_that_do_not_gain_or_do_not_run_stay(monkeypatch):
    monkeypatch.setattr(prepacked, "_faster", prepacked._faster.__wrapped__)
    monkeypatch.setattr(prepacked, "fastest", lambda calls: "plain")
    assert prepack(Mlp().eval()) == 0
    monkeypatch.setattr(prepacked, "fastest", lambda calls: "packed")
    assert prepack(Mlp().eval()) == 2

    def missing(linear, activation=None):
        raise RuntimeError("no such kernel here")

    monkeypatch.setattr(prepacked, "PackedLinear", missing)
    assert prepack(Mlp().eval()) == 0


@pytest.mark.parametrize("key", ["deit", "eva02", "lvvit", "swin", "siglip", "distilled", "parallel", "differential"])
def test_models_of_all_kinds_answer_as_before(small_ones_too, key):
    model = fv.adapt(tiny.model(key), fv.Plan([])).eval()
    images = tiny.images(key)
    with torch.inference_mode():
        expected = model(images)
        assert prepack(model) > 4
        torch.testing.assert_close(model(images), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("select", ["topk", "argmax"])
def test_a_tuned_engine_answers_as_the_eager_one(small_ones_too, monkeypatch, tmp_path, select):
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path))
    model = tiny.adapted(fv.Plan([fv.SPViT(after=(1, 3), keep=(0.7, 0.4), select=select)])).eval()
    names = list(model.state_dict())
    images = tiny.images(count=6)
    for precision, tolerance in (("fp32", 2e-5), ("bf16", 0.2)):
        torch.testing.assert_close(tuned(model, precision)(images), eager(model, precision)(images), atol=tolerance, rtol=tolerance)
    assert list(model.state_dict()) == names and not any(isinstance(m, PackedLinear) for m in model.modules())
