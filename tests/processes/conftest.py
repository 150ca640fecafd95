"""Runs one program in two real processes, with four simulated devices each."""

import os
import socket
import subprocess
import sys
import textwrap

import pytest

START = textwrap.dedent("""
    import os, sys
    import jax
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    me = int(sys.argv[2])
    jax.distributed.initialize(
        coordinator_address=f"localhost:{sys.argv[1]}", num_processes=2, process_id=me)
    import jax.numpy as jnp
    import numpy as np
    from flax import linen as nn
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    import hwtrain
    from hwtrain._arrays.shared import gathered

    def mesh_of(rows, columns, kind=AxisType.Auto):
        return jax.make_mesh((rows, columns), ("data", "model"), axis_types=(kind,) * 2)

    def spread(array, mesh, *axes):
        array = np.asarray(array)
        return jax.make_array_from_callback(
            array.shape, NamedSharding(mesh, P(*axes)), lambda index: array[index])

    def refused(call):
        try:
            call()
        except ValueError as error:
            return f"{type(error).__name__}: {error}"
        raise AssertionError("nothing was raised")
""")
"""The beginning of every program. Its words follow in `sys.argv[3:]`."""


@pytest.fixture
def in_processes(tmp_path):
    """Runs a program with words in two processes; each says `equal` at its end.

    A process that waits for the other without end fails the test.
    """

    def run(program, *words, seconds=150):
        with socket.socket() as found:
            found.bind(("localhost", 0))
            port = str(found.getsockname()[1])
        flags = "--xla_force_host_platform_device_count=4"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        script = START + textwrap.dedent(program) + "\nprint('equal', flush=True)\n"
        names = [tmp_path / f"process-{me}.txt" for me in range(2)]
        running = []
        try:
            for me, name in enumerate(names):
                # Meshes write warnings to stderr, and a full pipe would block.
                with open(name, "w") as file:
                    command = [sys.executable, "-c", script, port, str(me)]
                    running.append(
                        subprocess.Popen(
                            [*command, *map(str, words)],
                            env=environment,
                            stdout=file,
                            stderr=subprocess.STDOUT,
                        )
                    )
            for process in running:
                process.wait(seconds)
        finally:
            for process in running:
                process.kill()
                process.wait()
        for name in names:
            said = name.read_text()
            lines = said.rstrip().splitlines()
            assert "equal" in lines, "\n".join(lines[-30:])

    return run
