"""The operations of a graph that NIR has: flattening, and pools over windows."""

import re

_POOL = re.compile(
    r"(sum|avg)_pool\(kernel=(\d+)x(\d+), stride=(\d+)x(\d+), padding=(\d+)x(\d+)\)"
)


def is_operation(what: str) -> bool:
    """Whether NIR has an operation, given as `trace_graph` writes it.

    >>> is_operation("flatten"), is_operation("relu")
    (True, False)
    """
    return what == "flatten" or _POOL.fullmatch(what) is not None


def pool(what: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Returns "sum" or "avg", and the kernel size, stride and padding of a pool.

    >>> pool("avg_pool(kernel=2x2, stride=2x1, padding=0x0)")
    ('avg', ((2, 2), (2, 1), (0, 0)))
    """
    match = _POOL.fullmatch(what)
    assert match is not None, what
    kind, *numbers = match.groups()
    a, b, c, d, e, f = map(int, numbers)
    return kind, ((a, b), (c, d), (e, f))


def pool_named(kind: str, sizes: tuple[tuple[int, int], ...]) -> str:
    """Inverse of `pool`."""
    kernel, stride, padding = (f"{height}x{width}" for height, width in sizes)
    return f"{kind}_pool(kernel={kernel}, stride={stride}, padding={padding})"


def pool_sizes(what: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the height and width after a pool."""
    _, (kernel, stride, padding) = pool(what)
    return tuple(
        (size + 2 * p - k) // s + 1
        for size, k, s, p in zip(sizes, kernel, stride, padding)
    )
