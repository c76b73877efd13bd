"""DiaBlo as a method of PEFT: importing this package registers it.

import diablo_ds.peft
model = peft.PeftModel.from_pretrained(base, "runs/mine/adapter")
"""

from diablo_ds.peft.support import check_peft

check_peft()  # before any import of PEFT's internals

from diablo_ds.peft.config import DiaBloConfig  # noqa: E402
from diablo_ds.peft.layer import DiaBloTunerLinear  # noqa: E402
from diablo_ds.peft.model import DiaBloModel  # noqa: E402
from diablo_ds.peft.registration import register  # noqa: E402

register()

__all__ = ["DiaBloConfig", "DiaBloModel", "DiaBloTunerLinear"]
