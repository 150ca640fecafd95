"""Chips: keys, mismatch, programming, drift over time, and reads."""

from hwtrain.chips._fitted_levels import fit_levels as fit_levels
from hwtrain.chips._mismatched import apply_mismatch as apply_mismatch
from hwtrain.chips._mismatched import chip_key as chip_key
from hwtrain.chips._programming import ProgrammedChip as ProgrammedChip
from hwtrain.chips._programming import program_chip as program_chip
