"""Constants of published chips for `hwtrain.evaluate.cost`, one source each.

Each function returns a `CostParameter`; the table `[cost]` of a configuration takes one
by `preset`. Change numbers by `dataclasses.replace`, or by further entries.
"""

from hwtrain._parts.cost_constants import CostParameter


def isaac() -> CostParameter:
    """Returns ISAAC-CE: 128 x 128 arrays of 2-bit cells, one 8-bit ADC each, 32 nm.

    A model of an accelerator, not a measured chip. Inputs are applied bit by bit, in
    cycles of 100 ns; a weight of 16 bits takes eight columns, so that a tile has at
    most 128 inputs and 16 outputs. Table I of the paper states power and area of the
    components of a unit of eight arrays; power times 100 ns, divided by their numbers,
    is their energy:

    * 1024 drivers 4 mW and 170 µm², input register 1.24 mW and 2100 µm²;
    * 8 ADCs 16 mW and 9600 µm², that is 1562.5 fJ for a conversion of 8 bits;
    * 1024 sample-and-holds 0.01 mW and 40 µm², shift and add 0.2 mW and 240 µm², output
      register 0.23 mW and 770 µm²;
    * 8 arrays of 128 x 128 cells 2.4 mW and 200 µm².

    The tile around twelve units (buffers, bus, router, activations; an eighth of the
    power, more than half of the area) is not included. That the energy of a conversion
    doubles with each bit is Walden's rule, not the paper's.

    >>> constants = isaac()
    >>> f"{256 * constants.adc_energy_fj_per_step:.1f}"
    '1562.5'

    References:
      Shafiee et al., ISAAC: a convolutional neural network accelerator with in-situ
      analog arithmetic in crossbars, ISCA 2016, doi:10.1109/ISCA.2016.12, Table I of
      the version of October 5th, 2016.
    """
    cycle_ns, arrays, lines = 100.0, 8, 128

    def each(milliwatts: float, number: int) -> float:
        """Energy in fJ of one of several components in a cycle."""
        return milliwatts * cycle_ns * 1e3 / number

    wires, cells = arrays * lines, arrays * lines * lines
    return CostParameter(
        source="ISAAC-CE, 32 nm, Shafiee et al., ISCA 2016, Table I",
        tile_rows=lines,
        tile_columns=lines,
        row_energy_fj=each(4.0 + 1.24, wires),
        row_area_um2=(170.0 + 2100.0) / wires,
        input_bits_per_pass=1,
        read_time_ns=cycle_ns,
        cell_energy_fj=each(2.4, cells),
        cell_area_um2=200.0 / cells,
        columns_per_output=8,
        adc_energy_fj_per_step=each(16.0, wires) / 2**8,
        conversion_energy_fj=each(0.01 + 0.2 + 0.23, wires),
        conversion_time_ns=cycle_ns / lines,
        adc_area_um2=9600.0 / arrays,
        columns_per_adc=lines,
        overlapped=True,
        tile_area_um2=(40.0 + 240.0 + 770.0) / arrays,
    )


def hermes_core() -> CostParameter:
    """Returns the HERMES core: 256 x 256 cells of phase-change memory, 14 nm, measured.

    The paper states 1.008 TOPS, 10.5 TOPS/W and 1.59 TOPS/mm² at 1 GHz, with 8-bit
    inputs. A product of 256 x 256 takes 131,072 operations: 130 ns, 12.5 nJ and 0.634
    mm². These are of the whole core, so a tile costs as much if it is only partly in
    use.

    >>> f"{hermes_core().read_time_ns:.0f} ns"
    '130 ns'

    References:
      Khaddam-Aljameh et al., HERMES-core: a 1.59-TOPS/mm² PCM on 14-nm CMOS in-memory
      compute core using 300-ps/LSB linearized CCO-based ADCs, IEEE Journal of
      Solid-State Circuits 57, 2022, doi:10.1109/JSSC.2022.3140414.
    """
    operations, tops = 2 * 256 * 256, 1.008
    return CostParameter(
        source="HERMES core, 14 nm, Khaddam-Aljameh et al., JSSC 2022",
        tile_rows=256,
        tile_columns=256,
        read_time_ns=operations / tops * 1e-3,
        tile_energy_pj=operations / 10.5,
        tile_area_um2=tops / 1.59 * 1e6,
    )


def hermes() -> CostParameter:
    """Returns the 64-core Hermes chip in its fast mode of one phase, 14 nm, measured.

    The paper states 0.86 µJ for a product of all 64 cores of 256 x 256, with crossbars,
    ADCs and pulse-width modulators, and 63.1 TOPS: 13.4 nJ and 133 ns for a core. The
    mode of four phases, which is more precise, takes four times as much. The area of a
    core is not stated.

    >>> f"{hermes().read_time_ns:.0f} ns"
    '133 ns'

    References:
      Le Gallo et al., A 64-core mixed-signal in-memory compute chip based on
      phase-change memory for deep neural network inference, Nature Electronics 6, 2023,
      doi:10.1038/s41928-023-01010-1, Table I of the preprint arXiv:2212.02872.
    """
    cores = 64
    operations = cores * 2 * 256 * 256
    return CostParameter(
        source="Hermes, 14 nm, one phase, Le Gallo et al., Nature Electronics 2023",
        tile_rows=256,
        tile_columns=256,
        read_time_ns=operations / 63.1 * 1e-3,
        tile_energy_pj=0.86e6 / cores,
    )
