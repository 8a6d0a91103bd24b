"""Fine-tune attention models with a few hundred numbers: learn how their attention heads combine.

Importing the package registers the method `COEFF` with PEFT, so that `get_peft_model(model, CoeffConfig())`,
`PeftModel.from_pretrained` and the rest of PEFT work with it.

    op                 coeff_attention, list_backends
    your own modules   register_attention
    PEFT method        CoeffConfig, CoeffModel, CoeffLayer
    beside LoRA, ...   add_coeff, load_coeff
    into the weights   merge_approximately, MergeReport; exactly: PEFT's merge_and_unload
    many adapters      load_adapters
    errors             errors (module)
"""

from __future__ import annotations

from coeff_tuning import errors
from coeff_tuning.binders import register_attention
from coeff_tuning.functional import coeff_attention
from coeff_tuning.ops import list_backends
from coeff_tuning.tuner.approximate import MergeReport, merge_approximately
from coeff_tuning.tuner.combine import add_coeff, load_coeff
from coeff_tuning.tuner.config import CoeffConfig
from coeff_tuning.tuner.layer import CoeffLayer
from coeff_tuning.tuner.many import load_adapters
from coeff_tuning.tuner.model import CoeffModel
from coeff_tuning.tuner.register import register

register()

__version__ = "0.1.0"

__all__ = [
    "CoeffConfig",
    "CoeffLayer",
    "CoeffModel",
    "MergeReport",
    "__version__",
    "add_coeff",
    "coeff_attention",
    "errors",
    "list_backends",
    "load_adapters",
    "load_coeff",
    "merge_approximately",
    "register_attention",
]
