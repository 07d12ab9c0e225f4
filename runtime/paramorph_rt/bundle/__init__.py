"""A model bundle: a folder with a manifest, networks and engines, verified before it is used."""

from .contents import Bundle as Bundle
from .contents import EngineEntry as EngineEntry
from .contents import GridSpec as GridSpec
from .contents import InputSpec as InputSpec
from .contents import IntensitySpec as IntensitySpec
from .contents import NetworkEntry as NetworkEntry
from .manifest import check_grid_spec as check_grid_spec
from .manifest import load_bundle as load_bundle
from .names import MANIFEST as MANIFEST
from .names import PORTABLE as PORTABLE
from .names import PRECISIONS as PRECISIONS
from .names import Precision as Precision
from .shipped import AUTO_MODEL as AUTO_MODEL
from .shipped import DEFAULT_NAME as DEFAULT_NAME
from .shipped import NO_MODEL as NO_MODEL
from .shipped import bundle_path as bundle_path
from .shipped import candidates as candidates
from .shipped import default_bundle_path as default_bundle_path
