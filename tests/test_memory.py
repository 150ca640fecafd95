"""Freed memory stays with the process that asks for it."""

import subprocess
import sys

import pytest

SCRIPT = """
import gc, sys
import numpy as np
from hwtrain._memory import keep_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

if sys.argv[1] == "keep":
    assert keep_memory()
before = resident()
array = np.ones(2**25)
del array
gc.collect()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize("way", ["keep", "return"])
def test_a_large_array_is_kept_only_where_asked_for(way):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, way], capture_output=True, text=True, check=True
    )
    kept = int(done.stdout) > 0.9 * 2**28
    assert kept == (way == "keep")
