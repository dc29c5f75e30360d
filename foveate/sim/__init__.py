"""The hardware wing: analytic and event-level models of accelerators, rooflines, tables. It knows no other part of foveate.

Three inputs stay apart: the workload (a Ledger's operations, or anything with their attributes), the machine (one TOML file)
and the mapping of the one to the other.

    machine = sim.load("zcu102")
    costs = sim.simulate(ledger.operations, machine)

`foveate.simulate` does this from a model's name and a plan.
"""

from foveate.sim.catalog import load, load_mapping, targets
from foveate.sim.cost import Cost
from foveate.sim.dataflow import Folding
from foveate.sim.errors import SimError
from foveate.sim.machine import Machine
from foveate.sim.mapping import NOWHERE, Rule
from foveate.sim.run import remarks, simulate, timelines
from foveate.sim.timeline import Timeline

__all__ = ["NOWHERE", "Cost", "Folding", "Machine", "Rule", "SimError", "Timeline", "load", "load_mapping", "remarks", "simulate", "targets", "timelines"]
