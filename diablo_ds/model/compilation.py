"""Compiling decoder layers with `torch.compile`: what lies between matrix products is fused.

What is compiled is a layer's ``forward`` alone. What lies around it is not seen by the compiler and
runs as before: DeepSpeed's hooks, which gather a layer's weights ahead of it and release them after
it, and recomputation, which calls it once more in the backward. So a compiled region holds no
collective, and each rank may compile, or fall back, by itself.

All layers of a class share their compilations: one for training and one for evaluation, and of each
a second one, for any length, as soon as a second length is met.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.adapter.attach import named_deltas
from diablo_ds.adapter.gradients import hidden_gradients
from diablo_ds.adapter.kernels.compiled_blocks import frozen_linear_op
from diablo_ds.config.batch_resolution import AS_RECORDED
from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import decoder_layers
from diablo_ds.model.loss import fusible_softmax_loss, in_place_softmax_loss
from diablo_ds.model.loss_head import LossHead
from diablo_ds.ranks.software import code_digest

logger = logging.getLogger("diablo_ds")

RECOMPILE_LIMIT = 64
"""Compilations of one function. PyTorch's default of 8 is too low for training and evaluation, with
and without deltas and masks, and for lengths and numbers of sequences that are 1, fixed or any."""


def choose_compilation(
    setting: str, meta_model: Any, recorded: RunConfig | None, device_type: str
) -> tuple[str, str]:
    """Return "on" or "off" and, where "auto" took "on", why.

    Args:
        setting: "auto", "on" or "off". Auto is what a resumed run had, else on where it was
            measured to be faster: on a GPU.
        meta_model: the model on the meta device.
        recorded: the run config of the run that is continued.
        device_type: "cuda" or "cpu".

    Raises:
        UserError: if the model's decoder layers are not known.
    """
    if setting == "on" and not decoder_layers(meta_model):
        raise UserError(
            "compile needs a model whose decoder layers are known; got model type "
            f"{meta_model.config.model_type!r}; use --compile off"
        )
    if setting != "auto":
        return setting, ""
    if recorded is not None and recorded.compile != "auto":
        return recorded.compile, AS_RECORDED if recorded.compile == "on" else ""
    if device_type == "cuda" and decoder_layers(meta_model):
        return "on", "on a GPU steps take less time and memory; the first takes some 10 s more"
    return "off", ""


def compile_layers(model: Any, *, backend: str = "inductor") -> int:
    """Let each decoder layer run compiled from now on; it is compiled when it is first called.

    Results are equal up to rounding. Where a layer cannot be compiled, all layers of its class run
    as before, and one warning says so. May be called before or after DeepSpeed takes
    the model.

    Args:
        model: a model whose decoder layers are known; deltas are attached.
        backend: of `torch.compile`; "aot_eager" traces alike, and generates no code.

    Returns:
        The number of compiled layers.
    """
    import torch._dynamo

    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, RECOMPILE_LIMIT)
    uncompile_layers(model)
    layers: list[Any] = decoder_layers(model)
    for layer in layers:
        for module in layer.modules():
            if type(module) is nn.Linear and not module.weight.requires_grad:
                module.__class__ = _FrozenLinear
        layer_class: Any = type(layer)
        compiled = _compiled_class(layer_class, backend)
        compiled.compilation.has_failed = False
        layer.__class__ = compiled
        layer.own_deltas = tuple(named_deltas(layer).values())
    return len(layers)


def compile_loss(model: Any) -> bool:
    """Let a loss head compute softmax and gradient of a chunk by one compiled function.

    It reads the logits two or three times, where operation by operation takes a dozen passes.

    Args:
        model: a model whose head may be a `diablo_ds.model.loss_head.LossHead`.

    Returns:
        Whether it is one.
    """
    head = model.get_output_embeddings()
    if isinstance(head, LossHead):
        head.compute_softmax_by(_CompiledLoss())
    return isinstance(head, LossHead)


class _CompiledLoss:
    """`diablo_ds.model.loss.fusible_softmax_loss`, compiled for any number of rows."""

    def __init__(self) -> None:
        self.has_failed = False
        self._compiled = torch.compile(fusible_softmax_loss, fullgraph=True)

    def __call__(
        self, logits: Tensor, target: Tensor, gain: float, with_grad: bool
    ) -> tuple[Tensor, Tensor]:
        if not self.has_failed:
            # The last chunk of a batch has any size; one code for all sizes rounds alike in each.
            for rows in (logits, target):
                torch._dynamo.maybe_mark_dynamic(rows, 0)
            try:
                loss, grad = self._compiled(logits, target, gain, with_grad)
                return loss, grad
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers and their tools raise all kinds
                _warn_of_failure("the loss", error)
                self.has_failed = True
        return in_place_softmax_loss(logits, target, gain, with_grad)


def uncompile_layers(model: nn.Module) -> None:
    """Undo `compile_layers`; compiled code is kept for the next call of it."""
    for module in model.modules():
        before = getattr(type(module), "class_before", None)
        if before is not None:
            module.__class__ = before


class _FrozenLinear(nn.Linear):
    """A linear layer whose weight gets no gradient, opaque to the compiler.

    Left to itself the compiler would look into the function that DeepSpeed puts in the place of
    `torch.nn.functional.linear`, or might keep a view of a gathered weight for the backward.
    """

    class_before = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``."""
        if torch.compiler.is_compiling():
            y: Tensor = frozen_linear_op(input, self.weight, self.bias)
            return y
        return super().forward(input)


class _Compilation:
    """The compiled forward of a class of layers.

    Args:
        layer_class: the class.
        backend: of `torch.compile`.
    """

    def __init__(self, layer_class: type[nn.Module], backend: str) -> None:
        self.layer_class = layer_class
        self.has_failed = False
        self._eager: Callable[..., Any] = layer_class.forward

        # Two functions, since a function whose sizes vary is compiled for any size from then on: a
        # held-out batch of another size shall not make the training's code more general and slower.
        def in_training(layer: Any, *args: Any, **kwargs: Any) -> Any:
            return layer_class.forward(layer, *args, **kwargs)

        def without_gradient(layer: Any, *args: Any, **kwargs: Any) -> Any:
            return layer_class.forward(layer, *args, **kwargs)

        options: Any = {"fullgraph": True, "backend": functools.partial(_compile, backend)}
        self._in_training = torch.compile(in_training, **options)
        self._without_gradient = torch.compile(without_gradient, **options)

    def run(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the forward of a layer, compiled unless that failed."""
        # A layer that is recomputed in the backward has to do what it did in the forward, even if
        # another layer has failed since; and PyTorch ends that by an error of its own.
        kinds = _compiler_errors()
        if not _is_in_backward():
            layer.runs_compiled = not self.has_failed
            kinds = (Exception,)  # compilers and their tools raise all kinds
        if layer.runs_compiled:
            compiled = self._in_training
            if not torch.is_grad_enabled():
                compiled = self._without_gradient
                # Then it is one case, whether an input requires a gradient or not.
                args = tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)
            try:
                with hidden_gradients(layer.own_deltas):
                    return compiled(layer, *args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except kinds as error:  # one of the layer's own will come again
                self._report(error)
                layer.runs_compiled = False
        return self._eager(layer, *args, **kwargs)

    def _report(self, error: BaseException) -> None:
        if not self.has_failed:
            _warn_of_failure(self.layer_class.__name__, error)
        self.has_failed = True


def _warn_of_failure(what: str, error: BaseException) -> None:
    error = getattr(error, "inner_exception", error)
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    logger.warning(
        f"{what} could not be compiled, and runs as with --compile off: {type(error).__name__}: "
        f"{reason}"
    )
    logger.debug(f"why {what} could not be compiled", exc_info=error)


def _compile(backend: str, graph: Any, inputs: Any) -> Any:
    """Compile a graph and, right away, its backward, where it is too late for falling back."""
    import torch._functorch.config
    import torch.compiler.config
    from torch._dynamo.backends.registry import lookup_backend

    # A view of a weight that were kept for the backward would keep the gathered weight, too.
    settings = {"force_non_lazy_backward_lowering": True, "recompute_views": True}
    # PyTorch's cache does not see when our operators' gradients change.
    compiler_config: Any = torch.compiler.config
    tagged = compiler_config.patch(cache_key_tag=f"diablo_ds {_code_digest()}")
    with torch._functorch.config.patch(settings), tagged:
        return lookup_backend(backend)(graph, inputs)


_code_digest = functools.cache(code_digest)


def _compiler_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return TorchDynamoException, FailOnRecompileLimitHit


def _is_in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


@functools.cache
def _compiled_class(layer_class: type[nn.Module], backend: str) -> Any:
    """Return a subclass whose forward runs compiled.

    A subclass, and not a function put into each layer, since transformers' recomputation is part
    of a layer's ``__call__`` in some versions and of its class's ``forward`` in others; a subclass
    gets it around its own forward in both.
    """
    compilation = _Compilation(layer_class, backend)

    @functools.wraps(layer_class.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return compilation.run(self, *args, **kwargs)

    # The same name: transformers tells decoder layers by it.
    members = {
        "__module__": layer_class.__module__,
        "class_before": layer_class,
        "compilation": compilation,
        "runs_compiled": True,
        "forward": forward,
    }
    return type(layer_class.__name__, (layer_class,), members)
