"""Where results go: full disks, closed folders, names that are taken, closed streams."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from .harness import PYTHON, check_bounded, check_refused, environment, needs, snapshot

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="needs root, to become nobody or to mount")
QUICK = ("--quiet", "--no-affine", "--model", "none", "--refine", "off")


def infer(good, out, *more):
    return ("infer", "-m", good / "moving.nii.gz", "-f", good / "fixed.nii.gz", "-o", out, *more)


def _commands(good) -> dict[str, tuple]:
    """Every command that writes, into what `{}` stands for."""
    images = ("-m", good / "moving.nii.gz", "-f", good / "fixed.nii.gz")
    affine = good / "affine.tfm"
    labels = ("--fixed-labels", good / "fixed_labels.nii.gz")
    labels += ("--moving-labels", good / "moving_labels.nii.gz")
    table = good / "pairs.csv"
    table.write_text("name,moving,fixed\na,moving.nii.gz,fixed.nii.gz\n", encoding="utf-8")
    return {
        "infer": (*infer(good, "{}", *QUICK), "--inverse", "--itk-composite"),
        "infer --json": (*infer(good, "{}-results", *QUICK), "--json", "{}"),
        "cohort": ("cohort", table, "--out-dir", "{}", *QUICK),
        "evaluate --csv": ("evaluate", *labels, "--csv", "{}", "--quiet"),
        "evaluate --json": ("evaluate", *labels, "--json", "{}", "--quiet"),
        "transform apply": ("transform", "apply", affine, *images, "-o", "{}.nii.gz", "-q"),
        "transform .tfm": ("transform", "convert", affine, "-o", "{}.tfm", "-q"),
        "transform .mat": ("transform", "convert", affine, "-o", "{}.mat", "-q"),
        "transform .h5": ("transform", "convert", affine, "-o", "{}.h5", "-q"),
        "transform fsl": (
            "transform",
            "convert",
            affine,
            *images,
            "--to",
            "fsl",
            "-o",
            "{}.mat",
            "-q",
        ),
        "transform lta": (
            *("transform", "convert", affine, *images, "--to", "freesurfer", "-o", "{}.lta", "-q"),
        ),
        "triton": ("triton", "--out-dir", "{}", "-q"),
    }


NAMES = list(_commands(Path("/tmp")))[:]


def filled(words, target: object) -> list[str]:
    return [str(word).replace("{}", str(target)) for word in words]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bytes_", [1, 40])
def test_a_disk_that_is_full(name, bytes_, program, good, place):
    """A limit on the size of files stands for it: no byte more is written, whoever writes."""
    words = filled(_commands(good)[name], place / "result")
    outcome = program(*words, cwd=place, file_bytes=bytes_, stdout="/dev/null")
    check_bounded(outcome)
    assert outcome.code == 1, outcome.err
    assert snapshot(place) == {} or name in ("infer --json", "cohort"), snapshot(place)
    assert ".paramorph" not in "".join(snapshot(place))


@needs_root
@pytest.mark.parametrize("kilobytes", [4, 16, 64, 200])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "triton"])
def test_a_small_file_system(name, kilobytes, program, good, place):
    """Whole results, or none."""
    disk = place / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", disk], check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        words = filled(_commands(good)[name], disk / "result")
        outcome = program(*words, cwd=place)
        check_bounded(outcome)
        there = snapshot(disk)
        assert ".paramorph" not in "".join(there)
        if outcome.code == 0:
            files = [state for state in there.values() if state[0].isdigit()]
            assert files
            assert not [state for state in files if state.startswith("0 ")]
        elif name not in ("infer --json", "cohort"):
            assert there == {}
    finally:
        subprocess.run(["umount", disk], check=True)


@needs_root
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_without_permission(name, program, good, place):
    closed = place / "closed"
    closed.mkdir(mode=0o755)
    outcome = program(*filled(_commands(good)[name], closed / "x"), cwd=place, nobody=True)
    check_refused(outcome)
    assert snapshot(closed) == {}


@pytest.mark.parametrize("name", NAMES)
def test_below_a_file(name, program, good, place):
    (place / "file").write_text("mine", encoding="utf-8")
    check_refused(program(*filled(_commands(good)[name], place / "file/x"), cwd=place))
    assert list(snapshot(place)) == ["file"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_no_file_can_have(name, program, good, place):
    check_refused(program(*filled(_commands(good)[name], place / ("x" * 300)), cwd=place))
    assert snapshot(place) == {}


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in ("triton", "cohort", "infer --json")]
)
def test_what_is_there_already_stays(name, program, good, place):
    words = filled(_commands(good)[name], place / "x")
    assert program(*words, cwd=place).code == 0
    before = snapshot(place)
    check_refused(program(*words, cwd=place), "--force")
    assert snapshot(place) == before
    assert program(*words, "--force", cwd=place).code == 0


@pytest.mark.parametrize("content", ["fifo", "[1", "[]", '{"DatasetLinks": 5}', "[" * 99_999])
@pytest.mark.parametrize("file", ["metrics.json", "record.json", "dataset_description.json"])
def test_what_is_no_json_of_ours(file, content, program, good, place):
    """Earlier results whose JSON was lost, or a pipe in its place: nobody waits, nothing breaks."""
    image = place / "sub-01_T1w.nii.gz"
    image.write_bytes((good / "moving.nii.gz").read_bytes())
    (place / "pairs.csv").write_text(
        f"name,moving,fixed\na,{image},{good}/fixed.nii.gz\n", encoding="utf-8"
    )
    bids = ("--bids-names",) if file.startswith("dataset") else ()
    words = ("cohort", "pairs.csv", "--out-dir", "OUT", *QUICK, *bids)
    assert program(*words, cwd=place).code == 0
    (broken,) = (place / "OUT").rglob(file)
    broken.unlink()
    if content == "fifo":
        os.mkfifo(broken)
    else:
        broken.write_text(content, encoding="utf-8")
    outcome = program(*words, cwd=place, timeout=20)
    check_bounded(outcome)
    assert outcome.code == 0, outcome.err
    assert ".paramorph" not in "".join(snapshot(place))


def test_a_dataset_is_no_folder_for_its_derivatives(program, good, place):
    subject = place / "B/sub-01/anat"
    subject.mkdir(parents=True)
    (subject / "sub-01_T1w.nii.gz").write_bytes((good / "moving.nii.gz").read_bytes())
    description = '{"Name": "mine", "BIDSVersion": "1.8.0"}'
    (place / "B/dataset_description.json").write_text(description, encoding="utf-8")
    before = snapshot(place)
    template = ("--template", good / "fixed.nii.gz", *QUICK)
    words = ("bids", "B", "../" + place.name + "/B", "participant", *template)
    check_refused(program(*words, cwd=place), "the dataset itself")
    assert snapshot(place) == before
    words = infer(good, "B", *QUICK, "-m", subject / "sub-01_T1w.nii.gz", "--bids-names")
    assert program(*words, cwd=place).code == 0  # they may lie there, but the dataset stays
    assert {name: snapshot(place)[name] for name in before} == before


@needs_root
@pytest.mark.parametrize(
    "option", ["-m", "-f", "--moving-labels", "--moving-mask", "--initial-transform", "--also"]
)
def test_a_file_without_permission(option, program, good, place):
    secret = place / ("secret.tfm" if "transform" in option else "secret.nii.gz")
    secret.write_bytes((good / "moving.nii.gz").read_bytes())
    secret.chmod(0o600)
    words = infer(good, place / "OUT", *QUICK[:1], *QUICK[2:], option, secret)
    check_refused(program(*words, cwd=place, nobody=True), "secret")
    assert list(snapshot(place)) == [secret.name]


@needs_root
def test_a_folder_of_images_without_permission(program, good, place):
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    words = ("cohort", "--template", good / "fixed.nii.gz", "--images", closed, "--out-dir", "OUT")
    check_refused(program(*words, "--quiet", cwd=place, nobody=True), "closed")


@needs("matplotlib")
def test_force_touches_nothing_but_ours(program, good, place):
    more = ("--figures", "--also", good / "moving_mask.nii.gz")
    assert program(*infer(good, "OUT", *QUICK, *more), cwd=place).code == 0
    for name in ("mine.txt", "figures/mine.png", "also_warped/t2.nii.gz", "sub/mine.txt"):
        (place / "OUT" / name).parent.mkdir(exist_ok=True)
        (place / "OUT" / name).write_text("mine", encoding="utf-8")
    outcome = program(*infer(good, "OUT", *QUICK, "--force"), cwd=place)
    assert outcome.code == 0, outcome.err
    there = set(snapshot(place / "OUT"))
    assert {"mine.txt", "figures/mine.png", "also_warped/t2.nii.gz", "sub/mine.txt"} <= there
    assert not {"figures/grid.png", "also_warped/moving_mask.nii.gz"} & there


@pytest.mark.parametrize("kind", ["link", "file"])
@pytest.mark.parametrize("folder", ["figures", "also_warped"])
def test_a_folder_of_results_that_is_none(folder, kind, program, good, place):
    (place / "OUT").mkdir()
    (place / "elsewhere").mkdir()
    (place / "elsewhere/mine.png").write_text("mine", encoding="utf-8")
    if kind == "link":
        (place / "OUT" / folder).symlink_to("../elsewhere")
    else:
        (place / "OUT" / folder).write_text("mine", encoding="utf-8")
    before = snapshot(place)
    check_refused(program(*infer(good, "OUT", *QUICK, "--force"), cwd=place), folder)
    assert snapshot(place) == before


#: A result that lies where something is read: what is read, the result, and the command.
IN_PLACE = {
    "moving": ("moving.nii.gz", "OUT/warped.nii.gz", "infer -m {} -f {good}/fixed.nii.gz -o OUT"),
    "fixed": ("fixed.nii.gz", "OUT/warped.nii.gz", "infer -m {good}/moving.nii.gz -f {} -o OUT"),
    "labels": (
        "moving_labels.nii.gz",
        "OUT/warped_labels.nii.gz",
        "infer -m {good}/moving.nii.gz -f {good}/fixed.nii.gz --moving-labels {} -o OUT",
    ),
    "initial transform": (
        "affine.tfm",
        "OUT/affine.tfm",
        "infer -m {good}/moving.nii.gz -f {good}/fixed.nii.gz --initial-transform {} -o OUT",
    ),
    "names": (
        "names.csv",
        "m.json",
        "infer -m {good}/moving.nii.gz -f {good}/fixed.nii.gz --label-names {} --json {} -o OUT",
    ),
    "convert": ("affine.tfm", "a.tfm", "transform convert {} -o {}"),
    "apply": (
        "moving.nii.gz",
        "m.nii.gz",
        "transform apply {good}/affine.tfm -m {} -f {good}/fixed.nii.gz -o {}",
    ),
    "evaluate": (
        "fixed_labels.nii.gz",
        "l.nii.gz",
        "evaluate --fixed-labels {} --moving-labels {good}/moving_labels.nii.gz --csv {}",
    ),
}


@pytest.mark.parametrize("by", ["its path", "a link to its folder", "a link to it"])
@pytest.mark.parametrize("name", IN_PLACE)
def test_a_result_in_the_place_of_an_input(name, by, program, good, place):
    """With --force as well: what a result is made of is never replaced by it."""
    source, target, line = IN_PLACE[name]
    target = place / target
    target.parent.mkdir(exist_ok=True)
    target.write_bytes((good / source).read_bytes())
    given = target
    if by == "a link to its folder":
        (place / "link").symlink_to(target.parent)
        given = place / "link" / target.name
    elif by == "a link to it":
        given = place / f"link-{target.name}"
        given.symlink_to(target)
    first, _, second = line.replace("{good}", str(good)).partition("{}")
    line = f"{first}{given}{second.replace('{}', str(target))}"
    quick = QUICK if line.startswith("infer") else QUICK[:1]
    before = snapshot(place)
    outcome = program(*line.split(), *quick, "--force", cwd=place)
    check_refused(outcome, "in its place")
    assert snapshot(place) == before


def test_a_pair_whose_result_is_its_image(program, good, place):
    words = ("cohort", "pairs.csv", "--out-dir", "OUT", *QUICK)
    for moving, code in ((good / "moving.nii.gz", 0), ("OUT/pairs/a/warped.nii.gz", 1)):
        table = f"name,moving,fixed\na,{moving},{good}/fixed.nii.gz\n"
        (place / "pairs.csv").write_text(table, encoding="utf-8")
        outcome = program(*words, cwd=place)
        assert outcome.code == code, outcome.err
        if code == 0:
            before = snapshot(place / "OUT/pairs")
    assert "in its place" in outcome.err
    assert snapshot(place / "OUT/pairs") == before


@pytest.mark.parametrize("what", ["fifo", "device", "link", "stream"])
@pytest.mark.parametrize("name", ["infer --json", "evaluate --csv", "transform .tfm"])
def test_no_device_is_replaced(what, name, program, good, place):
    """Not even by root, and with --force: a file in the place of /dev/null stops a machine."""
    target = place / ("x.tfm" if name.startswith("transform") else "x")
    if what == "fifo":
        os.mkfifo(target)
    elif what == "device" and ROOT:
        os.mknod(target, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    else:
        target.symlink_to("/dev/null")
    given = "/proc/self/fd/1" if what == "stream" else str(target).removesuffix(".tfm")
    before = snapshot(place)
    outcome = program(*filled(_commands(good)[name], given), "--force", cwd=place)
    if what == "stream" and name.startswith("transform"):
        check_bounded(outcome)  # it ends in .tfm, and there is none
        assert outcome.code == 1
    else:
        check_refused(outcome, "device or a pipe")
    assert snapshot(place) == before


def test_one_file_for_two_tables(program, good, place):
    labels = ("--fixed-labels", good / "fixed_labels.nii.gz")
    labels += ("--moving-labels", good / "moving_labels.nii.gz")
    for other in ("x", "./x", "../" + place.name + "/x"):
        words = ("evaluate", *labels, "--csv", "x", "--json", other, "--quiet")
        check_refused(program(*words, cwd=place))
        assert snapshot(place) == {}


@pytest.mark.parametrize(
    "words",
    [
        ("--threads", "100000"),
        ("--threads", "9" * 20),
        ("--threads", "9" * 5000),
        ("--threads", "-1"),
        ("--threads", "0"),
        ("--threads", "²"),
        ("--refine", "9" * 30),
        ("--refine", "nan"),
        ("--reference-volume", "9" * 30),
        ("--output-grid", "/dev/zero"),
        ("--analyze-orientation", "XYZ"),
        ("--label-names", "/dev/zero"),
        ("--model", "/dev/zero"),
        ("--model", ""),
        *((f"{option}=--",) for option in ("--threads", "--refine", "--label-names")),
        ("--out-dir", ""),
        ("--moving", ""),
    ],
)
def test_absurd_options(words, program, good, place):
    outcome = program(*infer(good, "OUT", *QUICK[:2], *QUICK[2:], *words), cwd=place)
    check_bounded(outcome)
    assert outcome.code in (1, 2)
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert len(outcome.err) < 2000
    assert snapshot(place) == {}


@pytest.mark.parametrize(
    "changed",
    [
        {"HOME": "/etc/passwd", "XDG_CACHE_HOME": "/dev/null"},
        {"HOME": "", "TMPDIR": "/nonexistent"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "COLUMNS": "-5"},
        {"LC_ALL": "xx_YY.KOI8-R", "TZ": "Mars/Phobos", "COLUMNS": "words"},
        {"OMP_NUM_THREADS": "many", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "-7"},
        {"PATH": "", "PYTHONWARNINGS": "error", "SOURCE_DATE_EPOCH": "soon"},
    ],
    ids=lambda changed: "+".join(changed),
)
def test_odd_environments(changed, program, good, place):
    outcome = program(*infer(good, "OUT", *QUICK[:2], "--refine", "1"), cwd=place, env=changed)
    assert outcome.code == 0, outcome.err
    assert not outcome.err
    assert program("info", cwd=place, env=changed).code == 0


@needs("matplotlib")
def test_windows_of_matplotlib_are_none_of_ours(program, good, place):
    words = infer(good, "OUT", *QUICK, "--figures")
    outcome = program(*words, cwd=place, env={"MPLBACKEND": "none that is known"})
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("stdout", [None, "/dev/full", "/dev/null"])
@pytest.mark.parametrize("stderr", [None, "/dev/full", "/dev/null"])
@pytest.mark.parametrize("is_good", [True, False])
def test_streams_that_take_nothing(stdout, stderr, is_good, program, good, place):
    words = infer(good, "OUT", *QUICK) if is_good else infer(good, "OUT", *QUICK, "-m", "none.nii")
    outcome = program(*words, cwd=place, stdout=stdout, stderr=stderr)
    assert outcome.code == int(not is_good or stdout == "/dev/full")
    assert (place / "OUT/metrics.json").exists() == is_good
    assert ".paramorph" not in "".join(snapshot(place))


def test_a_working_folder_that_is_gone(good, place):
    gone = place / "gone"
    gone.mkdir()
    words = [str(word) for word in infer(good, place / "OUT", *QUICK, "-m", "none.nii")]
    done = subprocess.run(
        [
            "sh",
            "-c",
            'rmdir "$PWD" && exec "$@"',
            "sh",
            PYTHON,
            "-m",
            "paramorph_rt",
            *words,
        ],
        cwd=gone,
        env={**environment(), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("address_mb", [300, 700, 1100, 1500, 1900])
def test_little_memory(program, good, place, address_mb):
    outcome = program(*infer(good, "OUT", *QUICK), cwd=place, address_mb=address_mb)
    check_bounded(outcome)
    if address_mb < 1536:
        assert "of address space" in outcome.err
    assert outcome.code in (0, 1)
    assert len(outcome.err.splitlines()) <= 1
    assert (place / "OUT").exists() == (outcome.code == 0)
