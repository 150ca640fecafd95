"""Checks what a manifest says about the results that digital units store."""

from hwtrain._errors import InputError
from hwtrain._plan.plan import Plan


def check_outputs(plan: Plan) -> None:
    """Raises unless the stored results of a plan fit its weights.

    Raises:
      ValueError: naming the first module that does not.
    """
    formats = {output.path: output.format for output in plan.outputs}
    if len(formats) < len(plan.outputs):
        paths = [output.path for output in plan.outputs]
        twice = next(path for path in paths if paths.count(path) > 1)
        raise InputError(f"outputs: {twice!r} is there twice")
    prefix = plan.prefix
    for path in formats:
        if prefix and path != prefix and not path.startswith(f"{prefix}/"):
            raise InputError(f"outputs: {path!r} is outside of the prefix {prefix!r}")
    for weight in plan.weights:
        if weight.kind == "raw":
            continue
        path, expected = weight.layer_path, weight.hardware.outputs
        if formats.get(path) != expected:
            raise InputError(
                f"outputs: {path!r} should be stored as {expected!r}, as the hardware "
                f"of {weight.path} says; got {formats.get(path)!r}"
            )
