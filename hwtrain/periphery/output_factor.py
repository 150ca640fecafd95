"""A factor on the outputs behind the ADC."""

from hwtrain._parts.part import Part


class OutputFactor(Part):
    r"""Multiplies the outputs by a constant, behind the ADC.

    .. math:: y' = f\, y
    """

    whole = True
    factor: float
    """f."""

    def around(self, inner, x, ctx):
        """Multiplies the outputs."""
        return inner(x) * self.factor

    def describe(self):
        """Returns its fields."""
        return f"output factor {self.factor:g}"

    def proof(self, ctx):
        """Declares its measured effect: the outputs."""
        ctx.differs("out_scale")
        ctx.responds(lambda x, tile: self.factor * tile.multiply(x), "out_scale")
