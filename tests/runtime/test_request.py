from __future__ import annotations

import dataclasses
from inspect import signature
from pathlib import Path
from typing import get_args

import pytest

from paramorph_rt import Registration, request
from paramorph_rt.cli import build_parser, evaluate
from paramorph_rt.cli.arguments import inputs_of, options_of
from paramorph_rt.cli.layout import commands_of
from paramorph_rt.fields import About, about, flags_of, heading_of
from paramorph_rt.geometry.resample import Interpolation
from paramorph_rt.images import landmarks
from paramorph_rt.request import Inputs, Options, fields_of
from paramorph_rt.steps.affine import AffineKind
from paramorph_rt.steps.load import Sources
from paramorph_rt.transforms import formats

from .test_cli import run_python

CALLS = {
    "infer": ["infer", "--moving", "m.nii", "--fixed", "f.nii", "--out-dir", "out"],
    "cohort": ["cohort", "pairs.csv", "--out-dir", "out"],
    "bids": ["bids", "data", "out", "participant", "--template", "t.nii"],
}
INPUTS = Inputs(Path("m.nii"), Path("f.nii"))


def words_for(of: dataclasses.Field) -> list[str]:
    """A command line that sets a field to another value than its default."""
    if isinstance(of.default, bool):
        return [flags_of(of)[-1]]
    others = [choice for choice in about(of).choices if choice != of.default]
    return [
        flags_of(of)[-1],
        others[0] if others else "3" if about(of).parse is not Path else "x.csv",
    ]


@pytest.mark.parametrize("command", CALLS)
@pytest.mark.parametrize("name", fields_of(Options))
def test_every_option_is_read_from_the_command_line(command, name):
    if (command, name) == ("bids", "bids_names"):
        return  # what its results are called in any case
    words = words_for(fields_of(Options)[name])
    options = options_of(build_parser().parse_args([*CALLS[command], *words]))
    plain = options_of(build_parser().parse_args(CALLS[command]))
    assert getattr(plain, name) == (fields_of(Options)[name].default)
    assert dataclasses.replace(options, **{name: getattr(plain, name)}) == plain
    assert getattr(options, name) != getattr(plain, name)


@pytest.mark.parametrize("command", CALLS)
@pytest.mark.parametrize("name", fields_of(Options))
def test_every_option_is_explained_in_the_help(command, name):
    of = fields_of(Options)[name]
    by_flag = {
        flag: action
        for action in commands_of(build_parser())[command]._actions
        for flag in action.option_strings
    }
    if (command, name) != ("bids", "bids_names"):
        assert by_flag[flags_of(of)[-1]].help == about(of).help
    assert about(of).help.strip(" .") == about(of).help


@pytest.mark.parametrize("name", fields_of(Options))
def test_every_option_is_recorded_and_shown_unless_it_is_marked(name):
    of = fields_of(Options)[name]
    options = options_of(build_parser().parse_args([*CALLS["infer"], *words_for(of)]))
    assert (name in request.record(options)) == (about(of).record != "never")
    parameters = request.parameters(INPUTS, options)
    assert (heading_of(of) in parameters) == (heading_of(of) != "")


def test_a_new_option_is_recorded_and_shown_without_further_words():
    described = About("how rough the field may be")
    assert (described.record, described.heading) == ("unless default", None)


@pytest.mark.parametrize("name", fields_of(Inputs))
def test_every_file_is_read_from_the_command_line(name):
    words = [flags_of(fields_of(Inputs)[name])[-1], "x.nii"]
    inputs = inputs_of(build_parser().parse_args([*CALLS["infer"], *words]))
    wanted = (Path("x.nii"),) if name in request.SEVERAL else Path("x.nii")
    assert inputs == dataclasses.replace(INPUTS, **{name: wanted})
    assert Path("x.nii") in inputs.files().values()


def test_parameters_are_those_of_the_request():
    inputs = dataclasses.replace(
        INPUTS, initial_transform=Path("a/start.tfm"), also=(Path("t2.nii"),)
    )
    inputs = dataclasses.replace(inputs, also_labels=(Path("l.nii"),))
    options = Options(affine="rigid", output_grid="a/grid.nii", refine=0, threads=2, inverse=True)
    assert request.parameters(inputs, options) == {
        "initial transform": "start.tfm",
        "warped along": "t2.nii, l.nii",
        "refinement": "off",
        "affine": "rigid",
        "inverse": "yes",
        "output grid": "grid.nii",
        "interpolation": "linear",
        "threads": "2",
    }
    assert request.parameters(INPUTS, Options())["affine"] == "affine"


def test_record_holds_no_paths_and_no_defaults_but_the_first():
    plain = {
        "refine": 7,
        "affine": "auto",
        "inverse": False,
        "output_grid": "fixed",
        "interpolation": "linear",
    }
    assert request.record(Options()) == plain
    more = {"surfaces": False, "analyze_orientation": "LAS"}
    options = Options(output_grid="a/grid.nii", affine="none", **more)
    assert request.record(options) == plain | more | {"output_grid": "file", "affine": "none"}


def test_paths_become_absolute():
    options = Options(model="a/bundle", output_grid="g.nii", label_names=Path("n.csv")).absolute()
    assert options.model == Path("a/bundle").absolute()
    assert options.files() == {
        "output_grid": Path("g.nii").absolute(),
        "label_names": Path("n.csv").absolute(),
    }
    assert Options(model="none", output_grid="moving").absolute() == Options(
        model="none", output_grid="moving"
    )


def test_keyword_arguments_of_a_call_are_those_of_the_request():
    keywords = set(signature(Registration.__call__).parameters) - {"self"}
    fields = {field.name for field in dataclasses.fields(Sources)} | set(fields_of(Options))
    assert keywords <= fields
    assert {field.name for field in dataclasses.fields(Sources)} <= keywords


def test_names_that_stand_here_for_the_help_are_those_of_their_modules():
    assert evaluate.SPACES == landmarks.SPACES
    assert get_args(Interpolation) == request.INTERPOLATIONS
    assert tuple(formats.FORMATS) == request.FORMATS
    assert {"auto", *about(fields_of(Options)["affine"]).choices} == set(get_args(AffineKind))


@pytest.mark.parametrize(
    "program",
    ["import paramorph_rt.request", "from paramorph_rt.cli import main; main(['infer', '--help'])"],
)
def test_request_and_help_load_no_numpy(program):
    heavy = "{'numpy', 'nibabel', 'SimpleITK', 'onnxruntime'}"
    result = run_python(
        "-c", f"import sys\ntry: {program}\nfinally: assert not {heavy} & set(sys.modules)"
    )
    assert "AssertionError" not in result.stderr
    assert result.returncode == 0
