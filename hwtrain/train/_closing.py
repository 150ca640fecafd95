"""The last words of a run: what lies in its folder, and what can be done with it."""

import shlex
from pathlib import Path

from hwtrain.train._chips import exports
from hwtrain.train._config import Config
from hwtrain.train._report import HARDWARE_AWARE, PLAIN
from hwtrain.weights import WeightModifierParameter


def closing(config: Config, out: Path) -> str:
    """Returns the files of a run, and the commands that go on from it.

    Args:
      config: the configuration.
      out: the run's folder.
    """
    run = shlex.quote(str(out))
    more, looking = "\n", ""
    if exports(config):
        first = out / "export" / f"seed_{config.training.seeds[0]}"
        first = shlex.quote(str(first))
        more = f"""
  export/seed_*               hardware-ready checkpoints: conductances in µS, scales,
                              input ranges{_drawn(config)}
"""
        looking = f"""
  look at the exported chip:      hwtrain inspect {first}
  program a chip or a simulator:  hwtrain convert {first} --to npz"""
    return f"""
Everything lies in {out}:
  results.json, results.png   the table above, every single value, and its plot{more}\
  {PLAIN}/seed_*, {HARDWARE_AWARE}/seed_*
                              Orbax checkpoints of the training
  config.json                 the configuration, every entry

What to do next:
  evaluate on other chips:        hwtrain evaluate {run}
  write it all on one page:       hwtrain report {run} report.html
  compare with another run:       hwtrain compare {run} OTHER_RUN{looking}
  try other settings:             add --set {_other(config)} --out DIR
  train a model of your own:      name functions that return model and data in a
                                  configuration: docs/training.md"""


def _other(config: Config) -> str:
    """Returns an override that changes this run."""
    modifier = config.hardware.modifier
    if isinstance(modifier, WeightModifierParameter) and modifier.std_dev:
        return f"hardware.modifier.std_dev={2 * modifier.std_dev:g}"
    return f"training.steps={2 * config.training.steps}"


def _drawn(config: Config) -> str:
    """Returns what is drawn once for the exported chip, in words."""
    found = {
        "frozen mismatch": any(x.mismatch and x.mismatch.draws for x in config.chips),
        "programming noise": any(x.noise_model is not None for x in config.chips),
        "stuck devices": any(x.sticks for x in config.chips),
    }
    words = " and ".join(word for word, there in found.items() if there)
    if not words:
        return "; no chip, because nothing on it is frozen"
    return f", chip {config.export.chip_seed} with its {words}"
