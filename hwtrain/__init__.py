"""Hardware-aware training for Flax, Optax and Orbax."""

from hwtrain.version import __version__ as __version__
