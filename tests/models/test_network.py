from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.utils.flop_counter import FlopCounterMode

from paramorph import CONFIGS, NetworkConfig, ParaMorph
from paramorph.config import ConfigError, config_from_dict, config_named
from paramorph.reference import reference_name
from paramorph.warp import compose, integrate, warp
from paramorph.windows import prepare_tables, window_layout

from .conftest import make_network
from .plain_transcription import PlainTranscription

CPU = torch.device("cpu")


def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in ParaMorph(CONFIGS[name]).parameters())


def flops(name: str, shape: tuple[int, int, int]) -> int:
    with torch.device("meta"):
        network = ParaMorph(CONFIGS[name]).eval()
        volume = torch.empty(1, 1, *shape)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(volume, volume)
    return counter.get_total_flops()


def test_paper_size_has_the_live_parameters_of_the_reference():
    assert round(parameters("paramorph") / 1e6, 2) == 86.93  # network.md, "Sizes"


def test_small_is_a_ninth_of_the_parameters_and_at_most_an_eighth_of_the_arithmetic():
    assert 8.5 < parameters("paramorph") / parameters("paramorph-small") < 9.5
    paper, small = (flops(name, (160, 160, 96)) for name in ("paramorph", "paramorph-small"))
    assert paper / 1e12 == pytest.approx(1.015, rel=0.02)  # network.md counts the same convention
    assert small <= paper / 8


def test_displacement_has_three_channels_on_the_input_grid(tiny):
    moving, fixed = torch.rand(2, 2, 1, 32, 64, 96)
    with torch.inference_mode():
        assert tiny(moving, fixed).shape == (2, 3, 32, 64, 96)


def test_new_network_starts_near_the_identity():
    torch.manual_seed(0)
    network = ParaMorph(CONFIGS["paramorph-tiny"]).eval()
    with torch.inference_mode():
        assert network(*torch.rand(2, 1, 1, 32, 32, 32)).abs().max() < 1e-3


@pytest.mark.parametrize("shape", [(32, 32, 33), (31, 32, 32), (32, 32, 0)])
def test_sizes_that_are_no_multiple_of_32_are_refused(tiny, shape):
    with pytest.raises(ConfigError, match=r"expected three sizes that are multiples of 32, got"):
        tiny(torch.zeros(1, 1, *shape), torch.zeros(1, 1, *shape))


def test_both_ways_equals_two_calls(tiny):
    moving, fixed = torch.rand(2, 2, 1, 64, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        to_moving, to_fixed = tiny.both_ways(moving, fixed)
        torch.testing.assert_close(to_moving, tiny(moving, fixed), atol=1e-5, rtol=0)
        torch.testing.assert_close(to_fixed, tiny(fixed, moving), atol=1e-5, rtol=0)
    assert (to_moving - to_fixed).abs().max() > 0.01


def test_every_parameter_takes_part():
    """No dead parameters: each one changes the displacement."""
    network = make_network(window=(3, 2, 2))
    network(*torch.rand(2, 1, 1, 64, 64, 32)).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if not p.grad.abs().max() > 0]
    assert dead == []


def test_fusion_variants_differ():
    moving, fixed = torch.rand(2, 1, 1, 32, 32, 32)
    with torch.inference_mode():
        cross, post = (make_network(fusion=f)(moving, fixed) for f in ("cross", "post"))
    assert (cross - post).abs().max() > 0.01


@pytest.mark.parametrize("fusion", ["cross", "post"])
@pytest.mark.parametrize("window", [(2, 3, 4), (5, 6, 5), (4, 4, 4)])
def test_equals_a_plain_transcription_where_the_reference_pads_wrongly(fusion, window):
    """Windows that pad each axis differently, and that are larger than the feature map."""
    network = make_network(
        depths=(2, 2, 4, 2), window=window, fusion=fusion, window_return="reference"
    )
    state = {reference_name(name): tensor for name, tensor in network.state_dict().items()}
    plain = PlainTranscription(state, window, fusion)
    moving, fixed = torch.rand(2, 1, 1, 64, 96, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        ours, theirs = network(moving, fixed), plain(moving, fixed)
    assert theirs.abs().max() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shifted", [False, True])
def test_exact_windows_return_every_token_to_its_place(shifted):
    config = NetworkConfig(window=(2, 3, 4))
    layout = window_layout((5, 6, 7), config, shifted, CPU)
    tokens = torch.rand(2, 5 * 6 * 7, 3)
    assert torch.equal(layout.from_windows(layout.to_windows(tokens)), tokens)


def test_shifted_windows_hold_rolled_neighbours():
    config = NetworkConfig(window=(2, 2, 2))
    layout = window_layout((4, 4, 4), config, True, CPU)
    tokens = torch.arange(64.0).reshape(1, 64, 1)
    first = layout.to_windows(tokens)[0, :8, 0]
    expected = torch.arange(64.0).reshape(4, 4, 4)[1:3, 1:3, 1:3].flatten()  # rolled by one
    assert torch.equal(first, expected)
    assert layout.mask[0].abs().max() == 0  # one region
    assert layout.mask[-1].min() == -100  # the last window joins opposite ends


def test_tables_are_computed_once_per_size():
    config = NetworkConfig(window=(2, 3, 2))
    prepare_tables((32, 64, 32), config, CPU)
    misses = window_layout.cache_info().misses
    prepare_tables((32, 64, 32), config, CPU)
    assert window_layout.cache_info().misses == misses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "sum"}, "expected fusion cross or post, got sum"),
        ({"sampling": "old"}, "expected sampling exact or reference, got old"),
        ({"embed_dim": 30}, "expected 30 channels to be a multiple of 4"),
        ({"window": (5, 1, 3)}, "expected a window of at least 2 tokens per axis"),
    ],
)
def test_impossible_configs_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        NetworkConfig(**options)


def test_config_survives_json():
    config = CONFIGS["paramorph-small"].with_options(fusion="post", window=(3, 4, 3))
    assert config_from_dict(config.as_dict()) == config
    with pytest.raises(ConfigError, match=r"expected fields of this version, got \['colour'\]"):
        config_from_dict({**config.as_dict(), "colour": 1})
    with pytest.raises(ConfigError, match=r"expected one of paramorph, .* got huge"):
        config_named("huge")


def test_a_second_pass_registers_what_the_first_has_warped(tiny):
    moving, fixed = torch.rand(2, 1, 1, 32, 64, 96)
    twice = make_network(window=(2, 2, 3), passes=2)
    with torch.inference_mode():
        first = tiny(moving, fixed)
        second = tiny(warp(moving, first), fixed)
        torch.testing.assert_close(
            twice(moving, fixed), compose(first, second), atol=1e-4, rtol=1e-4
        )
        assert (compose(first, second) - first).abs().max() > 0.1


def test_a_velocity_is_integrated_both_ways(tiny):
    moving, fixed = torch.rand(2, 1, 1, 32, 64, 96)
    diffeomorphic = make_network(window=(2, 2, 3), integration_steps=6)
    with torch.inference_mode():
        velocity = tiny(moving, fixed)
        displacement = diffeomorphic(moving, fixed)
        to_moving, to_fixed = diffeomorphic.both_ways(moving, fixed)
    torch.testing.assert_close(displacement, integrate(velocity, 6), atol=1e-4, rtol=1e-4)
    assert (displacement - velocity).abs().max() > 0.1
    torch.testing.assert_close(to_moving, displacement, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(to_fixed, diffeomorphic(fixed, moving), atol=1e-4, rtol=1e-4)


def test_a_velocity_is_integrated_in_every_pass():
    moving, fixed = torch.rand(2, 1, 1, 32, 64, 96)
    one, two = (make_network(window=(2, 2, 3), integration_steps=6, passes=n) for n in (1, 2))
    with torch.inference_mode():
        first = one(moving, fixed)
        further = one(warp(moving, first), fixed)
        found = two(moving, fixed)
    torch.testing.assert_close(found, compose(first, further), atol=1e-4, rtol=1e-4)


def test_the_head_s_field_can_be_smoothed(tiny):
    moving, fixed = torch.rand(2, 1, 1, 32, 64, 96)
    smoothing = make_network(window=(2, 2, 3), smoothing=1.5)
    with torch.inference_mode():
        rough = tiny(moving, fixed)[0].numpy()
        found = smoothing(moving, fixed)[0]
        to_moving, _ = smoothing.both_ways(moving, fixed)
    wanted = [gaussian_filter(u, 1.5, mode="constant", truncate=8.0) for u in rough]
    torch.testing.assert_close(found, torch.from_numpy(np.stack(wanted)), atol=1e-4, rtol=1e-4)
    assert np.abs(np.stack(wanted) - rough).max() > 0.1
    torch.testing.assert_close(to_moving[0], found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{"passes": 2}, {"integration_steps": 7}])
def test_fields_are_not_composed_under_the_reference_sampling(options):
    with pytest.raises(ConfigError, match="expected sampling exact where fields are composed"):
        NetworkConfig(sampling="reference", **options)


@pytest.mark.parametrize("options", [{"passes": 0}, {"integration_steps": -1}, {"smoothing": -0.5}])
def test_impossible_numbers_of_passes_are_refused(options):
    with pytest.raises(ConfigError, match="expected at least one pass"):
        NetworkConfig(**options)


def test_recomputed_activations_give_the_same_gradients(tiny):
    moving, fixed = torch.rand(2, 1, 1, 32, 64, 96)
    gradients, kept = [], []
    for recompute in (False, True):
        network = make_network(window=(2, 2, 3), drop_path=0.2).train()
        if recompute:
            network.recompute_activations()
        torch.manual_seed(1)
        numbers = 0

        def count(tensor):
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = sum(u.square().mean() for u in network.both_ways(moving, fixed))
        kept.append(numbers)
        loss.backward()
        gradients.append([p.grad for p in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
    assert kept[1] < kept[0] / 2


def test_one_voxel_at_the_coarsest_scale_is_too_few_for_several_passes():
    volume = torch.zeros(1, 1, 32, 32, 32)
    with pytest.raises(ConfigError, match="expected an axis longer than 32"):
        make_network(passes=2)(volume, volume)
