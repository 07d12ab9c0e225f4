from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from paramorph import CONFIGS, ParaMorph
from paramorph.checkpoint import CheckpointError, WeightsInfo, load_weights, save_weights
from paramorph.config import ConfigError
from paramorph.reference import convert_reference_state, read_reference_checkpoint, reference_name
from paramorph.windows import relative_position_index

from .conftest import make_network

WINDOW = (2, 2, 3)
DEAD = [
    "fixed_lwsa.transformer.norm0.weight",
    "c1.0.weight",
    "c2.0.weight",
    "moving_lwsa.c1.0.weight",
    "moving_lwsa.c2.0.weight",
    "moving_lwsa.Conv_1x1.bias",
    "moving_lwsa.fusion0.weight",
    "lwca3.transformer.norm2.bias",
    "up1.conv3.0.weight",
    "up4.conv1.0.weight",
]


def reference_state(network: ParaMorph) -> dict[str, torch.Tensor]:
    state = {reference_name(n): t.clone() for n, t in network.state_dict().items()}
    state |= {name: torch.ones(3) for name in DEAD}
    name = "lwca1.transformer.layers.0.blocks.1.attn.relative_position_index"
    state[name] = relative_position_index(WINDOW)
    return state


def test_weights_survive_a_round_trip(tiny, tmp_path):
    info = WeightsInfo(
        "tiny", tiny.config, (32, 64, 96), (1.0, 1.5, 2.0), "LPS", 1.0, 99.0, {"a": 1}
    )
    save_weights(tmp_path / "w.safetensors", tiny.state_dict(), info)
    network, loaded = load_weights(tmp_path / "w.safetensors")
    assert loaded == info
    moving, fixed = torch.rand(2, 1, 1, 32, 32, 32)
    with torch.inference_mode():
        assert torch.equal(network(moving, fixed), tiny(moving, fixed))
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_half_precision_weights_load_as_float32(tiny, tmp_path):
    info = WeightsInfo("tiny", tiny.config, (32, 32, 32))
    save_weights(tmp_path / "w.safetensors", tiny.state_dict(), info, torch.float16)
    network, _ = load_weights(tmp_path / "w.safetensors")
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_int8_weights_are_the_nearest_multiples_of_a_scale_per_row(tiny, tmp_path):
    path, state = tmp_path / "w.safetensors", tiny.state_dict()
    save_weights(path, state, WeightsInfo("tiny", tiny.config, (32, 32, 32)), torch.int8)
    with safe_open(path, framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    loaded = load_weights(path)[0].state_dict()
    integers = [name for name, t in stored.items() if t.dtype == torch.int8]
    assert set(integers) == {n for n, t in state.items() if t.ndim > 1 and t.numel() >= 4096}
    assert len(integers) > 20
    for name in integers:
        scales = stored[f"{name}.int8_scale"]
        rows, kept = state[name].flatten(1), loaded[name].flatten(1)
        assert ((rows - kept).abs() <= scales[:, None] * 0.5001).all()
        torch.testing.assert_close(scales, rows.abs().amax(1) / 127)


def test_weights_are_quantized_by_a_command(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "models")
    import quantize

    info = WeightsInfo("tiny", tiny.config, (32, 32, 32))
    save_weights(tmp_path / "w.safetensors", tiny.state_dict(), info, torch.float16)
    command = [str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "small.safetensors")]
    assert quantize.main(command) == 0
    assert "MB" in capsys.readouterr().out
    network, kept = load_weights(tmp_path / "small.safetensors")
    assert kept == info
    halves = load_weights(tmp_path / "w.safetensors")[0].state_dict()
    save_weights(tmp_path / "again.safetensors", halves, info, torch.int8)
    for name, tensor in load_weights(tmp_path / "again.safetensors")[0].state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)
    assert quantize.main(command) == 1
    assert "expected a new file" in capsys.readouterr().err
    assert quantize.main([__file__, "--out", str(tmp_path / "other.safetensors")]) == 1
    assert not (tmp_path / "other.safetensors").exists()


def test_a_scale_without_its_integers_is_refused(tiny, tmp_path):
    state = {**tiny.state_dict(), "of_nothing.int8_scale": torch.ones(3)}
    save_weights(tmp_path / "w.safetensors", state, WeightsInfo("tiny", tiny.config, (32, 32, 32)))
    with pytest.raises(CheckpointError, match=r"unknown of_nothing\.int8_scale"):
        load_weights(tmp_path / "w.safetensors")


def test_weights_that_are_not_ours_are_refused(tiny, tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(CheckpointError, match="expected a file of weights, found none"):
        load_weights(path)
    path.write_bytes(b"not a safetensors file at all")
    with pytest.raises(CheckpointError, match="expected a safetensors file, got something else"):
        load_weights(path)
    save_file(tiny.state_dict(), path)
    with pytest.raises(CheckpointError, match="without its 'paramorph' metadata"):
        load_weights(path)
    state = tiny.state_dict()
    state.pop("decoder.head.bias")
    save_weights(path, state, WeightsInfo("tiny", tiny.config, (32, 32, 32)))
    with pytest.raises(CheckpointError, match=r"got missing decoder\.head\.bias"):
        load_weights(path)


def test_info_refuses_an_impossible_shape(tiny):
    with pytest.raises(ConfigError, match=r"multiples of 32, got \(160, 160, 95\)"):
        WeightsInfo("tiny", tiny.config, (160, 160, 95))


def test_every_parameter_has_a_reference_name_of_its_own():
    with torch.device("meta"):
        names = list(ParaMorph(CONFIGS["paramorph"]).state_dict())
    assert len({reference_name(name) for name in names}) == len(names)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_reference_checkpoints_are_read_with_or_without_wrapping(tiny, tmp_path, prefix, wrapped):
    state = {prefix + name: t for name, t in reference_state(tiny).items()}
    path = tmp_path / "reference.pth.tar"
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {}} if wrapped else state, path)
    converted = convert_reference_state(read_reference_checkpoint(path), tiny.config)
    expected = tiny.state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


def altered(state: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    if how == "unknown":
        state["up5.conv1.0.weight"] = torch.ones(2)
    elif how == "almost dead":
        state["up3.conv4.0.weight"] = torch.ones(2)
    elif how == "missing":
        del state["lwca2.transformer.norm0.weight"]
    elif how == "shape":
        state["reg_head.0.weight"] = torch.ones(3, 4, 3, 3, 3)
    elif how == "window":
        name = "lwca1.transformer.layers.0.blocks.1.attn.relative_position_index"
        state[name] = relative_position_index((3, 2, 2))
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unknown", r"unknown up5\.conv1\.0\.weight"),
        ("almost dead", r"unknown up3\.conv4\.0\.weight"),
        ("missing", r"missing lwca2\.transformer\.norm0\.weight"),
        (
            "shape",
            r"expected reg_head\.0\.weight of shape \(3, 2, 3, 3, 3\), got \(3, 4, 3, 3, 3\)",
        ),
        ("window", r"relative_position_index of window \(2, 2, 3\), got that of another window"),
    ],
)
def test_anything_but_the_documented_entries_is_refused_by_name(tiny, how, message):
    with pytest.raises(CheckpointError, match=message):
        convert_reference_state(altered(reference_state(tiny), how), tiny.config)


class Payload:
    def __reduce__(self):
        return (print, ("code ran while loading",))


def test_checkpoints_with_code_in_them_are_not_run(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": Payload()}, path)
    with pytest.raises(CheckpointError, match="could not read it safely"):
        read_reference_checkpoint(path)
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(CheckpointError, match="could not read it safely"):
        read_reference_checkpoint(path)
    assert "code ran" not in capsys.readouterr().out
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="expected a state_dict or"):
        read_reference_checkpoint(path)


def test_import_command_records_what_a_checkpoint_does_not_tell(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "models")
    import import_checkpoint

    monkeypatch.setitem(CONFIGS, "paramorph", CONFIGS["paramorph-tiny"])
    network = make_network(window=WINDOW, fusion="post")
    source, out = tmp_path / "reference.pth.tar", tmp_path / "weights.safetensors"
    torch.save({"state_dict": reference_state(network)}, source)
    options = [str(source), "--out", str(out), "--window", "2", "2", "3", "--fusion", "post"]
    assert import_checkpoint.main([*options, "--shape", "64", "64", "96"]) == 0
    loaded, info = load_weights(out)
    assert (info.shape, info.network.fusion, info.network.window) == ((64, 64, 96), "post", WINDOW)
    assert (info.network.sampling, info.network.window_return) == ("reference", "reference")
    assert torch.equal(loaded.decoder.head.weight, network.decoder.head.weight)

    assert import_checkpoint.main(options) == 1
    assert "pass --force to replace it" in capsys.readouterr().err
    out.unlink()
    assert import_checkpoint.main([*options[:4], "3", "2", "2"]) == 1
    assert not out.exists()


def test_import_command_fails_with_one_sentence(tmp_path):
    script = Path(__file__).parents[2] / "models" / "import_checkpoint.py"
    command = [sys.executable, script, tmp_path / "none.pth", "--out", tmp_path / "w.safetensors"]
    run = subprocess.run(
        [*map(str, command), "--window", "5", "5", "3"],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "expected a checkpoint, found none" in run.stderr
