"""A model comes back from an attack exactly as it went in."""

import pytest
import torch
from torch import nn

import advtrain as at
from advtrain.modes import evaluating


def network() -> nn.Sequential:
    """A net in a mixed state: training, but its first BatchNorm frozen by its owner, and one parameter frozen."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
        nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip
    net(torch.rand(2, 1, 8, 8))
    net[1].eval()
    net[0].bias.requires_grad_(False)
    return net


def state(net: nn.Module) -> list:
    return [(m.training, getattr(m, "track_running_stats", None)) for m in net.modules()] + [
        p.requires_grad for p in net.parameters()
    ]


@pytest.mark.parametrize("bn", ["eval", "train", "batch"])
def test_every_flag_comes_back_even_after_an_exception(bn):
    net = network()
    before = state(net)
    with pytest.raises(ZeroDivisionError), at.attacking(net, bn):
        assert not any(p.requires_grad for p in net.parameters())
        assert net[1].training is False  # what its owner froze stays frozen
        raise ZeroDivisionError
    assert state(net) == before


def test_eval_uses_running_statistics_and_leaves_them_alone():
    net = network()
    buffers = [b.clone() for b in net.buffers()]
    with at.attacking(net, "eval"):
        x = torch.rand(4, 1, 8, 8)
        assert torch.allclose(net(x)[:1], net(x[:1]), atol=1e-6)  # an image's output does not depend on its batch
    assert all(torch.equal(a, b) for a, b in zip(buffers, net.buffers(), strict=True))


def test_train_updates_running_statistics_and_batch_does_not():
    for bn, moved in (("train", True), ("batch", False)):
        net = network()
        before = net[5].running_mean.clone()
        count = int(net[5].num_batches_tracked)
        with at.attacking(net, bn):
            x = torch.rand(4, 1, 8, 8)
            net[3].eval()  # without dropout, to compare outputs
            assert not torch.allclose(net(x)[:1], net(x[:2])[:1], atol=1e-6)  # batch statistics couple the images
        assert torch.equal(before, net[5].running_mean) is not moved
        assert int(net[5].num_batches_tracked) == count + 2 * moved


def test_evaluating_restores_modes_and_needs_no_gradient():
    net = network()
    before = state(net)
    with evaluating(net):
        assert not net(torch.rand(2, 1, 8, 8)).requires_grad
    assert state(net) == before


def test_an_unknown_mode_is_refused():
    with (
        pytest.raises(at.errors.ArgumentError, match="bn='evaluate' is not one of eval, train, batch"),
        at.attacking(network(), "evaluate"),
    ):
        pass


def test_channels_last_lends_the_weights_another_layout_and_takes_it_back():
    from advtrain.modes import channels_last

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).double()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    before, places = net(x), [parameter.data_ptr() for parameter in net.parameters()]
    with pytest.raises(KeyError), channels_last(net) as layout:
        assert layout == torch.channels_last and net[0].weight.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(net(x.contiguous(memory_format=layout)), before, rtol=1e-12, atol=1e-12)
        raise KeyError
    assert [parameter.data_ptr() for parameter in net.parameters()] == places and net[0].weight.is_contiguous()
    with channels_last(nn.Linear(3, 2)) as layout:
        assert layout == torch.contiguous_format
