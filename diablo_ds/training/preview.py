"""What a run would train on, as text: counts, templates and examples. Loads no weights."""

from __future__ import annotations

from diablo_ds.config.run import RunConfig
from diablo_ds.data.loading import load_data
from diablo_ds.data.text.marking import marked
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.errors import UserError
from diablo_ds.model.base import read_base
from diablo_ds.model.finding import find_model


def preview_data(run_config: RunConfig, num_examples: int) -> str:
    """Return the counts of a run's data, and examples with the tokens of the loss in ``[[...]]``.

    Args:
        run_config: names the model, whose tokenizer is used, and the data.
        num_examples: examples to show, spread evenly over the training data.

    Raises:
        UserError: if the model or the data are wrong.
    """
    if run_config.stream:
        raise UserError(
            "preview needs data that are read before the run; got stream=True; leave --stream out "
            "and name one of the files"
        )
    folder = find_model(run_config.model, run_config.cache_folder)
    tokenizer = load_tokenizer(folder)
    train, heldout = load_data(run_config, tokenizer, read_base(folder).vocab_size)
    lines = [f"Training data: {train.describe()}"]
    if heldout is not None:
        lines.append(f"Held-out data: {heldout.describe()}")
    num_shown = min(num_examples, len(train))
    for number in range(num_shown):
        index = number * len(train) // num_shown
        example = train[index]
        lines.append(
            f"--- example {index:,} of {len(train):,}, {len(example.input_ids)} tokens, "
            "with loss in [[...]]"
        )
        lines.append(marked(example, tokenizer.encoder))
    return "\n".join(lines)
