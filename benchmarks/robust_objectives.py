"""Robust objectives compared on digits, at equal training time.

    python benchmarks/robust_objectives.py [--seconds 10] [--chips 64] [--out DIR]

Uses the model, data, clip and input ranges of configs/digits_mlp.toml, without its
weight noise, because each objective has its own. The cost of a step is measured first,
in processor time, so that other load on the machine does not count. A costlier
objective takes fewer steps, and the learning rate decays to zero over the steps that
fit. The table shows the accuracy on chips with a frozen mismatch; its standard error
over chips is the standard deviation divided by the square root of their number.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import jax
import numpy as np
import optax

from hwtrain import evaluate, objectives, optim
from hwtrain.train import _linen as linen
from hwtrain.train import accuracy, init_state, make_step, read_config
from hwtrain.train._chips import chip_hardware
from hwtrain.train._preparation import prepare

CONFIG = Path(__file__).parent.parent / "configs" / "digits_mlp.toml"
LEVELS = (0.1, 0.2, 0.3)
Objective = objectives.ObjectiveParameter
OBJECTIVES = {
    "loss alone": None,
    "gaussian": Objective(type="gaussian", std_dev=0.3, per_column=True),
    "multiplicative": Objective(type="multiplicative", std_dev=0.5),
    "sharpness_aware": Objective(type="sharpness_aware", rho=0.5),
    "adversarial": Objective(
        type="adversarial", mismatch_level=0.1, noisy_forward_std=0.3
    ),
    "mean_of_chips": Objective(type="mean_of_chips", chips=4),
    "worst_of_chips": Objective(type="worst_of_chips", chips=4),
    "cvar_of_chips": Objective(type="cvar_of_chips", chips=4, share=0.5),
}


def train(config, ready, hardware, objective, seconds, seed):
    """Returns the parameters, the number of steps, and the seconds per step."""
    data, task = ready.data, ready.task
    model, plan = linen.hardware_aware(
        ready.factory, hardware, task.forward, data.example
    )
    robust = None
    if objective is not None:

        def robust(loss, outputs):
            return objectives.robust(
                loss, plan, objective, outputs=outputs, has_aux=True
            )

    def begin(steps):
        rate = optax.cosine_decay_schedule(config.training.learning_rate, steps)
        optimizer = optim.hardware_aware(
            optax.adam(rate), plan, input_range_learning_rate=rate
        )
        step = make_step(model, optimizer, task.loss, take=data.take, robust=robust)
        return step, init_state(model.init(seed), optimizer)

    key = jax.random.key(seed + 1)

    def run(step, state, steps):
        source = data.training(seed, 0, None)
        for _ in range(steps):
            state, _ = step(state, next(source), key)
        return jax.block_until_ready(state)

    step, state = begin(1000)
    state = run(step, state, 20)  # compiles
    start = time.process_time()
    run(step, state, 200)
    cost = (time.process_time() - start) / 200
    steps = max(int(seconds / cost), 1)
    step, state = begin(steps)
    return run(step, state, steps).params, steps, cost


def on_chips(config, ready, hardware, params, level, chips):
    """Returns the accuracy in % of each chip at a level of mismatch."""
    chip = chip_hardware(hardware, level)
    population = evaluate.population(
        linen.on_chip(ready.factory, chip),
        {"params": params},
        [(batch, batch) for batch in ready.data.evaluation()],
        accuracy,
        chips=chips,
        key=jax.random.key(0),
        forward=ready.task.on_chip,
    )
    return np.asarray(population.values, np.float64)


def main():
    """Prints a table, and writes it as Markdown and JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each training")
    parser.add_argument("--chips", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for the table as file")
    options = parser.parse_args()
    config = read_config(CONFIG)
    ready = prepare(config, CONFIG.parent)
    mismatch = dataclasses.replace(config.hardware.mismatch, std_dev=0.3)
    hardware = dataclasses.replace(config.hardware, modifier=None, mismatch=mismatch)
    results = []
    for name, objective in OBJECTIVES.items():
        values = {level: [] for level in LEVELS}
        for seed in range(options.seeds):
            params, steps, cost = train(
                config, ready, hardware, objective, options.seconds, seed
            )
            for level in LEVELS:
                found = on_chips(config, ready, hardware, params, level, options.chips)
                values[level].append(found)
        row = {"objective": name, "steps": steps, "step_us": round(1e6 * cost)}
        for level, found in values.items():
            mean, std = np.mean(found), np.std(found, axis=1, ddof=1).mean()
            worst = np.min(found)
            row[f"{level:g}"] = [round(float(v), 2) for v in (mean, std, worst)]
        results.append(row)
        print(row, flush=True)
    heads = [f"σ = {level:g}: mean ± std (worst)" for level in LEVELS]
    lines = [f"| objective | µs per step | steps | {' | '.join(heads)} |"]
    lines.append("|---" * (3 + len(LEVELS)) + "|")
    for row in results:
        cells = [
            "{:.2f} ± {:.2f} ({:.2f})".format(*row[f"{level:g}"]) for level in LEVELS
        ]
        lines.append(
            f"| {row['objective']} | {row['step_us']} | {row['steps']} | "
            f"{' | '.join(cells)} |"
        )
    print("\n".join(lines))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        table = options.out / "robust_objectives.md"
        table.write_text("\n".join(lines) + "\n")
        settings = {"seconds": options.seconds, "chips": options.chips}
        data = {**settings, "seeds": options.seeds, "results": results}
        text = json.dumps(data, indent=2, ensure_ascii=False)
        (options.out / "robust_objectives.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
