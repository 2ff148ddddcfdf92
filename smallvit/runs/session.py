"""How a stage is called, and what it then works with: device, data and settings."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from smallvit.core import places
from smallvit.core.errors import ConfigError
from smallvit.core.run_folder import Run, check_target, environment
from smallvit.data.dataset import Dataset
from smallvit.engine.runtime import Runtime, open_runtime
from smallvit.parallel import processes
from smallvit.parallel.process_group import process_group
from smallvit.runs.config import AnyStage, Call, Recipe, SegmentRecipe
from smallvit.runs.data import check_out, load_dataset
from smallvit.runs.moved import check_same
from smallvit.runs.recipe import open_unfinished, refuse_changes, run_values, stage_values
from smallvit.segment.data import SegmentData, load_segment_data


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a stage works with.

    Attributes:
        call: How it was called.
        runtime: Device and precision.
        data: Images and splits, on the device; with their masks for a segmentation.
        values: Every setting of the run, for recipe.yaml.
    """

    call: Call
    runtime: Runtime
    data: Dataset | SegmentData
    values: dict[str, Any]

    @property
    def dataset(self) -> Dataset:
        """The images and splits."""
        return self.data.dataset if isinstance(self.data, SegmentData) else self.data

    @property
    def resumed(self) -> bool:
        """Whether a run is continued."""
        return self.call.resume is not None

    def environment(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the contents of env.json.

        Args:
            facts: What result.json says; of them what the run saw beside its data.
        """
        dataset = self.dataset
        return {
            **environment(self.call.argv),
            "device": str(self.runtime.device),
            "precision": self.runtime.precision,
            "compiled": self.runtime.compiled,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "processes": processes.count(),
            "threads": torch.get_num_threads(),
            "dataset": {
                "name": dataset.name,
                "fingerprint": dataset.fingerprint,
                "class_names": list(self.data.class_names),
                "counts": {name: len(split) for name, split in dataset.splits.items()},
                "broken": list(dataset.broken),
                "notes": list(dataset.notes),
                "grey_range": dataset.grey_range,
            },
            "split_hashes": dataset.split_hashes,
            "teacher": facts.get("teacher"),
            "extra_data": facts.get("extra_data", "none"),
        }


@contextmanager
def open_session(recipe: Recipe | SegmentRecipe, stage: AnyStage, call: Call) -> Iterator[Session]:
    """Open device and data and join the other processes, once the run folder can be written.

    Args:
        recipe: Resolved settings.
        stage: What is to be made.
        call: Where to, and whether at all.

    Raises:
        ConfigError: If the call contradicts itself, settings differ from those of the run to
            continue, or the folder or the device cannot be had.
        DataError: If the folder cannot be written, or the data is missing or has changed.
    """
    out, resume = call.out, call.resume
    if resume is not None and (call.overwrite or out not in (None, resume)):
        raise ConfigError("--resume goes on in its own folder: leave --out and --overwrite out")
    if isinstance(recipe, Recipe) and resume is None and not call.dry_run:
        check_out(out, recipe.data)
    runtime = open_runtime(recipe.runtime)
    with process_group(runtime.device.type == "cuda"):
        if not call.dry_run:
            processes.on_first(partial(check_target, out, resume=resume, overwrite=call.overwrite))
        values = stage_values(recipe, stage)
        if resume is not None:
            # As the run has them: an older version wrote no keys that it did not know.
            run = open_unfinished(resume, stage)
            refuse_changes(resume, run_values(run, stage), values)
            values = run.written_recipe
        data = processes.ahead(partial(load_data, recipe)).to(runtime.device)
        session = Session(call=call, runtime=runtime, data=data, values=values)
        if resume is not None and (resume / "env.json").is_file():
            check_same(Run(resume), session.dataset, f"--resume {resume}")
        yield session


def load_data(recipe: Recipe | SegmentRecipe) -> Dataset | SegmentData:
    """Open the data of a recipe, on the host."""
    if isinstance(recipe, Recipe):
        return load_dataset(recipe.data)
    return load_segment_data(recipe.data, cache_dir=places.cache_dir())
