"""Device mismatch over parameter trees: which leaves deviate, and by how much."""

from hwtrain.mismatch.generator import MismatchGenerator as MismatchGenerator
from hwtrain.mismatch.generator import mismatch_generator as mismatch_generator
from hwtrain.mismatch.prototypes import (
    dynamic_mismatch_prototype as dynamic_mismatch_prototype,
)
from hwtrain.mismatch.prototypes import (
    frozen_mismatch_prototype as frozen_mismatch_prototype,
)
from hwtrain.mismatch.prototypes import select as select
from hwtrain.mismatch.spatial import SpatialCorrelation as SpatialCorrelation
