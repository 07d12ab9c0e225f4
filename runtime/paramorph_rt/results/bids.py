"""Names of results as BIDS derivatives have them.

Source: BIDS 1.11, common derived data types; transforms as fMRIPrep names them (BEP014 is a draft).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OutputError
from ..images.volume import nifti_name
from .bids_entities import SPATIAL, BidsName, joined, label
from .bids_sidecars import DATASET, Uris, description, of_image, of_transform
from .outputs import Names, Sidecar

if TYPE_CHECKING:
    from ..request import Inputs, Options

IGNORE = ".bidsignore"
SIMILAR = "image"  # suffix of an image whose own name has none
LABELS = "dseg"  # of a label map whose own name has none
# The folder of a suffix, where it is not anat.
FOLDERS = {
    **dict.fromkeys(("bold", "boldref", "sbref", "cbv"), "func"),
    **dict.fromkeys(("dwi", "dwiref"), "dwi"),
    **dict.fromkeys(("asl", "m0scan"), "perf"),
    "pet": "pet",
}
# What the one volume of a series is called that stands for all.
REFERENCES = {"bold": "boldref", "dwi": "dwiref"}
# What BIDS has no names for (yet), so that its validator leaves it alone.
IGNORED = """\
# Transforms, for which BIDS has no names yet (BEP014 is a draft)
*_xfm.*
*_xfm/
# Registrations: what was measured, what they were made of, pages and pictures
*_metrics.json
*_record.json
*_report.html
*_figures/
*_also/
# Images whose own names say nothing of what they show
*_image.*
# Many pairs at a glance
summary.*
"""


def bids_names(inputs: Inputs, options: Options, out_dir: Path) -> Names:
    """Names for the results of a pair, in a folder that is a dataset of BIDS derivatives.

    With ``sub-01_T1w.nii.gz`` and ``tpl-MNI152NLin2009cAsym_res-01_T1w.nii.gz`` they are
    ``sub-01/anat/sub-01_space-MNI152NLin2009cAsym_T1w.nii.gz`` and
    ``sub-01/anat/sub-01_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.nii.gz``. `from` and `to`
    say how the image moves. Names that are none of BIDS become labels of their letters and digits.

    Args:
        inputs: The moving image's entities go on; the fixed image names the space: by `space-` or
            `tpl-`, else by its suffix, and by its subject and the like where they are other than
            the moving image's.
        options: An output grid of a file is named by `res-`; of a series that is warped as a whole,
            the registered volume gets a name of its own.
        out_dir: Root of the dataset; sidecars name their sources by BIDS URIs, whose datasets its
            description links to.

    Raises:
        OutputError: Two results would have one name.
    """
    name = _Derivatives(inputs, options)
    image = name.warped(inputs.moving)
    reference = name.reference(image) if options.apply_to_all else image
    labels = name.warped_labels(inputs.moving_labels)
    also = {path: name.warped(path) for path in inputs.also}
    also |= {path: name.warped(path, LABELS) for path in inputs.also_labels}
    sources = {reference: inputs.moving, image: inputs.moving}
    sources |= {own: path for path, own in also.items()}
    results = [reference, *also.values()]
    results += [image] if options.apply_to_all else []
    if inputs.moving_labels is not None:
        sources[labels] = inputs.moving_labels
        results.append(labels)
    _check_distinct(results)
    names = Names(
        warped=reference,
        displacement=name.transform("xfm.nii.gz"),
        composite=name.transform("xfm.h5", desc="composite"),
        affine=name.transform("xfm.txt", desc="affine"),
        warped_labels=labels,
        inverse=name.transform("xfm.nii.gz", inverse=True),
        brain_masks={"moving": name.brain_mask(), "fixed": name.brain_mask(fixed=True)},
        series=image,
        also=name.transform("also"),
        also_names={nifti_name(path.name): own for path, own in also.items()},
        metrics=name.transform("metrics.json"),
        report=name.transform("report.html"),
        figures=name.transform("figures"),
        record=name.transform("record.json"),
    )
    uris = Uris(out_dir)
    more = inputs.fixed, names.displacement, uris, name.spatial
    sidecars = {_beside(own): Sidecar(own, of_image(path, *more)) for own, path in sources.items()}
    sidecars |= _of_transforms(names, inputs, uris)
    shared = {DATASET: description(uris.links), IGNORE: IGNORED}
    return replace(names, sidecars=sidecars, shared=shared)


class _Derivatives:
    """Makes the names of one pair's results.

    Attributes:
        spatial: Entities that say where the warped images lie.
    """

    def __init__(self, inputs: Inputs, options: Options) -> None:
        source, target = BidsName.of(inputs.moving), BidsName.of(inputs.fixed)
        self._moving, self._suffix = inputs.moving, source.suffix
        start, end = source.space(source.entities), target.space(source.entities)
        self._ends = f"{start}moving" if start == end else start, end
        self._own = {"sub": source.entities.get("sub") or label(source.stem)}
        self._own |= {k: v for k, v in source.entities.items() if k not in SPATIAL}
        folders = [f"{key}-{self._own[key]}" for key in ("sub", "ses") if key in self._own]
        self._folder = "/".join([*folders, FOLDERS.get(source.suffix, "anat")])
        self.spatial = {"space": end}
        if options.output_grid != "fixed":
            self.spatial["res"] = label(BidsName.of(Path(options.output_grid)).stem)

    def warped(self, path: Path, suffix: str = SIMILAR, **more: str) -> str:
        """The name of a warped image; `suffix` is for one whose own name has none."""
        name = BidsName.of(path)
        entities = {k: v for k, v in name.entities.items() if k not in SPATIAL}
        if not name.suffix:
            is_moving = path == self._moving
            entities = self._own if is_moving else {**self._own, "desc": label(name.stem)}
        return self._joined({**entities, **self.spatial, **more}, f"{name.suffix or suffix}.nii.gz")

    def warped_labels(self, path: Path | None) -> str:
        """The name of the warped label map, or the one that it would have."""
        if path is not None:
            return self.warped(path, LABELS)
        return self._joined({**self._own, **self.spatial}, f"{LABELS}.nii.gz")

    def brain_mask(self, *, fixed: bool = False) -> str:
        """The name of the brain mask of the moving image, or of the fixed one in its space."""
        space = {"space": self.spatial["space"]} if fixed else {}
        return self._joined({**self._own, **space, "desc": "brain"}, "mask.nii.gz")

    def reference(self, image: str) -> str:
        """The name of the one registered volume of a series, which has the name `image`."""
        if self._suffix in REFERENCES:
            return image.replace(f"_{self._suffix}.nii", f"_{REFERENCES[self._suffix]}.nii")
        return self.warped(self._moving, desc="reference")

    def transform(self, ending: str, *, inverse: bool = False, **more: str) -> str:
        """The name of what belongs to the transform, or to its inverse."""
        entities = {k: v for k, v in self._own.items() if k != "desc"}
        start, end = reversed(self._ends) if inverse else self._ends
        return self._joined({**entities, "from": start, "to": end, "mode": "image", **more}, ending)

    def _joined(self, entities: Mapping[str, str], ending: str) -> str:
        return f"{self._folder}/{joined(entities)}_{ending}"


def _check_distinct(names: Iterable[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise OutputError(
                f"{name}: expected a BIDS name for each result, got it for {times} of them; give "
                "the inputs names that differ in an entity or in their suffix."
            )


def _of_transforms(names: Names, inputs: Inputs, uris: Uris) -> dict[str, Sidecar]:
    field = "Displacement field, affine included"
    forward = {
        names.displacement: field,
        names.affine: "Affine transform alone, before the network",
        names.composite: "Displacement field followed by the affine, as ITK's composite transform",
    }
    contents = {
        name: of_transform(what, inputs.moving, inputs.fixed, uris)
        for name, what in forward.items()
    }
    contents[names.inverse] = of_transform(field, inputs.fixed, inputs.moving, uris)
    return {_beside(name): Sidecar(name, content) for name, content in contents.items()}


def _beside(name: str) -> str:
    """The sidecar's name: the same with another ending."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}.json"
