"""Draws the plots of models around others, and of written devices, in docs/physics.md.

`python docs/device_plots.py [folder]`; the folder is `docs/images` by default.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from matplotlib.figure import Figure

import hwtrain as hw
from hwtrain.weights import CorrelatedMismatch

YEAR_S = 31_536_000.0
QUIET = hw.PCMLikeNoiseModel(prog_noise_scale=0.0, read_noise_scale=0.0)


def panels(count, size, **options):
    """Returns a figure and a row of its axes."""
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False, **options)[0]


def written():
    """Draws the conductance over pulses, and how devices end up."""
    figure, (path, ends) = panels(2, (10, 3.2))
    pulses = np.arange(60)
    for color, exponent in enumerate((0.0, 1.0, 2.0)):
        model = hw.WriteVerifyNoiseModel(
            noise_model=QUIET,
            set_step_us=1.0,
            reset_step_us=1.0,
            set_exponent=exponent,
            reset_exponent=exponent,
            tolerance_us=0.5,
        )
        for up in (True, False):
            g = [jnp.asarray(0.0 if up else 30.0)]
            for _ in pulses[1:]:
                g.append(jnp.clip(g[-1] + model.step(g[-1], up=up), 0.0, 30.0))
            label = f"γ = {exponent:g}" if up else None
            style = "-" if up else "--"
            path.plot(pulses, g, style, color=f"C{color}", label=label)
    path.set(title="set, and reset (dashed)", xlabel="pulses", ylabel="µS")
    path.legend()
    target = jnp.full((20_000,), 12.0)
    for tolerance in (0.2, 0.5, 1.0):
        model = hw.WriteVerifyNoiseModel(
            noise_model=QUIET,
            set_step_us=1.0,
            reset_step_us=1.0,
            cycle_std=0.3,
            device_std=0.2,
            tolerance_us=tolerance,
        )
        devices = model.program(jax.random.key(0), target)
        mean = float(devices.pulses.mean())
        ends.hist(
            np.asarray(devices.g_prog - target),
            bins=80,
            range=(-1.5, 1.5),
            histtype="step",
            label=f"tolerance {tolerance:g} µS: {mean:.0f} pulses",
        )
    ends.set(title="20 000 devices", xlabel="written - target in µS", ylabel="devices")
    ends.legend(loc="upper left")
    return figure


def aged():
    """Draws devices over time: hot, failing, and read often."""
    figure, (hot, failing, read) = panels(3, (11, 3.2))
    times = np.geomspace(1.0, YEAR_S, 60)
    g = jnp.linspace(2.0, 22.0, 4)
    for kelvin, style in ((300.0, "-"), (330.0, "--"), (358.0, ":")):
        model = hw.AtTemperature(
            noise_model=QUIET,
            temperature_k=kelvin,
            conduction_ev=(0.2, -0.2),
            retention_ev=0.6,
        )
        devices = model.program(jax.random.key(0), g)
        trace = np.stack([model.mean_at(devices, t) for t in times])
        for number, line in enumerate(trace.T):
            label = f"{kelvin:g} K" if number == 0 else None
            hot.semilogx(times, line, style, color=f"C{number}", label=label)
    hot.set(title="AtTemperature", xlabel="time in s", ylabel="µS")
    hot.legend(fontsize=8)
    for shape in (0.7, 1.5, 4.0):
        model = hw.RetentionFailures(
            noise_model=QUIET, law="weibull", scale_s=1e6, shape=shape
        )
        devices = model.program(jax.random.key(0), jnp.full((4000,), 20.0))
        alive = [float((model.mean_at(devices, t) > 0.01).mean()) for t in times]
        failing.semilogx(times, alive, label=f"shape {shape:g}")
    failing.set(title="RetentionFailures", xlabel="time in s", ylabel="share alive")
    failing.legend(fontsize=8)
    steady = hw.StateIndependentNoiseModel(
        prog_coeff=(0.0,), drift_scale=0.0, read_noise_scale=0.0
    )
    for volts in (0.1, 0.2, 0.3):
        model = hw.ReadDisturb(
            noise_model=steady, read_voltage_v=volts, read_time_s=1e-7, reads_per_s=1e6
        )
        devices = model.program(jax.random.key(0), jnp.full((1,), 20.0))
        line = [float(model.mean_at(devices, t)[0]) for t in times]
        read.semilogx(times * 1e6, line, label=f"{volts:g} V")
    read.set(title="ReadDisturb", xlabel="reads of 100 ns", ylabel="µS")
    read.legend(fontsize=8)
    return figure


def flicker():
    """Draws reads with a memory, and their spectrum."""
    figure, (trace, spectrum) = panels(2, (10, 3.2))
    steady = hw.StateIndependentNoiseModel(
        prog_coeff=(0.0,), drift_scale=0.0, read_noise_scale=0.0
    )
    model = hw.FlickerNoiseModel(
        noise_model=steady, relative_std=0.03, f_min_hz=1e-4, f_max_hz=10.0
    )
    devices = model.program(jax.random.key(0), jnp.full((1024,), 20.0))
    step = 0.05
    times = np.arange(4096) * step
    read = jax.jit(lambda t: model.at(jax.random.key(0), devices, t))
    reads = np.stack([read(t) for t in times])
    trace.plot(times, reads[:, :3], linewidth=0.7)
    trace.set(title="three devices", xlabel="time in s", ylabel="µS")
    centred = (reads - reads.mean(0)) * np.hanning(len(times))[:, None]
    power = np.square(np.abs(np.fft.rfft(centred, axis=0))).mean(1)
    f = np.fft.rfftfreq(len(times), step)
    edges = np.geomspace(3, len(f), 30).astype(int)
    pairs = list(zip(edges[:-1], np.maximum(edges[1:], edges[:-1] + 1)))
    centre = np.array([f[low:high].mean() for low, high in pairs])
    mean = np.array([power[low:high].mean() for low, high in pairs])
    spectrum.loglog(centre, mean * centre[0] / mean[0], "o", label="1024 devices")
    spectrum.loglog(centre, centre[0] ** 2 / centre, "k--", label="1 / f")
    spectrum.set(title="spectrum", xlabel="frequency in Hz", ylabel="power, relative")
    spectrum.legend()
    return figure


def correlated():
    """Draws the relative deviation of a chip's weights, for every share."""
    figure, axes = panels(4, (11, 3.0))
    cases = {
        "of_tile=0.8": {"of_tile": 0.8},
        "of_row=0.8": {"of_row": 0.8},
        "of_column=0.8": {"of_column": 0.8},
        "length=8": {"length": 8.0},
    }
    image = None
    for panel, (name, shares) in zip(axes, cases.items()):
        hardware = hw.Hardware(
            mismatch=CorrelatedMismatch(std_dev=0.1, **shares),
            mapping=hw.MappingParameter(max_input_size=32, max_output_size=32),
        )
        analog = hw.analogize(nn.Dense(64, use_bias=False), hardware)
        params = {"kernel": jnp.ones((64, 64))}
        plan = hw.plan(analog, params, jnp.ones((1, 64)))
        chip = hw.apply_mismatch(params, plan, hw.chip_key(0))
        image = panel.imshow(chip["kernel"] - 1, vmin=-0.3, vmax=0.3, cmap="RdBu")
        panel.set(title=name, xticks=(0, 32, 64), yticks=(0, 32, 64))
    figure.colorbar(image, ax=list(axes), label="deviation")
    return figure


FIGURES = (written, aged, flicker, correlated)


def main(folder):
    """Writes every figure into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in FIGURES:
        figure().savefig(folder / f"{figure.__name__}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "images")
