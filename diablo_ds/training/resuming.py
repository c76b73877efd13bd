"""Where a run continues: its folder, owned by rank 0, and the checkpoint that fits it."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from diablo_ds.adapter.layer import delta_shapes
from diablo_ds.adapter.storage import check_adapter
from diablo_ds.config.continuation import changes_ahead
from diablo_ds.config.profile_steps import parse_profile_steps
from diablo_ds.config.run import RunConfig
from diablo_ds.config.starts import Change
from diablo_ds.data.batch_source import BatchSource
from diablo_ds.data.identity import DataIdentity, identify, reconcile
from diablo_ds.data.training_batches import TrainingBatches
from diablo_ds.errors import UserError
from diablo_ds.files.layout import RunFolder
from diablo_ds.files.ownership import FolderOwner
from diablo_ds.ranks import distributed
from diablo_ds.ranks.log import logger
from diablo_ds.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from diablo_ds.training.content_checks import check_tensors
from diablo_ds.training.evaluations import Evaluations
from diablo_ds.training.extending import check_effect, check_length, describe_changes
from diablo_ds.training.preparing import Prepared
from diablo_ds.training.run_folder import own_run_folder


def own_folder(
    prepared: Prepared, resources: contextlib.ExitStack
) -> tuple[Path, FolderOwner | None]:
    """Make rank 0 the owner of the run folder until ``resources`` are closed. Collective.

    Returns:
        The folder and, on rank 0, its owner.
    """
    owners: list[FolderOwner] = []

    def own() -> Path:
        owner = own_run_folder(prepared.run_config)
        resources.callback(owner.release)
        owners.append(owner)
        return owner.folder

    folder = distributed.on_main_process(own)
    return folder, owners[0] if owners else None


@dataclass(frozen=True)
class Position:
    """Where a run begins or continues, and where it ends."""

    checkpoint: Checkpoint | None
    """What it continues from, if anything."""
    batches: TrainingBatches
    """The training data as the run takes them from there."""
    data: DataIdentity
    num_steps: int
    """Optimizer steps of the run, those before the checkpoint included."""
    has_other_heldout: bool = False
    """Whether the checkpoint's run was evaluated on other held-out data."""
    changes: tuple[Change, ...] = ()
    """Settings that change for the steps to come."""

    @property
    def start_step(self) -> int:
        """Optimizer steps that were taken before."""
        return 0 if self.checkpoint is None else self.checkpoint.step

    @property
    def evaluations(self) -> Evaluations:
        """What is remembered of the evaluations on the held-out data."""
        if self.checkpoint is None or self.has_other_heldout:
            return Evaluations()
        return self.checkpoint.evaluations

    def describe_changes(self, run_config: RunConfig, folder: Path) -> str:
        """Return what changes for the steps to come, at least one setting, as lines of text."""
        return describe_changes(
            self.changes, run_config, folder, step=self.start_step, num_steps=self.num_steps
        )


def find_position(prepared: Prepared, folder: Path) -> Position:
    """Load the latest checkpoint that is intact and fits the run, and find its place in the data.

    Reads only. Collective, where the ranks have joined: every rank must call this.

    Args:
        prepared: the run.
        folder: the run folder; may not exist yet.

    Raises:
        UserError: if a checkpoint is there and none fits the run, the data changed without
            `allow_changed_data`, hosts see different data, settings change without effect, or steps
            are to be traced that the run does not take.
    """
    checkpoint = _find_checkpoint(prepared, folder)
    inputs, recorded = prepared.inputs, prepared.recorded
    batches, data, num_steps = place_data(
        prepared.run_config, inputs.train, inputs.heldout, checkpoint, recorded
    )
    changes = [] if recorded is None else changes_ahead(recorded, prepared.run_config)
    if checkpoint is not None:
        check_effect(changes, checkpoint.step, num_steps)
    other_heldout = _has_other_heldout(checkpoint, data)
    position = Position(checkpoint, batches, data, num_steps, other_heldout, tuple(changes))
    _check_traced(prepared.run_config.profile_steps, position)
    return position


def _check_traced(profile_steps: str, position: Position) -> None:
    """Check that the steps to be traced are the run's, and warn where all were taken before."""
    steps = parse_profile_steps(profile_steps, position.num_steps)
    if steps and steps[-1] <= position.start_step:
        logger.warning(
            f"Nothing will be traced: profile_steps={profile_steps} were taken before, and the run "
            f"continues after step {position.start_step}"
        )


def _has_other_heldout(checkpoint: Checkpoint | None, data: DataIdentity) -> bool:
    """Return whether a checkpoint was written with other held-out data than those that are used."""
    if checkpoint is None or checkpoint.data is None:
        return False
    before, now = checkpoint.data["heldout"] or {}, data.heldout or {}
    return bool(before.get("fingerprint") != now.get("fingerprint"))


def place_data(
    run_config: RunConfig,
    train: TrainingBatches,
    heldout: BatchSource | None,
    checkpoint: Checkpoint | None,
    recorded: RunConfig | None = None,
) -> tuple[TrainingBatches, DataIdentity, int]:
    """Compare the data with those of the checkpoint, and find where the run continues in them.

    Collective, where the ranks have joined: every rank must call this.

    Args:
        run_config: the run config.
        train: training data.
        heldout: held-out data, if any.
        checkpoint: where the run continues, if anywhere.
        recorded: the run config of the run that is continued.

    Returns:
        The training data as the run takes them, their identity, and the run's optimizer steps.

    Raises:
        UserError: if they changed without `allow_changed_data`, hosts see different data, or the
            run is given fewer steps than it has taken.
    """
    identity = _identify(run_config, train, heldout)
    step = 0 if checkpoint is None else checkpoint.step
    if checkpoint is not None and checkpoint.data is None:
        logger.info("An older version wrote the checkpoint: whether the data changed is not known")
    elif checkpoint is not None and checkpoint.data is not None:
        old = DataIdentity.from_json(checkpoint.data, step, Path())
        if recorded is not None and not recorded.max_steps:
            old = old.with_lag(step, run_config.global_batch)
        identity, change = reconcile(old, identity, run_config, step)
        if change:
            logger.warning(change)
    batches, num_steps = _starting_at(run_config, train, identity)
    if recorded is not None:
        check_length(changes_ahead(recorded, run_config), step, num_steps)
    if step > num_steps:
        logger.warning(
            f"The run has taken {step} steps already; its data or settings make {num_steps}, so it "
            "ends here"
        )
    return batches, identity, max(num_steps, step)


def _find_checkpoint(prepared: Prepared, folder: Path) -> Checkpoint | None:
    run_config, adapter, shapes = prepared.run_config, prepared.adapter, prepared.design.shapes
    loaded: dict[Path, Checkpoint] = {}

    def load(path: Path) -> Checkpoint:
        checkpoint = load_checkpoint(path)
        for name in ("global_batch", "seed"):
            if getattr(checkpoint, name) != getattr(run_config, name):
                raise UserError(
                    f"checkpoint must have the run's {name}={getattr(run_config, name)}; got "
                    f"{name}={getattr(checkpoint, name)} in {path}"
                )
        if checkpoint.adapter.num_blocks == adapter.num_blocks:  # else it is refused below
            wanted = delta_shapes(shapes, adapter.num_blocks)
            check_tensors(checkpoint.masters, wanted, path)
        if checkpoint.data is not None:
            DataIdentity.from_json(checkpoint.data, checkpoint.step, path)
        loaded[path] = checkpoint
        return checkpoint

    found, problems = distributed.on_main_process(
        lambda: find_checkpoint(RunFolder(folder).checkpoints, load)
    )
    for problem in problems:
        logger.warning(f"Passing over a damaged checkpoint: {problem}")
    if found is None:
        return None
    checkpoint = distributed.on_every_rank(lambda: loaded.get(found) or load(found))
    try:
        check_adapter(checkpoint.adapter, adapter)
    except UserError as error:
        raise UserError(
            f"{error}; to resume, put the model back as it was; for a new run, choose another "
            "--output"
        ) from None
    logger.info(f"Resuming after step {checkpoint.step} from {found}")
    return checkpoint


def _identify(
    run_config: RunConfig, train: TrainingBatches, heldout: BatchSource | None
) -> DataIdentity:
    """Fingerprint the data once per host, and compare the hosts."""
    reads = distributed.local_rank() == 0 or distributed.is_alone()
    mine = distributed.on_every_rank(
        lambda: identify(run_config, train, heldout) if reads else None
    )
    found = distributed.gather_values((distributed.host_name(), mine))
    first_host, identity = found[0]
    assert identity is not None
    for host, other in found:
        if other is not None and other != identity:
            raise UserError(
                f"data must be the same on every host; got different data on {host} and on "
                f"{first_host}, data={', '.join(run_config.data)}"
            )
    return identity


def _starting_at(
    run_config: RunConfig, batches: TrainingBatches, identity: DataIdentity
) -> tuple[TrainingBatches, int]:
    """Return the data with their passes from a step on, and the optimizer steps of the run."""
    start, lag = identity.start_step, identity.lag or 0
    if not start and not lag:
        return batches, batches.num_steps
    left = max(run_config.max_steps - start, 0)
    if not left and (run_config.max_steps or not identity.passes):
        return batches, start
    rest = dataclasses.replace(run_config, num_epochs=identity.passes, max_steps=left)
    batches = batches.starting_at(start, rest, lag)
    return batches, batches.num_steps
