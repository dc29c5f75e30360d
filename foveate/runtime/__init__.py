"""Packed engines: the same plan and weights, run by the fastest thing installed here, held against eager float32 at load."""

from foveate.runtime.agreement import Agreement
from foveate.runtime.artifact import Artifact, read_artifact
from foveate.runtime.artifact_engine import load_artifact
from foveate.runtime.engine import Engine
from foveate.runtime.export import export
from foveate.runtime.loading import installed_backends, load, load_engine

__all__ = ["Agreement", "Artifact", "Engine", "export", "installed_backends", "load", "load_artifact", "load_engine", "read_artifact"]
