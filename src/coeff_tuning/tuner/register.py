"""Make `COEFF` a method that PEFT knows: the only place that touches PEFT's registries.

PEFT keeps its method names in a closed enum, and its stock `register_peft_method` refuses a name outside it. A member
is therefore added to the enum first, exactly as Python's own enum machinery would have written it. Everything after
that is PEFT's public registration.
"""

from __future__ import annotations

from peft.utils import PeftType, register_peft_method

from coeff_tuning.tuner.config import PEFT_TYPE, CoeffConfig
from coeff_tuning.tuner.model import CoeffModel


def register() -> None:
    """Register `CoeffConfig` and `CoeffModel` with PEFT under the name `COEFF`. Calling it again changes nothing."""
    if PEFT_TYPE in PeftType.__members__:
        return
    _add_enum_member(PEFT_TYPE)
    register_peft_method(name=PEFT_TYPE.lower(), config_cls=CoeffConfig, model_cls=CoeffModel)


def _add_enum_member(name: str) -> None:
    """Add `PeftType.<name>`, equal to the string `name`. Seen working with PEFT 0.20.0 and 0.21.2."""
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member._sort_order_ = len(PeftType.__members__)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    # `PeftType.COEFF` is looked up on the class since Python 3.12, through `_member_map_` before it.
    type.__setattr__(PeftType, name, member)
