"""How often the tiles of an array of weights do what, for one example."""

import dataclasses
import math

from hwtrain._errors import InputError
from hwtrain._plan.weight import AnalogWeight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of an array of weights; those of operations are for one example.

    Energy counts the rows and columns in use; area counts whole tiles, as they are
    built.

    Attributes:
      products: products of a vector and a matrix, over all matrices of the array.
      steps: products one after the other; the groups of a convolution, and the
        positions of one without shared weights, work at once, and tiles do too.
      passes: reads of a tile in each product.
      converted_passes: those whose outputs are converted; of others, outputs are added
        first.
      macs: multiplications and additions.
      tiles: tiles.
      tile_reads: reads of tiles.
      row_drives: rows that are driven, over all reads of tiles.
      conversions: columns that are converted, over all reads of tiles.
      weight_reads: weights that are read, over all reads of tiles.
      columns_in_turn: columns that one ADC converts in each read.
      drivers: rows of all tiles.
      adcs: ADCs of all tiles.
      places: weights that all tiles can hold.
    """

    products: float
    steps: float
    passes: int
    converted_passes: int
    macs: float
    tiles: int
    tile_reads: float
    row_drives: float
    conversions: float
    weight_reads: float
    columns_in_turn: int
    drivers: int
    adcs: int
    places: int


def counts_of(
    weight: AnalogWeight,
    products: float,
    *,
    passes: int = 1,
    converted_passes: int | None = None,
    tile_rows: int | None = None,
    tile_columns: int | None = None,
    columns_per_output: int = 1,
    columns_per_adc: int = 1,
) -> Counts:
    """Returns the counts of an array of weights.

    >>> from hwtrain._plan.plan import ONE
    >>> counts_of(ONE, 3.0, passes=8).conversions
    24.0

    Args:
      weight: the plan of the array.
      products: products of a vector and one of its matrices, for one example.
      passes: passes in which a tile takes an input.
      converted_passes: those whose outputs are converted; `None` for all.
      tile_rows: rows of a tile; `None`: the limit of the mapping, or the rows in use.
      tile_columns: columns of a tile; `None` likewise.
      columns_per_output: columns of a tile that hold the weights of one output.
      columns_per_adc: columns that share an ADC, at most.

    Raises:
      ValueError: if the weights are on larger tiles.
    """
    row_tiles, column_tiles = weight.tiles
    rows, columns = sum(weight.row_sizes), sum(weight.column_sizes)
    mapping = weight.hardware.mapping
    tall = (mapping and mapping.max_input_size) or weight.row_sizes[0]
    wide = (mapping and mapping.max_output_size) or weight.column_sizes[0]
    used = max(weight.column_sizes) * columns_per_output
    if tile_rows is not None:
        if max(weight.row_sizes) > tile_rows:
            raise _too_large(weight, "rows", max(weight.row_sizes), tile_rows)
        tall = tile_rows
    if tile_columns is not None:
        if used > tile_columns:
            raise _too_large(weight, "columns", used, tile_columns, columns_per_output)
        wide = tile_columns // columns_per_output
    tiles = math.prod(weight.stack) * row_tiles * column_tiles
    adcs = -(-(tile_columns or wide * columns_per_output) // columns_per_adc)
    reads = products * passes
    converted = passes if converted_passes is None else converted_passes
    return Counts(
        products=products,
        steps=products / math.prod(weight.parallel),
        passes=passes,
        converted_passes=converted,
        macs=products * rows * columns,
        tiles=tiles,
        tile_reads=reads * row_tiles * column_tiles,
        row_drives=reads * rows * column_tiles,
        conversions=products * converted * columns * row_tiles * columns_per_output,
        weight_reads=reads * rows * columns,
        columns_in_turn=min(used, columns_per_adc),
        drivers=tiles * tall,
        adcs=tiles * adcs,
        places=tiles * tall * wide,
    )


def _too_large(
    weight: AnalogWeight, what: str, used: int, limit: int, share: int = 1
) -> ValueError:
    """Returns the error for weights on tiles that the technology does not have."""
    field = {"rows": "max_input_size", "columns": "max_output_size"}[what]
    each = "" if share == 1 else f" ({share} for each output)"
    return InputError(
        f"{weight.path}: it needs tiles of {used} {what}{each}, and those of this "
        f"technology have {limit}. Write {field}={limit // share} in the "
        "MappingParameter of its hardware (hardware.mapping)"
    )
