"""The memory of a process, kept between steps."""

import ctypes
import sys

# Options of `mallopt` in malloc.h of glibc.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_LARGEST = 2**31 - 1


def keep_memory() -> bool:
    """Keeps a process's freed memory, for steps that allocate it again.

    On Linux, glibc returns large arrays to the system when a step ends, and the next
    step requests them again, page by page, which takes up to a third of it. Call this
    before the first array is made. The process then never shrinks.

    It sets what the environment sets by `MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0
    MALLOC_TRIM_THRESHOLD_=2147483647`.

    >>> keep_memory() in (True, False)
    True

    Returns:
      Whether it has an effect: false where memory is not allocated by glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: _LARGEST}
    return all(mallopt(option, value) for option, value in options.items())
