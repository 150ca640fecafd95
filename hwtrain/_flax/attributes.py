"""The names that hwtrain sets on classes and objects that are not its own.

Code reads and writes them by these names; a name that is not listed here fails in
`tests/_flax/test_attributes.py`.
"""

ON_CLASSES = {
    "_hwtrain_base": "the user's class, of a class that `analogize` made",
    "_hwtrain_assigned": "Linen: what `analogize` was told",
    "_hwtrain_mode": "Linen: the mode",
    "_hwtrain_constants": "Linen: the traced constants of `with_constants`",
    "_hwtrain_number": "Linen: a number of its own, for caches, of a class with those",
    "_hwtrain_rebuild": "NNX: makes the class of the user's class, for pickles",
    "_hwtrain_capacitances": "neurons: the parameters that take a noise current",
    "analog_plan": "NNX: the plan, for parts of the package below `transforms`",
}
"""Attributes of the classes that replace a user's."""

ON_OBJECTS = {
    "hardware_mode": "the mode, of the model and of each of its analog layers",
    "analog_assigned": "of the model: what `analogize` was told",
    "analog_stream": "of the model: the stream of its steps",
    "analog_running": "of the copy that runs: its inner calls are plain calls",
    "analog_weights": "of a layer: the plans of its arrays",
    "analog_constants": "of the model: the traced constants of `with_constants`",
    "analog_outputs": "of a module: how its results are stored",
    "analog_beside": "of a layer in a call: what lies beside derived weights",
    "analog_raw": "of a module: the plans of its raw parameters",
    "analog_watch": "of a module in an abstract call: marks what it multiplies by",
}
"""Attributes of users' NNX objects. Linen's objects are frozen and have none."""

OF_FLAX = {
    "hwtrain_calls": "of a scope: how often its root was called",
    "hwtrain_original": "of what is put around a function of Flax: that function",
}


def plain_class(cls: type) -> type:
    """Returns the user's class behind a class that `analogize` made, or `cls`."""
    return getattr(cls, "_hwtrain_base", cls)


def capacitances_of(cls: type) -> tuple[str, ...]:
    """Returns the names of the parameters of a class that take a noise current."""
    return getattr(cls, "_hwtrain_capacitances", ())
