"""Wall clock: interleaved timings with their spread, and the machine they were taken on."""

from foveate.machine import machine
from foveate.measure.clock import Spread, Timing, interleave, timing_ledger, verdict

__all__ = ["Spread", "Timing", "interleave", "machine", "timing_ledger", "verdict"]
