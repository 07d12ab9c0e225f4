"""Inference engines behind one small interface, one per module, and the choice between them."""

from ..bundle import PRECISIONS as PRECISIONS
from ..bundle import Precision as Precision
from .by_shape import NetworksByShape as NetworksByShape
from .choice import AUTO as AUTO
from .choice import BACKENDS as BACKENDS
from .choice import check_no_request as check_no_request
from .choice import check_request as check_request
from .choice import choose_backend as choose_backend
from .choice import choose_features as choose_features
from .choice import ways_to_run as ways_to_run
from .interface import Backend as Backend
from .interface import Load as Load
from .interface import Network as Network
from .interface import Shape as Shape
from .ways import WAYS as WAYS
from .ways import Way as Way
