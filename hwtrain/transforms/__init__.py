"""Module transforms: a Flax model, unmodified, made analog."""

from hwtrain.transforms.adopt import adopt as adopt
from hwtrain.transforms.analogize import analogize as analogize
from hwtrain.transforms.analogize import chip_mode as chip_mode
from hwtrain.transforms.analogize import eval_mode as eval_mode
from hwtrain.transforms.analogize import plan as plan
from hwtrain.transforms.analogize import train_mode as train_mode
from hwtrain.transforms.calibrate import calibrate as calibrate
from hwtrain.transforms.constants import with_constants as with_constants
from hwtrain.transforms.inspect import inspect as inspect
from hwtrain.transforms.materialize import materialize as materialize
from hwtrain.transforms.own_layers import analog_dot_general as analog_dot_general
from hwtrain.transforms.own_layers import analog_einsum as analog_einsum
from hwtrain.transforms.rules import Rule as Rule
from hwtrain.transforms.strength import noise_strength as noise_strength
from hwtrain.transforms.stripping import strip as strip
from hwtrain.transforms.with_mismatch import with_mismatch as with_mismatch
