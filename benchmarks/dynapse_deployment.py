"""Accuracy of the recipe `digits_dynapse` on a DynapSE2-like chip.

    hwtrain train configs/digits_dynapse.toml
    python benchmarks/dynapse_deployment.py configs/digits_dynapse.toml \
        runs/digits_dynapse

A neuron of the recipe has 128 synapses, one of the chip only 64, so the 64 largest
weights of each neuron are kept. Weights are then converted to masks over the four base
currents of their core, and biases to codes of the computed table. Prints the accuracy
on the test set in %, without mismatch.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from hwtrain._arrays import paths
from hwtrain.dynapse import Layout
from hwtrain.dynapse._biases import computed_table
from hwtrain.dynapse._connectivity import DYNAPSE2
from hwtrain.dynapse._deployed import deploy_layers, deployed_layers
from hwtrain.train import _checkpoints as checkpoints
from hwtrain.train import accuracy, init_state, read_config
from hwtrain.train._robustness import prepare_contest


def pruned(kernel: np.ndarray, w_rec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both arrays with all but the largest weights of each neuron zeroed."""
    both = np.concatenate([kernel, w_rec])
    order = np.argsort(-np.abs(both), axis=0)
    np.put_along_axis(both, order[DYNAPSE2.synapses_per_neuron :], 0.0, axis=0)
    return both[: len(kernel)], both[len(kernel) :]


def main() -> None:
    """Prints a row for each training method and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    config = read_config(options.config, [])
    ready = prepare_contest(config, options.config.parent)

    (test,) = ready.data.evaluation()

    @jax.jit
    def measure(params):
        return accuracy(ready.plain.evaluate(params, {}, test), test).mean()

    for way in ready.steps:
        for seed in config.training.seeds:
            where = options.run / way.replace(" ", "-") / f"seed_{seed}"
            start = init_state(ready.plain.init(seed), ready.optimizer)
            with checkpoints.open_checkpoints(where, read_only=True) as manager:
                params = checkpoints.restore_latest(manager, start)[0].params
            leaves = paths.leaves(params)
            cell = next(p for p in leaves if p.endswith("/w_rec")).removesuffix("w_rec")

            def with_layer(neurons, kernel, params=params, cell=cell):
                entries = {f"{cell}{name}": leaf for name, leaf in neurons.items()}
                return paths.insert(params, {**entries, "w_in/kernel": kernel})

            kernel, w_rec = pruned(
                np.array(leaves["w_in/kernel"]), np.array(leaves[f"{cell}w_rec"])
            )
            neurons = {p.removeprefix(cell): v for p, v in leaves.items() if cell in p}
            neurons["w_rec"] = w_rec
            deployment = deploy_layers(
                {"neurons": (neurons, kernel)}, layout=Layout(), table=computed_table()
            )
            on_chip = deployed_layers(deployment, layout=Layout())["neurons"]
            parts = deployment.weights_in, deployment.weights_rec
            error = np.sqrt(
                sum((part.error**2).sum() for part in parts)
                / sum((part.wanted**2).sum() for part in parts)
            )
            found = [params, with_layer(neurons, kernel), with_layer(*on_chip)]
            print(
                f"{way}, seed {seed}: nominal {measure(found[0]):.2f}, 64 synapses "
                f"{measure(found[1]):.2f}, on the chip {measure(found[2]):.2f}; rms "
                f"error of weights {error:.1%}, lost {sum(p.lost for p in parts)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
