"""The constants of a technology, by which counts become energy, time and area."""

from typing import Annotated

from pydantic import Field

from hwtrain._parts.fields import NonNegative, Positive, Size, configuration

Bits = Annotated[int, Field(ge=1, le=24)]


@configuration
class CostParameter:
    r"""What the operations of a chip cost. A constant of zero is not counted.

    A product of a vector and a tile takes one or more passes. In each, every row of the
    tile is driven, every device is read, and every column is converted:

    .. math::
        E_\text{pass} = R\, e_\text{row} + R\, C\, D\, e_\text{cell}
        + C\, n (e_\text{conversion} + 2^b e_\text{step}) + e_\text{tile}

    with R rows and C columns in use, D devices for each weight, n columns for each
    output, and b bits of the ADC.

    >>> constants = CostParameter(
    ...     source="ours", adc_energy_fj_per_step=6.1, row_energy_fj=512.0)
    >>> constants.cell_energy_fj
    0.0

    References:
      Walden, Analog-to-digital converter survey and analysis, IEEE Journal on Selected
      Areas in Communications 17, 1999: the energy of a conversion per step,
      `adc_energy_fj_per_step`.
      Shafiee et al., ISAAC: a convolutional neural network accelerator with in-situ
      analog arithmetic in crossbars, ISCA 2016, doi:10.1109/ISCA.2016.12: inputs in
      several passes, weights in several columns, columns that share an ADC.
    """

    source: Annotated[str, Field(min_length=1, max_length=300)]
    """Where the constants are from: a paper, a data sheet. Tables and results name
    it."""
    tile_rows: Size | None = None
    """Rows of a tile. `None`: as many as the mapping limits, or the layer has."""
    tile_columns: Size | None = None
    """Columns of a tile. `None`: likewise."""
    row_energy_fj: NonNegative = 0.0
    """Energy of one row of a tile in one pass, in fJ: DAC or driver, input register."""
    row_area_um2: NonNegative = 0.0
    """Area of the driver of one row, in µm²."""
    inp_bits: Bits | None = None
    """Bits of inputs of layers whose hardware has no DAC. `None`: such a layer is an
    error where bits matter."""
    input_bits_per_pass: Bits | None = None
    """Bits of an input that one pass takes, of a DAC with fewer bits than the inputs.
    `None`: all in one pass, as with pulses of modulated width."""
    read_time_ns: NonNegative = 0.0
    """Time of one pass, in ns, without the conversion."""
    cell_energy_fj: NonNegative = 0.0
    """Energy of one device in one pass, in fJ."""
    cell_area_um2: NonNegative = 0.0
    """Area of one device, in µm²."""
    columns_per_output: Size = 1
    """Columns that hold the weights of one output and are converted apart, as where
    each holds some bits of a weight."""
    adc_energy_fj_per_step: NonNegative = 0.0
    """Energy of a conversion over 2^bits, in fJ: the figure of merit of Walden."""
    out_bits: Bits | None = None
    """Bits of outputs of layers whose hardware has no ADC. `None`: such a layer is an
    error where bits matter."""
    conversion_energy_fj: NonNegative = 0.0
    """Energy of a conversion that does not depend on its bits, in fJ: sampling, shifts
    and additions, output register."""
    conversion_time_ns: NonNegative = 0.0
    """Time of a conversion, in ns."""
    adc_area_um2: NonNegative = 0.0
    """Area of one ADC, in µm²."""
    columns_per_adc: Size = 1
    """Columns that share an ADC and are converted one after the other."""
    overlapped: bool = False
    """The outputs of one pass are converted during the next one, so that a pass takes
    the longer of both times instead of their sum."""
    tile_energy_pj: NonNegative = 0.0
    """Energy of one tile in one pass, in pJ, however many of its rows and columns are
    in use."""
    tile_area_um2: NonNegative = 0.0
    """Area of one tile beside its devices, drivers and ADCs, in µm²."""
    digital_mac_energy_fj: NonNegative = 0.0
    """Energy of a multiplication and addition of a digital layer, in fJ."""
    digital_macs_per_ns: Positive | None = None
    """Multiplications and additions of digital layers in a nanosecond. `None`: their
    time is not counted."""
