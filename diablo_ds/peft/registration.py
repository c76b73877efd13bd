"""Making DiaBlo known to PEFT."""

from __future__ import annotations

from peft import mapping
from peft.utils import register_peft_method

from diablo_ds.peft.config import DiaBloConfig
from diablo_ds.peft.model import DiaBloModel
from diablo_ds.peft.support import METHOD, add_peft_type


def register() -> None:
    """Register DiaBlo with PEFT. Any further call, also by a reloaded module, changes nothing else.

    Raises:
        ImportError: if PEFT cannot take the method, or has another one of this name.
    """
    peft_type = add_peft_type()
    known = mapping.PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type)
    if known is None:
        register_peft_method(
            name=METHOD.lower(),
            config_cls=DiaBloConfig,
            model_cls=DiaBloModel,
            prefix=DiaBloModel.prefix,
        )
    elif known.__module__ == DiaBloConfig.__module__:  # an import of this package that was undone
        mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = DiaBloConfig
        mapping.PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = DiaBloModel
    else:
        raise ImportError(
            f"PEFT must have no other method named {METHOD}; got that of {known.__module__}"
        )
