"""A class of one's own: registered in a line, its heads where it says, refused where it is wrong."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from coeff_tuning import CoeffConfig, register_attention
from coeff_tuning.errors import AdapterNotAppliedError, UnsupportedModelError
from tests import tiny


class Own(nn.Module):
    """Heads last but one, batch and positions before: (B, L, H, E) -> SDPA on (H, B, L, E)."""

    def __init__(self, calls: int = 1) -> None:
        super().__init__()
        self.n_heads, self.calls = 3, calls

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(2, (self.n_heads, -1)).permute(2, 0, 1, 3)
        for _ in range(self.calls):
            heads = F.scaled_dot_product_attention(heads, heads, heads)
        return heads.permute(1, 2, 0, 3).flatten(2)


class Heir(Own):
    """Inherits its forward."""


class Changed(Own):
    """Has another forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


@pytest.mark.parametrize("cls", [Own, Heir])
def test_heads_in_front(cls: type[Own]) -> None:
    register_attention(Own, num_heads="n_heads", head_axis=0)
    model = tiny.randomise(get_peft_model(nn.Sequential(cls()), CoeffConfig()).eval())
    x = torch.randn(2, 5, 21)
    coeff = model.base_model.model[0].coefficients.coeff()
    q = x.unflatten(2, (3, 7)).transpose(1, 2)
    maps = (q @ q.mT / 7**0.5).softmax(-1)
    expected = (torch.einsum("hi,bils->bhls", coeff, maps) @ q).transpose(1, 2).flatten(2)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


def test_other_number_of_calls_raises() -> None:
    register_attention(Own, num_heads="n_heads", head_axis=0)
    model = get_peft_model(nn.Sequential(Own(calls=2)), CoeffConfig())
    with pytest.raises(AdapterNotAppliedError, match=r"Own must call .* 1 time\(s\).* it did 2 time\(s\)"):
        model(torch.randn(2, 5, 21))


def test_what_cannot_be_registered_or_served() -> None:
    register_attention(Own, num_heads="n_heads", head_axis=0)
    with pytest.raises(UnsupportedModelError, match="register_attention"):
        get_peft_model(nn.Sequential(Changed()), CoeffConfig())
    with pytest.raises(TypeError, match="Heir must have a forward of its own"):
        register_attention(Heir)
    with pytest.raises(TypeError, match="must be a class of torch modules; got 3"):
        register_attention(3)  # type: ignore[arg-type]
    register_attention(Own, num_heads="heads")
    with pytest.raises(UnsupportedModelError, match="attribute 'heads'; got None"):
        get_peft_model(nn.Sequential(Own()), CoeffConfig())


class Switched(nn.Module):
    """Its switch between fused and other attention belongs to the class."""

    num_heads, fused_attn = 3, False

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        attend = F.scaled_dot_product_attention if self.fused_attn else lambda q, k, v: v
        return attend(heads, heads, heads).transpose(1, 2).flatten(2)


def test_switch_of_the_class_is_on_only_while_coefficients_are() -> None:
    register_attention(Switched)
    model = tiny.randomise(get_peft_model(nn.Sequential(Switched()), CoeffConfig()).eval())
    x = torch.randn(2, 5, 21)
    assert not torch.equal(model(x), x)
    with model.disable_adapter():
        assert torch.equal(model(x), x)
    assert model.unload()[0].fused_attn is False
    assert Switched.fused_attn is False


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_unload_under_something_put_on_top_raises() -> None:
    x = torch.randn(2, 5, 24)
    host = nn.MultiheadAttention(24, 3, batch_first=True)
    model = get_peft_model(nn.Sequential(host), CoeffConfig())
    parametrize.register_parametrization(host, "in_proj_weight", Doubled())
    with pytest.raises(UnsupportedModelError, match="its class is now ParametrizedMultiheadAttention"):
        model.unload()
    parametrize.remove_parametrizations(host, "in_proj_weight")
    host.forward = host.forward  # as accelerate's hooks do
    with pytest.raises(UnsupportedModelError, match="its instance carries a forward"):
        model.unload()
    del host.forward
    assert type(model.unload()[0]) is nn.MultiheadAttention
    assert host(x, x, x)[0].shape == x.shape


@pytest.mark.parametrize("call", ["unload", "merge_and_unload"])
def test_unload_that_one_module_refuses_leaves_the_others_bound(call: str) -> None:
    hosts = [nn.MultiheadAttention(24, 3, batch_first=True) for _ in range(2)]
    model = get_peft_model(nn.ModuleList(hosts), CoeffConfig())
    for host in hosts:
        host.coefficients.coeff_delta["default"].data = torch.diag(torch.tensor([0.5, -2.0, 3.0]))  # merges exactly
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parametrize.register_parametrization(hosts[1], "in_proj_bias", Doubled())
    with pytest.raises(UnsupportedModelError, match="its class is now ParametrizedMultiheadAttention"):
        getattr(model, call)()
    parametrize.remove_parametrizations(hosts[1], "in_proj_bias", leave_parametrized=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [type(host).__mro__[1].__name__ for host in hosts] == ["MixedMultiheadAttention"] * 2
    assert all(type(host) is nn.MultiheadAttention for host in getattr(model, call)())


def test_a_forward_put_on_a_bound_module_must_reach_the_coefficients() -> None:
    x = torch.randn(2, 5, 21)
    register_attention(Switched)
    host = Switched()
    model = tiny.randomise(get_peft_model(nn.Sequential(host), CoeffConfig()).eval())
    on = model(x)
    bound = host.forward
    host.forward = lambda x: bound(x)  # as accelerate's hooks do
    assert torch.equal(model(x), on)
    host.forward = lambda x: x
    with pytest.raises(AdapterNotAppliedError, match="Switched must run the forward that coefficients gave it"):
        model(x)
    with model.disable_adapter():
        assert torch.equal(model(x), x)
    del host.forward
    assert torch.equal(model(x), on)


def test_one_module_that_cannot_be_bound_leaves_the_others_alone() -> None:
    hosts = [nn.MultiheadAttention(24, 3) for _ in range(2)]
    hosts[1].forward = hosts[1].forward
    with pytest.raises(UnsupportedModelError, match="MultiheadAttention must run the forward of its class"):
        get_peft_model(nn.Sequential(*hosts), CoeffConfig())
    assert [type(host) for host in hosts] == [nn.MultiheadAttention] * 2
    assert not any(hasattr(host, "coefficients") for host in hosts)
