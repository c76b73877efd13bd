"""The tuner: which layers of a model get deltas, and what PEFT can do with its adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from diablo_ds.adapter.targets import DEFAULT_TARGETS
from diablo_ds.peft.config import DiaBloConfig
from diablo_ds.peft.geometry import check_targets, num_blocks_of
from diablo_ds.peft.layer import DiaBloTunerLinear
from diablo_ds.peft.loading import check_base, check_tensors
from diablo_ds.peft.mixed_batches import adapters_by_row
from diablo_ds.peft.weighted import add_weighted_adapter


class DiaBloModel(BaseTuner):
    """A model whose linear layers have a delta for each adapter.

    PEFT makes it: `peft.get_peft_model` or `peft.PeftModel.from_pretrained`.
    """

    prefix = "diablo_"
    tuner_layer_cls = DiaBloTunerLinear
    # For types of models that the trainer has no default for, the layers that LoRA takes in PEFT.
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING | DEFAULT_TARGETS

    def _prepare_model(self, peft_config: DiaBloConfig, model: nn.Module) -> None:
        """Check all layers before the first is changed."""
        check_base(peft_config, model)
        check_targets(peft_config, model, self._check_target_module_exists)
        if not peft_config.inference_mode:
            # They describe the adapter that was saved, not what it is trained to from here.
            for name in ("num_deltas", "step", "heldout_loss", "library_versions"):
                setattr(peft_config, name, None)

    def _create_and_replace(
        self,
        peft_config: DiaBloConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        num_blocks = num_blocks_of(peft_config, current_key)
        if isinstance(target, DiaBloTunerLinear):
            target.update_layer(adapter_name, num_blocks, peft_config)
            if self._is_reference(adapter_name) and "default" in target.diablo_delta:
                target.diablo_delta[adapter_name].data.copy_(target.diablo_delta["default"].data)
            return
        layer = DiaBloTunerLinear(target, adapter_name, num_blocks, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _is_reference(self, adapter_name: str) -> bool:
        """Return whether TRL adds an adapter as the reference of one that is trained further.

        It gives the new adapter the very config of "default" and copies the parameters whose names
        have ".default." in their middle, as LoRA's have. Those of deltas end with it; left at zero,
        the reference would be the base without a word.
        """
        configs = self.peft_config
        return adapter_name == "ref" and configs["ref"] is configs.get("default")

    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> AbstractContextManager[None]:
        return adapters_by_row(self, kwargs.get("adapter_names"), kwargs.get("num_beams"))

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: DiaBloConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=state_dict
        )
        check_tensors(model, adapter_name, tensors)
        return tensors

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "linear",
    ) -> None:
        """Add the weighted sum of adapters as a new one, exactly: sums of blocks are blocks.

        Args:
            adapters: their names. A layer that one has no delta in counts as zero there.
            weights: a factor for each.
            adapter_name: the new adapter's; not active, and its dropout is that of the first.
            combination_type: "linear", the only one.

        Raises:
            UserError: if an adapter does not exist or saves full modules, two have different
                numbers of blocks in a layer, or the new name is taken.
        """
        add_weighted_adapter(self, adapters, weights, adapter_name, combination_type)

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Do what PEFT's method does, with all layers checked before the first is merged."""
        self._check_merge(adapter_names, safe_merge)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        self._check_merge(adapter_names, safe_merge and merge)
        for _, layer in self.diablo_layers() if merge else ():
            # PEFT puts the innermost layer in the place of ours: what another method's layer in
            # between adds must be in the weight by then.
            inner = layer.base_layer
            if isinstance(inner, BaseTunerLayer) and not inner.merged:
                inner.merge(safe_merge=safe_merge)
        model: nn.Module = super()._unload_and_optionally_merge(
            merge, progressbar, safe_merge, adapter_names
        )
        return model

    def _check_merge(self, adapter_names: list[str] | None, safe_merge: bool) -> None:
        if safe_merge:
            for _, layer in self.diablo_layers():
                layer.check_merge(adapter_names)

    def diablo_layers(self) -> Iterator[tuple[str, DiaBloTunerLinear]]:
        """Return the layers with deltas by their full names."""
        modules = list(self.model.named_modules())
        return ((name, m) for name, m in modules if isinstance(m, DiaBloTunerLinear))
