"""The tokenizer and the data of a run."""

from __future__ import annotations

from dataclasses import dataclass

from diablo_ds.config.run import RunConfig
from diablo_ds.config.schedule import describe_warmup
from diablo_ds.data.batch_source import BatchSource
from diablo_ds.data.batches import Dealer
from diablo_ds.data.loading import load_data, load_heldout
from diablo_ds.data.streaming import open_stream
from diablo_ds.data.text.end_tokens import EndTokens, find_end_tokens
from diablo_ds.data.text.marking import marked
from diablo_ds.data.text.tokenization import Tokenizer, load_tokenizer
from diablo_ds.data.training_batches import TrainingBatches
from diablo_ds.model.base import Base
from diablo_ds.model.separation import Separation
from diablo_ds.ranks import distributed


@dataclass(frozen=True)
class Inputs:
    """The data of a run."""

    train: TrainingBatches
    heldout: BatchSource | None
    ends: EndTokens
    """Tokens that end examples, and those that end the base model's own text."""
    first_example: str = ""
    """The first training example, with its loss in ``[[...]]``; empty for a stream."""

    def describe(self, run_config: RunConfig, world_size: int, num_steps: int) -> str:
        """Return data counts and the batch equation as lines of text.

        Args:
            run_config: the run config.
            world_size: number of ranks.
            num_steps: optimizer steps of the run.
        """
        lines = [f"Training data: {self.train.describe()}"]
        if self.heldout is not None:
            lines.append(f"Held-out data: {self.heldout.describe()}")
        if text := self.ends.describe():
            lines.append(text)
        lines.append(f"{run_config.batch_equation(world_size)}; {num_steps} steps")
        if text := describe_warmup(num_steps, run_config.warmup_steps):
            lines.append(text)
        return "\n".join(lines)


def load_inputs(run_config: RunConfig, base: Base, separation: Separation) -> Inputs:
    """Read the tokenizer and the data.

    Args:
        run_config: the run config, without open values.
        base: the base model.
        separation: how examples are kept apart.

    Raises:
        UserError: if one of them is missing or wrong.
    """
    tokenizer = load_tokenizer(base.folder)
    dealer = Dealer(
        run_config,
        padding_id(tokenizer, base.vocab_size),
        distributed.rank(),
        distributed.world_size(),
        separation.mask,
        separation.equal_lengths,
    )
    train: TrainingBatches
    first = ""
    if run_config.stream:
        train = stream = open_stream(run_config, tokenizer, dealer, base.vocab_size)
        heldout = load_heldout(run_config, tokenizer, base.vocab_size)
        learnt = frozenset(stream.ends)
    else:
        examples, heldout = load_data(run_config, tokenizer, base.vocab_size)
        first = marked(examples[0], tokenizer.encoder)
        train, learnt = BatchSource(examples, run_config, dealer), examples.table.last_targets()
    return Inputs(
        train,
        None if heldout is None else BatchSource(heldout, run_config, dealer),
        find_end_tokens(tokenizer, learnt, base.folder, base.model_config),
        first,
    )


def padding_id(tokenizer: Tokenizer, vocab_size: int) -> int:
    """Return a token for padding that the model knows; which one changes no number.

    A pad token that was added to the tokenizer, but not to the model, is not one of them.

    Args:
        tokenizer: the tokenizer.
        vocab_size: number of token ids that the model knows.
    """
    known = [token for token in (tokenizer.pad_id, tokenizer.end_id) if 0 <= token < vocab_size]
    return known[0] if known else 0
