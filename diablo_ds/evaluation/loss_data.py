"""The examples of tasks that score given text: read and rendered as training data are."""

from __future__ import annotations

from pathlib import Path

from diablo_ds.config.choices import AUTO, ControlTokens, Corpus, Template
from diablo_ds.config.run import RunConfig
from diablo_ds.data.dataset_files import is_tokenised
from diablo_ds.data.examples import Examples
from diablo_ds.data.loading import load_evaluated
from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.evaluation.rows import question_files


def loss_files(path: Path) -> list[Path]:
    """Return the files of a prepared dataset or of raw data, for their checksum.

    Raises:
        UserError: if there are none.
    """
    return sorted(path.rglob("*.arrow")) if is_tokenised(path) else question_files(path)


def load_loss_examples(
    path: Path,
    tokenizer: Tokenizer,
    vocab_size: int,
    *,
    max_length: int,
    template: Template = AUTO,
    corpus: Corpus = AUTO,
    column: tuple[str, ...] = (),
    control_tokens: ControlTokens = AUTO,
) -> Examples:
    """Load the examples of a prepared dataset or of raw files.

    Of a prepared dataset they are those of its held-out part, or all if it has none; of a folder of
    raw files those of the test files, or of those for validation. Texts without a prompt are joined
    and cut to ``max_length``. The end of other examples that are longer is cut off, and those
    without a target before it are dropped: `Examples.counts` and ``dropped`` count them.

    Args:
        path: of the data.
        tokenizer: the model's tokenizer.
        vocab_size: number of token ids that the model knows.
        max_length: longest example, in tokens.
        template: of raw data; "auto" for that of the rows.
        corpus: family of raw data.
        column: texts FIELD=COLUMN that name the columns of raw data.
        control_tokens: what control tokens in texts of raw data are.

    Raises:
        UserError: if a file is missing, empty or malformed, the settings for raw data are given
            with a prepared dataset, or no example remains.
    """
    run_config = RunConfig(
        data=(str(path),),
        template=template,
        corpus=corpus,
        column=column,
        control_tokens=control_tokens,
        max_length=max_length,
        overlong="cut-completion",
    )
    files = [] if is_tokenised(path) else question_files(path)
    return load_evaluated(run_config, files, tokenizer, vocab_size)
