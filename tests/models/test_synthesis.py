"""Images painted from label maps: what each option does, and training on them by the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from paramorph.augmentation import Augmentation
from paramorph.data import DataError
from paramorph.data.label_maps import LabelMapConfig, load_label_maps
from paramorph.examples import Painted, numbered
from paramorph.options import OptionError
from paramorph.synthesis import Painter, Synthesis
from paramorph_rt.bundle import GridSpec

SHAPE = (32, 40, 32)
LABELS = [0, 2, 3, 41, 500]  # white left, grey left, white right, and a skull about them
PLAIN = Synthesis(
    tissue_probability=0.0,
    dark_probability=0.0,
    texture=0.0,
    lumps=0.0,
    strip_probability=0.0,
    blur=0.0,
    thick_probability=0.0,
)
STILL = Augmentation(*(0.0,) * 7, common_elastic_vox=0.0, gamma=0.0, bias=0.0, noise=0.0)


def head() -> torch.Tensor:
    """Numbers of `LABELS`: a box in a box in a box, split left and right."""
    numbers = torch.zeros(1, 1, *SHAPE, dtype=torch.long)
    numbers[..., 3:29, 3:37, 3:29] = 4
    numbers[..., 8:24, 8:32, 8:24] = 2
    numbers[..., 10:16, 12:28, 10:22] = 1
    numbers[..., 16:22, 12:28, 10:22] = 3
    return numbers


def painted(seed: int = 0, labels=LABELS, **options) -> tuple[torch.Tensor, torch.Tensor]:
    painter = Painter(replace(PLAIN, **options), labels, [0, 2, 3, 41])
    return painter(head(), torch.Generator().manual_seed(seed))


def intensities(image: torch.Tensor) -> list[torch.Tensor]:
    return [image[head() == number].unique() for number in range(len(LABELS))]


def test_each_label_has_one_intensity_of_its_own():
    image, shown = painted()
    each = intensities(image)
    assert [len(values) for values in each] == [1] * 5
    assert len(torch.cat(each).unique()) == 5
    assert image.amin() >= 0
    assert image.amax() == 1
    assert shown.all()


def test_equal_seeds_give_equal_images_and_others_others():
    all_on = {"texture": 0.1, "lumps": 0.1, "blur": 1.0, "strip_probability": 0.5}
    assert torch.equal(painted(3, **all_on)[0], painted(3, **all_on)[0])
    assert not torch.equal(painted(3, **all_on)[0], painted(4, **all_on)[0])


def test_alike_labels_share_their_intensity():
    left, right = (intensities(painted(alike=((2, 41),))[0])[n] for n in (1, 3))
    assert torch.equal(left, right)


def test_tissues_lie_near_one_another():
    apart = []
    for seed in range(20):
        each = intensities(
            painted(seed, tissues=((2, 3, 41),), tissue_probability=1.0, tissue_spread=0.01)[0]
        )
        apart.append(abs(each[1] - each[2]).item())
    assert np.median(apart) < 0.05


def test_stripping_leaves_the_learned_labels_alone():
    inside = (head() > 0) & (head() < 4)
    rims = set()
    for seed in range(12):
        image, shown = painted(seed, strip_probability=1.0)
        assert shown[inside].all()
        assert not image[~shown].any()
        rims.add(int(shown.sum()))
    assert int(inside.sum()) in rims
    assert len(rims) > 1


def test_texture_blur_and_thick_slices():
    rough = painted(texture=0.1)[0][head() == 2]
    assert rough.std() > 0.005
    sharp, blurred = painted()[0], painted(blur=3.0)[0]
    assert blurred.diff(dim=-1).abs().amax() < sharp.diff(dim=-1).abs().amax()
    thick = painted(thick_probability=1.0, thickness=4.0)[0]
    assert not torch.equal(thick, sharp)


def test_regions_fill_the_background():
    background = painted(shapes=5)[0][head() == 0].unique()
    assert 2 <= len(background) <= 5


def test_merged_labels_share_a_number():
    assert numbered([0, 1, 2, 7], [(1, 2)]) == {0: 0, 1: 1, 2: 1, 7: 2}
    assert numbered([0, 1], [(1, 2)]) == {0: 0, 1: 1, 2: 1}


def test_a_label_in_two_groups_is_refused():
    with pytest.raises(OptionError, match="alike: expected each label in one group, got 2"):
        painted(alike=((2, 41), (2, 3)))
    with pytest.raises(OptionError, match="blur: expected at least 0"):
        Synthesis(blur=-1.0)
    with pytest.raises(OptionError, match="strip_probability: expected 0 to 1"):
        Synthesis(strip_probability=2.0)


def write_map(path: Path, shift: int = 0) -> None:
    """The head at 1 mm in LPS, off the middle of a larger volume."""
    data = np.zeros((50, 60, 50), np.int16)
    values = np.array(LABELS, np.int16)[head()[0, 0].numpy()]
    data[4 + shift : 36 + shift, 6:46, 8:40] = values
    nib.save(nib.Nifti1Image(data, np.diag([-1.0, -1.0, 1.0, 1.0])), path)


def test_maps_are_centred_on_what_is_learned(tmp_path):
    for n in range(3):
        write_map(tmp_path / f"map{n}.nii.gz", shift=n)
    grid = GridSpec(SHAPE, (1.0, 1.0, 1.0), "RAS")
    config = LabelMapConfig(str(tmp_path), validation=1)
    training, validation = load_label_maps(config, grid, [2, 3, 41])
    assert [m.name for m in (*training, *validation)] == ["map0", "map1", "map2"]
    sources = [
        Painted(
            m, LABELS, numbered([0, 2, 3, 41]), Painter(PLAIN, LABELS, [2, 3, 41]), STILL, SHAPE
        )
        for m in training
    ]
    first, second = (source.unchanged().numbers for source in sources)
    # What moves in its file stays in the middle of the grid.
    assert (first != second).float().mean() < 0.01
    # The head lies in the file's own axes, from the right and from the front.
    theirs = head().flip((2, 3))
    theirs[theirs == 4] = 0
    agree = (first == theirs)[theirs > 0].float().mean()
    assert agree > 0.8
    with pytest.raises(DataError, match="expected more than 3 label maps"):
        load_label_maps(replace(config, validation=3), grid, [2])


def test_command_trains_on_label_maps_alone(train_features, tmp_path, capsys):
    for n in range(3):
        write_map(tmp_path / f"map{n}.nii.gz", shift=n)
    config = tmp_path / "features.toml"
    config.write_text(
        f'[run]\nname = "tiny"\nout = {json.dumps(str(tmp_path / "out"))}\n'
        f"[label_maps]\nroot = {json.dumps(str(tmp_path))}\nvalidation = 1\n"
        f"[grid]\nshape = {list(SHAPE)}\n"
        "[features]\nwidths = [4, 8, 8]\nembedding = 5\nchannels = 3\n"
        "[training]\nsteps = 3\nvoxels = 500\nlabels = [2, 3, 41]\n"
        "[synthesis]\nalike = [[2, 41]]\n",
        encoding="utf-8",
    )
    assert train_features.main(["--config", str(config)]) == 0
    log = (tmp_path / "out" / "log.jsonl").read_text(encoding="utf-8")
    assert "validation_dice" in log
    assert log.count('"seconds"') == 3
    nothing = ["--config", str(config), "--set", "label_maps.root=", "--out", str(tmp_path / "no")]
    assert train_features.main(nothing) == 1
    assert "expected [data] root, [label_maps] root or both" in capsys.readouterr().err
